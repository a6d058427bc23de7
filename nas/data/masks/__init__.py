"""Pictures with a mask each: a label for every pixel, for segmentation.

Pictures are read as those of `imagefolder`, and `PATH,copies=drop` leaves out the same copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.data import SPLITS, Arrays, Dataset
from nas.data.imagefolder import ImageFiles
from nas.data.imagefolder.folders import LeftOut, Walk, listed
from nas.data.imagefolder.picture_data import PictureData, say
from nas.data.imagefolder.splits import Files
from nas.data.imagefolder.survey import Picture, survey
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
_ALL = "pictures"  # the one class by which pictures are held out


def load(argument: str, seed: int) -> Dataset:
    """The pictures and masks below the folder `argument`; `DataError` where they cannot be used.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    folder = PictureData("masks", argument, "a folder of images and one of masks")
    files, mask_of, seen, masks = _read(root := folder.root)
    folder.divide(files, seen, seed)
    folder.check_splits(files, "add some with their masks")
    classes = classes_of(root, masks, [mask_of[image] for image, _ in files["train"]])
    reader = folder.reader(files, seen, seed)
    splits = {
        split: Pairs(split, [(image, mask_of[image]) for image, _ in own], reader, classes)
        for split, own in files.items()
    }
    content = [
        (split, image.relative_to(root).as_posix(), seen[image].digest, masks[mask].digest)
        for split in SPLITS
        for image, mask in splits[split].pairs
    ]
    task = Segmentation.of(classes.names, classes.colours)
    values = sorted(classes.by_value.items())
    return folder.dataset(splits, reader, task, scale_crop_and_flip, content, values)


def _read(
    root: Path,
) -> tuple[Files, dict[Path, Path], dict[Path, Picture], dict[Path, Mask]]:
    """The pictures of each split, the mask of each, and what reading both has shown.

    What is left out is said, by reason.
    """
    left_out = LeftOut()
    walk = Walk(root, left_out)
    left_out.read(CLASSES_FILE)
    found = {
        split: [(root.joinpath(*pair.image), root.joinpath(*pair.mask)) for pair in own]
        for split, own in paired(root, walk.pictures, left_out).items()
    }
    mask_of = dict(pair for own in found.values() for pair in own)
    seen, bad_pictures = survey(list(mask_of))
    masks, bad_masks = survey_masks([pair for pair in mask_of.items() if pair[0] in seen])
    for what, bad in (("their pictures", bad_pictures), ("their masks", bad_masks)):
        if bad:
            shown = [f"{path.relative_to(root)} ({why})" for path, why in bad.items()]
            say(f"skipped {len(bad):,} of {len(mask_of):,} pairs by {what}: {listed(shown, 3)}")
    for line in left_out.lines():
        say(line)
    files = {
        split: [(image, _ALL) for image, mask in own if image in seen and mask in masks]
        for split, own in found.items()
    }
    different = {seen[image].digest for image, _ in files["train"]}
    needed = 1 + sum(not files[split] for split in ("search", "test"))
    if len(different) < needed:
        raise DataError(
            f"{root} has {len(different)} different pictures with usable masks to train on",
            f"give it at least {needed}, each with a mask of its size",
        )
    return files, mask_of, seen, masks


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

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """Pictures, and as `labels` (samples, height, width) bytes, 255 for an ignored pixel."""
        labels = [self._labelled(i, size) for i in indices]
        return {**super().batch(indices, size), "labels": np.stack(labels)}

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
