"""Data sets in three splits that are kept apart: train, search (fitness only), test.

`load_data("scenes")` is the shipped default; `load_data("imagefolder:PATH")` reads a folder of
class folders, or of `train` / `search` / `test` folders of class folders.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nas.data import scenes
from nas.errors import DataError, UnknownNameError
from nas.records import fingerprint
from nas.space.task import Task
from nas.tasks.classification import Classification

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
SPLITS = ("train", "search", "test")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
_HELD_OUT = 0.2  # share of the images that becomes search and test where none is given


class Split(ABC):
    """Images by number. `batch` gives uint8 (n, 3 or 1, canvas, canvas) and labels (n,)."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    @abstractmethod
    def batch(self, indices: Sequence[int], canvas: int) -> tuple[Images, Labels]: ...


@dataclass(frozen=True)
class Dataset:
    """Three splits, the task that they pose, and how pixels in [0, 1] are normalised."""

    name: str
    task: Task
    train: Split
    search: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    augment: bool  # whether training may crop and flip

    def tensor(self, images: Images) -> torch.Tensor:
        """Normalised floats (n, 3, canvas, canvas); grey is repeated over the channels."""
        x = torch.from_numpy(images).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((x - mean[:, None, None]) / std[:, None, None]).expand(-1, 3, -1, -1)


class _Scenes(Split):
    def batch(self, indices: Sequence[int], canvas: int) -> tuple[Images, Labels]:
        images, labels = scenes.render_batch(self.name, indices, canvas)
        return images[:, None], labels


class _Files(Split):
    """Image files, resized so that the short side fits the canvas, centre cropped."""

    def __init__(self, name: str, files: list[tuple[Path, int]], grey: bool) -> None:
        super().__init__(name, len(files))
        self.files, self.mode = files, "L" if grey else "RGB"
        self._pool = ThreadPoolExecutor(4)
        self._cache: dict[tuple[int, int], Images] = {}

    def batch(self, indices: Sequence[int], canvas: int) -> tuple[Images, Labels]:
        images = list(self._pool.map(lambda i: self._load(i, canvas), indices))
        return np.stack(images), np.array([self.files[i][1] for i in indices])

    def _load(self, index: int, canvas: int) -> Images:
        if (cached := self._cache.get((index, canvas))) is not None:
            return cached
        path = self.files[index][0]
        try:
            with Image.open(path) as file:
                file.draft(self.mode, (canvas, canvas))
                image = _eight_bit(file).convert(self.mode)
        except Exception as error:
            raise DataError(
                f"cannot decode {path}: {error}", "remove or replace the file"
            ) from None
        scale = canvas / min(image.size)
        width, height = (max(canvas, round(side * scale)) for side in image.size)
        left, top = (width - canvas) // 2, (height - canvas) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image.crop((left, top, left + canvas, top + canvas)))
        pixels = np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))
        if len(self._cache) * pixels.size < 2e9:  # decoded images stay, up to 2 GB a split
            self._cache[index, canvas] = pixels
        return pixels


def load_data(name: str, seed: int = 0) -> Dataset:
    """The data set called `name`; raises `DataError` or `UnknownNameError` with the fix.

    `seed` fixes which images are held out where an image folder has no splits of its own.
    """
    kind, _, path = name.partition(":")
    if name == "scenes":
        return _scenes()
    if kind == "imagefolder" and path:
        return _image_folder(Path(path).expanduser(), seed)
    raise UnknownNameError("data set", name, ["scenes", "imagefolder:PATH"])


def _scenes() -> Dataset:
    sizes = {"train": 10**9, "search": 2000, "test": 4000}
    splits = {split: _Scenes(split, sizes[split]) for split in SPLITS}
    rendered = scenes.render_batch("search", range(4))[0]
    return Dataset(
        name="scenes",
        task=Classification.of(scenes.CLASSES),
        mean=(scenes.MEAN,),
        std=(scenes.STD,),
        fingerprint=fingerprint(rendered.tobytes(), list(scenes.CLASSES)),
        augment=False,
        **splits,
    )


