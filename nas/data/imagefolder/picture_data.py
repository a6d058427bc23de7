"""What all data sets of picture files share: their folder, splits, reader and statistics."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nas.data import SPLITS, Dataset, Split, Tensors
from nas.data.imagefolder.folders import LeftOut, Walk, listed
from nas.data.imagefolder.splits import Files, copy_lines, drop_copies, hold_out
from nas.data.imagefolder.survey import Picture, reader_for, reading_lines, survey
from nas.errors import DataError
from nas.preprocessing import PictureReader
from nas.progress import say
from nas.records import fingerprint
from nas.space.task import Task

_DROP_COPIES = ",copies=drop"


class PictureData:
    """The data set `KIND:PATH[,copies=drop]`, from the folder at PATH to a `Dataset`.

    `what` says what such a folder holds, for the error where there is none, and `things` what its
    pictures are called. `walk` has found what is in it, and `left_out` is what is not used.
    """

    def __init__(
        self, kind: str, argument: str, seed: int, what: str, things: str = "pictures"
    ) -> None:
        self.kind, self.seed, self.things = kind, seed, things
        self.path = argument.removesuffix(_DROP_COPIES)
        self.drops = argument.endswith(_DROP_COPIES)
        self.root = root_of(self.path, f"write --data {kind}:PATH with {what}")
        self.left_out = LeftOut()
        self.walk = Walk(self.root, self.left_out)
        self.seen: dict[Path, Picture] = {}

    def read(self, found: Files) -> Files:
        """The pictures of each split that can be read, which are `seen` then.

        What is left out is said, by reason.
        """
        paths = [path for own in found.values() for path, _ in own]
        self.seen, bad = survey(paths)
        self.say_skipped(bad, f"unreadable of {len(paths):,} {self.things}")
        for line in self.left_out.lines():
            say(line)
        if outside := [f"{link} -> {target}" for link, target in self.walk.outside]:
            shown = listed(outside, 3)
            say(f"{len(outside):,} links lead out of {self.root} and are followed: {shown}")
        return {
            split: [entry for entry in own if entry[0] in self.seen] for split, own in found.items()
        }

    def say_skipped(self, bad: Mapping[Path, str], of_what: str) -> None:
        """Say how many files were skipped, and why the first ones."""
        if bad:
            shown = [f"{path.relative_to(self.root)} ({why})" for path, why in bad.items()]
            say(f"skipped {len(bad):,} {of_what}: {listed(shown, 3)}")

    def divide(self, files: Files, pooled: bool = False) -> None:
        """Hold out the splits that are missing and leave out copies, if these are to be dropped.

        Small classes may be `pooled`. What was left out, and which copies stay, is said.
        """
        if missing := _missing(files):
            hold_out(files, self.seen, missing, self.seed, pooled)
        if self.drops and (dropped := drop_copies(files, self.seen)):
            say(
                f"left out {dropped:,} {self.things} of train and search that a later split holds, "
                "too"
            )
        fix = f"--data {self.kind}:{self.path}{_DROP_COPIES} leaves them out"
        for line in copy_lines(files, self.seen, fix):
            say(line)

    def divide_pooled(self, files: Files, least: int, having: str, shape: str) -> None:
        """`divide` for pictures whose folders need not be classes.

        Raises `DataError` where fewer than `least` different ones would be left to train on, or
        none in a split; `having` says what all of them have, and `shape` what the fix is.
        """
        different = {self.seen[path].digest for path, _ in files["train"]}
        if len(different) < (needed := least + len(_missing(files))):
            raise DataError(
                f"{self.root} has {len(different)} different pictures{having} to train on",
                f"give it at least {needed}, {shape}",
            )
        self.divide(files, pooled=True)
        if empty := [split for split in SPLITS if not files[split]]:
            raise DataError(
                f"no picture{having} of {self.root} is left in {empty[0]}", "add some there"
            )

    def dataset(
        self,
        files: Files,
        made: Callable[[str, list[tuple[Path, str]], PictureReader], Split],
        task: Task,
        augment: Callable[[Tensors, Random], Tensors],
        facts: Callable[[Path, str], Iterable[Any]],
        *more: Any,
    ) -> Dataset:
        """The data set of splits that `made` makes, each in a random order.

        How the pictures are read is said. The `facts` of each file and `more` are what tells the
        data from others, for their fingerprint.
        """
        for split in SPLITS:  # the first pictures of a split must be a fair sample of it
            Random(f"{self.seed} {split}").shuffle(files[split])
        pictures = {split: [self.seen[file] for file, _ in files[split]] for split in SPLITS}
        reader = reader_for(pictures["train"], pictures["search"] + pictures["test"])
        for line in reading_lines(reader, [p for own in pictures.values() for p in own]):
            say(line)
        splits = {split: made(split, files[split], reader) for split in SPLITS}
        mean, std = _statistics(splits["train"])
        content = [
            (split, file.relative_to(self.root).as_posix(), *facts(file, label))
            for split in SPLITS
            for file, label in files[split]
        ]
        return Dataset(
            name=f"{self.kind}:{self.root}{_DROP_COPIES if self.drops else ''}",
            task=task,
            mean=mean,
            std=std,
            fingerprint=fingerprint(content, *more),
            reader=reader,
            augment=augment,
            **splits,
        )


def _missing(files: Files) -> list[str]:
    return [split for split in ("search", "test") if not files[split]]


def root_of(path: str, fix: str) -> Path:
    """The folder of this path, `~` expanded; `DataError` with this fix where there is none."""
    try:
        path.encode()
        root = Path(path).expanduser()
        if stat.S_ISDIR(root.stat().st_mode):
            return root
        raise DataError(f"{root} is a file, not a folder", f"unpack it if it is an archive; {fix}")
    except FileNotFoundError:
        raise DataError(f"no folder {root}", fix) from None
    except OSError as error:
        raise DataError(f"cannot open the folder {path[:80]}: {error.strerror}", fix) from None
    except (ValueError, RuntimeError) as error:  # NUL bytes, no UTF-8, a `~` of nobody
        raise DataError(f"{path[:80]!a} is the path of no folder: {error}", fix) from None


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of the channels of pictures whose pixels lie in [0, 1]."""
    batch = split.batch(range(0, split.size, max(1, split.size // 200)), 64)
    x = batch["images"].astype(np.float64) / 255
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    return tuple(mean.round(4).tolist()), tuple(np.maximum(std, 0.01).round(4).tolist())
