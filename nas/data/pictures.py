"""Pictures without labels: every picture below a folder, in whatever folders it lies.

They are for objectives that need no labels. Folders called as splits (`train`, `test`, ...) right
in the folder are these splits, and what they lack is held out of the others. Pictures are read as
those of `imagefolder`, and `PATH,copies=drop` leaves out the same copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from nas.data import SPLITS, Arrays, Dataset
from nas.data.imagefolder import ImageFiles, crop_and_flip, root_of, say, statistics
from nas.data.imagefolder.folders import SPLIT_NAMES, LeftOut, Walk, listed
from nas.data.imagefolder.splits import Files, copy_lines, drop_copies, hold_out
from nas.data.imagefolder.survey import Picture, reader_for, reading_lines, survey
from nas.errors import DataError
from nas.records import fingerprint
from nas.size import Size
from nas.tasks.embedding import Embedding

ARGUMENTS = ("PATH",)
_DROP_COPIES = ",copies=drop"
_ALL = "pictures"  # the one class by which pictures are held out


def load(argument: str, seed: int) -> Dataset:
    """The pictures below the folder `argument`; `DataError` where they cannot be used.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    path, drops = argument.removesuffix(_DROP_COPIES), argument.endswith(_DROP_COPIES)
    root = root_of(path, "write --data pictures:PATH with a folder of pictures")
    files, seen = _read(root)
    if missing := [split for split in ("search", "test") if not files[split]]:
        hold_out(files, seen, missing, Random(seed))
    if drops and (dropped := drop_copies(files, seen)):
        say(f"left out {dropped:,} pictures of train and search that a later split holds, too")
    for line in copy_lines(files, seen, f"--data pictures:{path}{_DROP_COPIES} leaves them out"):
        say(line)
    if empty := [split for split in SPLITS if not files[split]]:
        raise DataError(f"no picture of {root} is left in {empty[0]}", "add some")
    for split in SPLITS:  # the first pictures of a split must be a fair sample of it
        Random(f"{seed} {split}").shuffle(files[split])
    pictures = {split: [seen[file] for file, _ in files[split]] for split in SPLITS}
    reader = reader_for(pictures["train"], pictures["search"] + pictures["test"])
    for line in reading_lines(reader, [p for own in pictures.values() for p in own]):
        say(line)
    splits = {
        split: Pictures(split, [(file, 0) for file, _ in own], reader)
        for split, own in files.items()
    }
    mean, std = statistics(splits["train"])
    content = [
        (split, file.relative_to(root).as_posix(), seen[file].digest)
        for split in SPLITS
        for file, _ in files[split]
    ]
    return Dataset(
        name=f"pictures:{root}{_DROP_COPIES if drops else ''}",
        task=Embedding(),
        mean=mean,
        std=std,
        fingerprint=fingerprint(content),
        reader=reader,
        augment=crop_and_flip,
        **splits,
    )


def _read(root: Path) -> tuple[Files, dict[Path, Picture]]:
    """The pictures of each split, and what reading them has shown; what is left out is said."""
    left_out = LeftOut()
    walk = Walk(root, left_out)
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for parts in walk.pictures:
        split = SPLIT_NAMES.get(parts[0].casefold(), "train") if len(parts) > 1 else "train"
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
