"""Pictures without labels: every picture below a folder, in whatever folders it lies.

They are for objectives that need no labels. Folders called as splits (`train`, `test`, ...) right
in the folder are these splits, and what they lack is held out of the others. Pictures are read as
those of `imagefolder`, and `PATH,copies=drop` leaves out the same copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.data import SPLITS, Arrays, Dataset
from nas.data.imagefolder import ImageFiles, crop_and_flip
from nas.data.imagefolder.folders import LeftOut, Walk, listed, split_of
from nas.data.imagefolder.picture_data import PictureData, say
from nas.data.imagefolder.splits import Files
from nas.data.imagefolder.survey import Picture, survey
from nas.errors import DataError
from nas.size import Size
from nas.tasks.embedding import Embedding

ARGUMENTS = ("PATH",)
_ALL = "pictures"  # the one class by which pictures are held out


def load(argument: str, seed: int) -> Dataset:
    """The pictures below the folder `argument`; `DataError` where they cannot be used.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    folder = PictureData("pictures", argument, "a folder of pictures")
    files, seen = _read(root := folder.root)
    folder.divide(files, seen, seed)
    folder.check_splits(files, "add some")
    reader = folder.reader(files, seen, seed)
    splits = {
        split: Pictures(split, [(file, 0) for file, _ in own], reader)
        for split, own in files.items()
    }
    content = [
        (split, file.relative_to(root).as_posix(), seen[file].digest)
        for split in SPLITS
        for file, _ in files[split]
    ]
    return folder.dataset(splits, reader, Embedding(), crop_and_flip, content)


def _read(root: Path) -> tuple[Files, dict[Path, Picture]]:
    """The pictures of each split, and what reading them has shown; what is left out is said."""
    left_out = LeftOut()
    walk = Walk(root, left_out)
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for parts in walk.pictures:
        split = split_of(parts)
        found[split].append(root.joinpath(*parts))
    seen, bad = survey([path for own in found.values() for path in own])
    if bad:
        shown = [f"{path.relative_to(root)} ({why})" for path, why in bad.items()]
        say(f"skipped {len(bad):,} unreadable of {len(bad) + len(seen):,}: {listed(shown, 3)}")
    for line in left_out.lines():
        say(line)
    files = {split: [(path, _ALL) for path in own if path in seen] for split, own in found.items()}
    different = {seen[path].digest for path, _ in files["train"]}
    needed = 1 + sum(not files[split] for split in ("search", "test"))
    if len(different) < needed:
        raise DataError(
            f"{root} has {len(different)} different pictures to train on",
            f"give a folder with at least {needed} pictures, in folders of any depth",
        )
    return files, seen


class Pictures(ImageFiles):
    """Picture files without labels."""

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """Pictures (samples, channels, height, width), bytes."""
        return {"images": super().batch(indices, size)["images"]}
