"""Folders of images: a folder for each class, or folders of such for each split.

`PATH,copies=drop` leaves out of train what is also in search or test, byte for byte, and of search
what is also in test. The test split stays whole: its accuracy is what others are compared with, and
weights that were trained with the copies need training without them anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.data import Arrays, Dataset, Split, Tensors
from nas.data.imagefolder.folders import arranged, listed
from nas.data.imagefolder.picture_data import PictureData
from nas.data.imagefolder.splits import Files, class_lines
from nas.errors import DataError
from nas.preprocessing import PictureReader
from nas.progress import say
from nas.size import Size
from nas.tasks.classification import Classification

ARGUMENTS = ("PATH",)
_CROPPED = (0.6, 1.0)  # share of the area that a crop for training keeps


def load(argument: str, seed: int) -> Dataset:
    """The images below the folder `argument`; raises `DataError` where they cannot be used.

    `seed` fixes which images are held out where the folder has no splits of its own.
    """
    folder = PictureData("imagefolder", argument, seed, "a folder of class folders", "images")
    files = _read(folder)
    folder.divide(files)
    for line in class_lines(files, folder.seen):
        say(line)
    if not files["search"]:
        raise DataError(
            f"all images of the search split of {folder.root} are in test, too",
            "give the search other images, or take its folder away: part of train is held out",
        )
    classes = _classes(folder.root, files)
    labels = {name: label for label, name in enumerate(classes)}
    return folder.dataset(
        files,
        lambda split, own, reader: ImageFiles(
            split, [(file, labels[name]) for file, name in own], reader
        ),
        Classification.of(classes),
        crop_and_flip,
        lambda file, name: (labels[name], folder.seen[file].digest),
    )


def _read(folder: PictureData) -> Files:
    """The images of each split with their classes; classes of which none can be read are said."""
    root, walk = folder.root, folder.walk
    found = {
        split: [(root.joinpath(*parts), label) for parts, label in own]
        for split, own in arranged(root, walk.pictures, walk.folders, folder.left_out).items()
    }
    files = folder.read(found)
    named, kept = ({name for own in of.values() for _, name in own} for of in (found, files))
    for name in sorted(named - kept):
        say(f"{name!r} is no class: none of its images can be read")
    _classes(root, files)
    return files


def _classes(root: Path, files: Files) -> list[str]:
    """The names of the classes, sorted; `DataError` where nothing can be learned of one."""
    classes = sorted({label for _, label in files["train"]})
    if len(classes) < 2:
        raise DataError(
            f"{root} holds images of {len(classes)} class{'es' * (len(classes) != 1)}",
            "give a folder with at least two class folders of images",
        )
    for split in ("search", "test"):
        if unknown := sorted({label for _, label in files[split]} - {*classes}):
            raise DataError(
                f"{split} has images of {listed(unknown, 3)}, and train none",
                "add some to train, or take that class away",
            )
    return classes


class ImageFiles(Split):
    """Image files with their labels; the pieces at their centres are what is kept of them."""

    def __init__(self, name: str, files: list[tuple[Path, int]], reader: PictureReader) -> None:
        super().__init__(name, len(files))
        self.files, self.reader = files, reader
        self._cache: dict[tuple[int, Size], NDArray[np.uint8]] = {}

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """Pictures (samples, channels, height, width), bytes, and their annotations."""
        # Threads of its own for each batch: processes that load beside a training are forked, and
        # would wait for the threads of a pool that stayed behind.
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(lambda i: self._load(i, size), indices))
        return {"images": np.stack(images), **self.annotations(indices, size)}

    def annotations(self, indices: Sequence[int], size: Size) -> Arrays:
        """The labels of pictures (samples,)."""
        return {"labels": np.array([self.files[i][1] for i in indices])}

    def _load(self, index: int, canvas: Size) -> NDArray[np.uint8]:
        if (cached := self._cache.get((index, canvas))) is not None:
            return cached
        pixels = self.reader.pixels(self.files[index][0], canvas)
        if len(self._cache) * pixels.size < 2e9:  # decoded images stay, up to 2 GB a split
            self._cache[index, canvas] = pixels
        return pixels


def crop_and_flip(
    batch: Tensors, rng: Random, kept: tuple[float, float] = _CROPPED, flips: float = 0.5
) -> Tensors:
    """A crop of 60-100 % of the area and a horizontal flip, drawn for each sample.

    `kept` are other shares of the area, `flips` is another share of samples.

    Every tensor (samples, ..., height, width) that is laid out over the pictures gets the same;
    those of integers, such as masks, take the nearest value instead of mixing several.
    """
    laid_out = over_pictures(batch)
    count, height, width = len(batch["images"]), *batch["images"].shape[-2:]
    pieces: dict[str, list[Tensor]] = {name: [] for name in laid_out}
    for i in range(count):
        share = math.sqrt(rng.uniform(*kept))
        down, across = round(height * share), round(width * share)
        y, x = rng.randint(0, height - down), rng.randint(0, width - across)
        flip = rng.random() < flips
        for name in laid_out:
            piece = batch[name][i : i + 1, ..., y : y + down, x : x + across]
            pieces[name].append(piece_at(piece.flip(-1) if flip else piece, (height, width)))
    return {**batch, **{name: torch.cat(own) for name, own in pieces.items()}}


def over_pictures(batch: Tensors) -> list[str]:
    """The names of the tensors (samples, ..., height, width) that lie over the pictures."""
    size = batch["images"].shape[-2:]
    return [name for name, x in batch.items() if x.ndim > 2 and x.shape[-2:] == size]


def piece_at(piece: Tensor, size: tuple[int, int]) -> Tensor:
    """A piece (1, ..., down, across) at a height and width, bilinear; of integers the nearest."""
    if piece.shape[-2:] == size:
        return piece
    if not piece.is_floating_point():
        y, x = (torch.arange(to) * own // to for own, to in zip(piece.shape[-2:], size))
        return piece[..., y[:, None], x]
    return F.interpolate(piece, size, mode="bilinear", antialias=True)
