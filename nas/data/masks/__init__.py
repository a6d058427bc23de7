"""Pictures with a mask each: a label for every pixel, for segmentation.

Pictures are read as those of `imagefolder`, and `PATH,copies=drop` leaves out the same copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.data import Arrays, Dataset
from nas.data.imagefolder import ImageFiles
from nas.data.imagefolder.picture_data import PictureData
from nas.data.imagefolder.splits import Files
from nas.data.masks.augmentation import scale_crop_and_flip
from nas.data.masks.classes import FILE as CLASSES_FILE
from nas.data.masks.classes import Classes, classes_of
from nas.data.masks.pairs import paired
from nas.data.masks.reading import Mask, read_mask, survey_masks, values_in
from nas.errors import DataError
from nas.preprocessing import PictureReader, central
from nas.size import Size, sides
from nas.tasks.segmentation import Segmentation

ARGUMENTS = ("PATH",)


def load(argument: str, seed: int) -> Dataset:
    """The pictures and masks below the folder `argument`; `DataError` where they cannot be used.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    folder = PictureData("masks", argument, seed, "a folder of images and one of masks")
    files, mask_of, masks = _read(folder)
    folder.divide_pooled(files, 1, " with usable masks", "each with a mask of its size")
    classes = classes_of(folder.root, masks, [mask_of[image] for image, _ in files["train"]])

    def pairs(split: str, own: list[tuple[Path, str]], reader: PictureReader) -> Pairs:
        return Pairs(split, [(image, mask_of[image]) for image, _ in own], reader, classes)

    return folder.dataset(
        files,
        pairs,
        Segmentation.of(classes.names, classes.colours),
        scale_crop_and_flip,
        lambda image, _: (folder.seen[image].digest, masks[mask_of[image]].digest),
        sorted(classes.by_value.items()),
    )


def _read(folder: PictureData) -> tuple[Files, dict[Path, Path], dict[Path, Mask]]:
    """The pictures of each split, the mask of each, and what reading the masks has shown."""
    folder.left_out.read(CLASSES_FILE)
    pairs = paired(folder.root, folder.walk.pictures, folder.left_out)
    under = folder.root.joinpath
    mask_of = {under(*pair.image): under(*pair.mask) for own in pairs.values() for pair in own}
    files = folder.read(
        {split: [(under(*pair.image), "") for pair in own] for split, own in pairs.items()}
    )
    masks, bad = survey_masks([pair for pair in mask_of.items() if pair[0] in folder.seen])
    folder.say_skipped(bad, f"of {len(mask_of):,} pairs by their masks")
    kept = {
        split: [entry for entry in own if mask_of[entry[0]] in masks]
        for split, own in files.items()
    }
    return kept, mask_of, masks


class Pairs(ImageFiles):
    """Pictures with their masks, of both the largest pieces at their centres."""

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[Path, Path]],
        reader: PictureReader,
        classes: Classes,
    ) -> None:
        super().__init__(name, [(image, i) for i, (image, _) in enumerate(pairs)], reader)
        self.pairs, self.classes = list(pairs), classes
        self._labels: dict[tuple[int, Size], NDArray[np.uint8]] = {}

    def annotations(self, indices: Sequence[int], size: Size) -> Arrays:
        """As `labels` (samples, height, width) bytes, 255 for an ignored pixel."""
        return {"labels": np.stack([self._labelled(i, size) for i in indices])}

    def _labelled(self, index: int, size: Size) -> NDArray[np.uint8]:
        if (cached := self._labels.get((index, size))) is not None:
            return cached
        path = self.pairs[index][1]
        try:
            mask = read_mask(path)
        except Exception as error:  # a file that was changed since it was surveyed
            raise DataError(
                f"cannot decode {path}: {error}", "remove or replace the file"
            ) from None
        box = central(mask, size, self.reader.crop)
        small = mask.resize(sides(size)[::-1], Image.Resampling.NEAREST, box)
        found = self.classes.labelled(*values_in(small))
        if len(self._labels) * found.size < 1e9:  # as decoded pictures do, masks stay in memory
            self._labels[index, size] = found
        return found
