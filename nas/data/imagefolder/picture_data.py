"""What all data sets of picture files share: their folder, splits, reader and statistics."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nas.data import SPLITS, Dataset, Split, Tensors
from nas.data.imagefolder.splits import Files, Seen, copy_lines, drop_copies, hold_out
from nas.data.imagefolder.survey import reader_for, reading_lines
from nas.errors import DataError
from nas.preprocessing import PictureReader
from nas.progress import console
from nas.records import fingerprint
from nas.space.task import Task

_DROP_COPIES = ",copies=drop"


class PictureData:
    """The data set `KIND:PATH[,copies=drop]`, from the folder at PATH to a `Dataset`.

    `what` says what such a folder holds, for the error where there is none.
    """

    def __init__(self, kind: str, argument: str, what: str) -> None:
        self.kind, self.path = kind, argument.removesuffix(_DROP_COPIES)
        self.drops = argument.endswith(_DROP_COPIES)
        self.root = root_of(self.path, f"write --data {kind}:PATH with {what}")

    def divide(self, files: Files, seen: Seen, seed: int, things: str = "pictures") -> None:
        """Hold out the splits that are missing and leave out copies, if these are to be dropped.

        What was left out, and which copies stay, is said.
        """
        if missing := [split for split in ("search", "test") if not files[split]]:
            hold_out(files, seen, missing, Random(seed))
        if self.drops and (dropped := drop_copies(files, seen)):
            say(f"left out {dropped:,} {things} of train and search that a later split holds, too")
        fix = f"--data {self.kind}:{self.path}{_DROP_COPIES} leaves them out"
        for line in copy_lines(files, seen, fix):
            say(line)

    def check_splits(self, files: Files, fix: str) -> None:
        """Raise `DataError` where nothing is left in a split."""
        if empty := [split for split in SPLITS if not files[split]]:
            raise DataError(f"no picture of {self.root} is left in {empty[0]}", fix)

    def reader(self, files: Files, seen: Seen, seed: int) -> PictureReader:
        """How the pictures are read, which is said; brings each split into a random order."""
        for split in SPLITS:  # the first pictures of a split must be a fair sample of it
            Random(f"{seed} {split}").shuffle(files[split])
        pictures = {split: [seen[file] for file, _ in files[split]] for split in SPLITS}
        reader = reader_for(pictures["train"], pictures["search"] + pictures["test"])
        for line in reading_lines(reader, [p for own in pictures.values() for p in own]):
            say(line)
        return reader

    def dataset(
        self,
        splits: Mapping[str, Split],
        reader: PictureReader,
        task: Task,
        augment: Callable[[Tensors, Random], Tensors],
        *content: Any,
    ) -> Dataset:
        """The data set; `content` is what tells it from others, for its fingerprint."""
        mean, std = _statistics(splits["train"])
        return Dataset(
            name=f"{self.kind}:{self.root}{_DROP_COPIES if self.drops else ''}",
            task=task,
            mean=mean,
            std=std,
            fingerprint=fingerprint(*content),
            reader=reader,
            augment=augment,
            **splits,
        )


def say(line: str) -> None:
    """Tell the user what was left out of a folder, or is read in a special way."""
    console.print(line, style="yellow", soft_wrap=True)


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