def _image_folder(root: Path, seed: int) -> Dataset:
    if not root.is_dir():
        raise DataError(
            f"no folder {root}", "write --data imagefolder:PATH with a folder of class folders"
        )
    given = {split: root / split for split in SPLITS if (root / split).is_dir()}
    sources = given if "train" in given else {"train": root}
    classes = sorted({d.name for s in sources.values() for d in s.iterdir() if d.is_dir()})
    files: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
    for split, source in sources.items():
        for label, name in enumerate(classes):
            found = sorted(p for p in (source / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
            files[split] += [(path, label) for path in found]
    _drop_unreadable(files)
    present = {label for _, label in files["train"]}
    if len(present) < 2:
        raise DataError(
            f"{root} holds images of {len(present)} class{'es' * (len(present) != 1)}",
            "give a folder with at least two class folders of images",
        )
    missing = [split for split in ("search", "test") if not files[split]]
    if missing:
        _hold_out(files, missing, Random(seed))
    for split in SPLITS:  # the first images of a split must be a fair sample of its classes
        Random(f"{seed} {split}").shuffle(files[split])
    grey = _all_grey([path for path, _ in files["train"][:: max(1, len(files["train"]) // 50)]])
    splits = {split: _Files(split, files[split], grey) for split in SPLITS}
    mean, std = _statistics(splits["train"])
    names = [
        (split, str(p.relative_to(root)), label, p.stat().st_size)
        for split in SPLITS
        for p, label in files[split]
    ]
    return Dataset(
        name=f"imagefolder:{root}",
        task=Classification.of(classes),
        mean=mean,
        std=std,
        fingerprint=fingerprint(names),
        augment=True,
        **splits,
    )


def _drop_unreadable(files: dict[str, list[tuple[Path, int]]]) -> None:
    """Decode every file once; report and skip those that are no image or cut short."""
    from nas.progress import track

    def readable(path: Path) -> bool:
        try:
            with Image.open(path) as image:
                image.draft("L", (8, 8))  # a JPEG is then decoded at an eighth, eight times faster
                image.load()
            return True
        except Exception:
            return False

    paths = [path for split in SPLITS for path, _ in files[split]]
    with ThreadPoolExecutor(4) as pool:
        good = {
            path: ok
            for path, ok in track(
                zip(paths, pool.map(readable, paths)), "reading images", len(paths)
            )
        }
    bad = [path for path in paths if not good[path]]
    if bad:
        shown = ", ".join(str(path) for path in bad[:3]) + (", ..." if len(bad) > 3 else "")
        print(f"skipped {len(bad)} unreadable of {len(paths)} images: {shown}", file=sys.stderr)
    for split in SPLITS:
        files[split] = [(path, label) for path, label in files[split] if good[path]]


def _hold_out(files: dict[str, list[tuple[Path, int]]], missing: list[str], rng: Random) -> None:
    """Move a share of each class from train to the splits that are missing."""
    train: list[tuple[Path, int]] = []
    for label in sorted({label for _, label in files["train"]}):
        own = [entry for entry in files["train"] if entry[1] == label]
        rng.shuffle(own)
        share = max(1, round(len(own) * _HELD_OUT / len(missing)))
        if len(own) <= share * len(missing):
            raise DataError(
                f"class {own[0][0].parent.name!r} has only {len(own)} images",
                "give every class at least 3, or folders train, search and test",
            )
        for i, split in enumerate(missing):
            files[split] += own[i * share : (i + 1) * share]
        train += own[len(missing) * share :]
    files["train"] = train


def _all_grey(paths: list[Path]) -> bool:
    for path in paths:
        with Image.open(path) as image:
            if image.mode not in {"1", "L", "I", "I;16", "LA"}:
                return False
    return True


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (medical images, say) scaled to 8 bits; Pillow alone would clip it."""
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    return Image.fromarray((pixels >> (8 if pixels.max() > 255 else 0)).astype(np.uint8))


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    images, _ = split.batch(range(0, split.size, max(1, split.size // 200)), 64)
    x = images.astype(np.float64) / 255
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    return tuple(mean.round(4).tolist()), tuple(np.maximum(std, 0.01).round(4).tolist())
