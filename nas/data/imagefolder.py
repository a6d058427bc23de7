"""Folders of images: a folder for each class, or `train` / `search` / `test` folders of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nas.data import SPLITS, Arrays, Dataset, Split, Tensors
from nas.errors import DataError
from nas.preprocessing import PictureReader
from nas.records import fingerprint
from nas.tasks.classification import Classification

ARGUMENT = "PATH"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
_HELD_OUT = 0.2  # share of the images that becomes search and test where none is given
_CROPPED = (0.6, 1.0)  # share of the area that a crop for training keeps


def load(argument: str, seed: int) -> Dataset:
    """The images below the folder `argument`; raises `DataError` where they are too few.

    `seed` fixes which images are held out where the folder has no splits of its own.
    """
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise DataError(
            f"no folder {root}", "write --data imagefolder:PATH with a folder of class folders"
        )
    classes, files = _files(root)
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
    reader = PictureReader("L" if grey else "RGB")
    splits = {split: _Files(split, files[split], reader) for split in SPLITS}
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
        reader=reader,
        augment=crop_and_flip,
        **splits,
    )


def _files(root: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """The names of the classes, and for each split its files with the number of their class."""
    given = {split: root / split for split in SPLITS if (root / split).is_dir()}
    sources = given if "train" in given else {"train": root}
    classes = sorted({d.name for s in sources.values() for d in s.iterdir() if d.is_dir()})
    files: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
    for split, source in sources.items():
        for label, name in enumerate(classes):
            found = sorted(p for p in (source / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
            files[split] += [(path, label) for path in found]
    return classes, files


class _Files(Split):
    """Image files; the squares at their centres are what is kept of them."""

    def __init__(self, name: str, files: list[tuple[Path, int]], reader: PictureReader) -> None:
        super().__init__(name, len(files))
        self.files, self.reader = files, reader
        self._cache: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def batch(self, indices: Sequence[int], size: int) -> Arrays:
        # Threads of its own for each batch: processes that load beside a training are forked, and
        # would wait for the threads of a pool that stayed behind.
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(lambda i: self._load(i, size), indices))
        labels = np.array([self.files[i][1] for i in indices])
        return {"images": np.stack(images), "labels": labels}

    def _load(self, index: int, canvas: int) -> NDArray[np.uint8]:
        if (cached := self._cache.get((index, canvas))) is not None:
            return cached
        pixels = self.reader.pixels(self.files[index][0], canvas)
        if len(self._cache) * pixels.size < 2e9:  # decoded images stay, up to 2 GB a split
            self._cache[index, canvas] = pixels
        return pixels


def crop_and_flip(batch: Tensors, rng: Random) -> Tensors:
    """A crop of 60-100 % of the area and a horizontal flip, drawn for each sample.

    Every tensor (samples, ..., side, side) that is laid out over the pictures gets the same; those
    of integers, such as masks, take the nearest value instead of mixing several.
    """
    count, side = len(batch["images"]), batch["images"].shape[-1]
    laid_out = [name for name, x in batch.items() if x.ndim > 2 and x.shape[-2:] == (side, side)]
    pieces: dict[str, list[Tensor]] = {name: [] for name in laid_out}
    for i in range(count):
        crop = round(side * math.sqrt(rng.uniform(*_CROPPED)))
        y, x = rng.randint(0, side - crop), rng.randint(0, side - crop)
        flip = rng.random() < 0.5
        for name in laid_out:
            piece = batch[name][i : i + 1, ..., y : y + crop, x : x + crop]
            pieces[name].append(_enlarged(piece.flip(-1) if flip else piece, side))
    return {**batch, **{name: torch.cat(own) for name, own in pieces.items()}}


def _enlarged(piece: Tensor, side: int) -> Tensor:
    """A piece (1, ..., crop, crop) at another side."""
    if piece.shape[-1] == side:
        return piece
    if not piece.is_floating_point():
        at = torch.arange(side) * piece.shape[-1] // side
        return piece[..., at[:, None], at]
    return F.interpolate(piece, (side, side), mode="bilinear", antialias=True)


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


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    batch = split.batch(range(0, split.size, max(1, split.size // 200)), 64)
    x = batch["images"].astype(np.float64) / 255
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    return tuple(mean.round(4).tolist()), tuple(np.maximum(std, 0.01).round(4).tolist())
