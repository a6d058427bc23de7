"""Which mask belongs to which picture, and to which split, by the names of folders and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from nas.data import SPLITS
from nas.data.imagefolder.folders import BESIDE, SPLIT_NAMES, LeftOut, Parts
from nas.errors import DataError

_IMAGES = ("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures")
_MASKS = ("annotation", "annotations", "gt", "groundtruth", "ground_truth", "label", "labels",
          "mask", "masks", "segmentation", "segmentations", "segmentationclass")  # fmt: skip
_KINDS = dict.fromkeys(_IMAGES, "images") | dict.fromkeys(_MASKS, "masks")
NEITHER = "neither in a folder of images nor in one of masks"
NO_MASK = "pictures without a mask"
NO_PICTURE = "masks without a picture"
SECOND = "a second file of the same name"


class Pair(NamedTuple):
    """A picture and its mask, as names: of the folders from the root on, and of the file."""

    image: Parts
    mask: Parts


class _Place(NamedTuple):
    """The split of a file (empty for none), and what its partner has in common with it."""

    split: str
    key: Parts


def paired(root: Path, files: Sequence[Parts], left_out: LeftOut) -> dict[str, list[Pair]]:
    """The pairs of each split; those of no split are all in `train`.

    Of the folders on the way to a file, one says whether it is a picture or a mask, and one of
    which split. All others, and the name of the file without its ending, are the same for both.
    Raises `DataError` for a folder without pairs.
    """
    places: dict[str, dict[_Place, Parts]] = {"images": {}, "masks": {}}
    for parts in files:
        kind, place = _placed(parts)
        if not kind:
            left_out.add(NEITHER, parts)
        elif places[kind].setdefault(place, parts) != parts:
            left_out.add(SECOND, parts)
    images, masks = places["images"], places["masks"]
    divided, used = any(place.split for place in images), set()
    found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for place, image in images.items():
        # Masks may stand together where pictures are divided into splits.
        partner = place if place in masks else _Place("", place.key)
        used.add(partner)
        if divided and not place.split:
            left_out.add(BESIDE, image)
        elif partner not in masks:
            left_out.add(NO_MASK, image)
        else:
            found[place.split or "train"].append(Pair(image, masks[partner]))
    for place, mask in masks.items():
        if place not in used:
            left_out.add(NO_PICTURE, mask)
    _check(root, places, found)
    return found


def _placed(parts: Parts) -> tuple[str, _Place]:
    """Whether a file is one of the `images` or of the `masks` (empty: neither), and its place."""
    *folders, name = parts
    kind = split = ""
    rest = []
    for folder in folders:
        plain = folder.casefold()
        if not kind and plain in _KINDS:
            kind = _KINDS[plain]
        elif not split and plain in SPLIT_NAMES:
            split = SPLIT_NAMES[plain]
        else:
            rest.append(folder)
    return kind, _Place(split, (*rest, PurePath(name).stem))


def _check(
    root: Path, places: dict[str, dict[_Place, Parts]], found: dict[str, list[Pair]]
) -> None:
    """Raise `DataError` where there is nothing to learn from."""
    for kind, own in places.items():
        if not own:
            raise DataError(
                f"{root} has no folder of {kind}",
                "put pictures into images and masks of the same names into masks, in the folder "
                "itself or in train, val and test",
            )
    if not any(found.values()):
        image, mask = (next(iter(own.values()))[-1] for own in places.values())
        raise DataError(
            f"no mask of {root} has the name of a picture (pictures as {image}, masks as {mask})",
            "give each mask the name of its picture, whatever the ending",
        )
    if not found["train"]:
        raise DataError(
            f"{root} has pairs of pictures and masks in other splits, but none in train",
            "put some into train/images and train/masks",
        )
