"""Data sets in three splits that are kept apart: train, search (fitness only), test.

A file for each kind of data set. It holds `load(argument, seed)`, which returns a `Dataset`, and
`ARGUMENTS`, what may stand after the colon of its name: words, in capital letters what they stand
for, and an empty one where there may be no colon.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from random import Random
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import DataError, UnknownNameError, printable
from nas.extensions import load_member, members
from nas.preprocessing import PictureReader, normalised
from nas.progress import say
from nas.records import fingerprint
from nas.size import Size
from nas.space.task import Task

Arrays = dict[str, NDArray[Any]]  # by name, the samples along the first axis
Tensors = dict[str, Tensor]  # likewise
SPLITS = ("train", "search", "test")
ENDLESS = 10**7  # samples from which on a split makes them, in random order
_FEW_LABELS = ",labels="  # behind the name of data
_LISTED = 10  # names of classes in a summary


class Split(ABC):
    """Numbered samples of one split."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    @abstractmethod
    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """The samples of these numbers as arrays by name, e.g. `images` and `labels`.

        Inputs have the given size, as `Parts.example` means it: for pictures that in pixels, as
        uint8 (samples, 3 or 1, height, width) under the name `images`.
        """

    def annotations(self, indices: Sequence[int], size: Size) -> Arrays:
        """What `batch` gives beside the pictures, without reading these where a split can."""
        return self.batch(indices, size)


class Held(Split):
    """Samples in memory, all of one size."""

    def __init__(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(name, len(next(iter(arrays.values()))))
        self.arrays = dict(arrays)

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """The samples as they are held, whatever `size` is asked for."""
        return {name: array[list(indices)] for name, array in self.arrays.items()}


class Part(Split):
    """Some samples of another split, by their numbers there."""

    def __init__(self, whole: Split, numbers: Sequence[int]) -> None:
        super().__init__(whole.name, len(numbers))
        self.whole, self.numbers = whole, list(numbers)

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """The samples as the whole split has them."""
        return self.whole.batch([self.numbers[i] for i in indices], size)

    def annotations(self, indices: Sequence[int], size: Size) -> Arrays:
        """The annotations as the whole split has them."""
        return self.whole.annotations([self.numbers[i] for i in indices], size)


@dataclass(frozen=True)
class Dataset:
    """Three splits, the task that they pose, and how their arrays become tensors.

    `mean` and `std` are those of the channels of pictures whose pixels lie in [0, 1]. `reader` says
    how a picture file becomes a sample; None where samples are no pictures, or nobody knows.
    `augment` varies a prepared batch for training, all its tensors together; None leaves it as it
    is.
    """

    name: str
    task: Task
    train: Split
    search: Split
    test: Split
    fingerprint: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reader: PictureReader | None = None
    augment: Callable[[Tensors, Random], Tensors] | None = None

    def summary(self) -> str:
        """One line with the classes, of many the first ones, and the size of each split."""
        classes = self.task.describe().get("classes")
        shown = f"{classes} classes" if isinstance(classes, int) else self.task.name
        shown = shown if self.task.labelled else "no labels"
        if isinstance(classes, list):
            shown = f"{len(classes):,} classes ({_first(classes)})"
        sizes = ", ".join(f"{s.size:,} in {s.name}" for s in (self.train, self.search, self.test))
        return f"{self.name}: {shown}; {sizes}"

    def posed(self, task: Task) -> Task:
        """The task of networks for these data, with its names, unless no labels pose it."""
        return self.task if task.labelled else task

    def prepare(self, batch: Arrays | Tensors) -> Tensors:
        """The arrays of a batch as tensors; what is on a device stays there.

        `images` become normalised floats (samples, 3, height, width), grey ones repeated over the
        channels; other arrays keep their values and types.
        """
        tensors = {name: torch.as_tensor(array) for name, array in batch.items()}
        if "images" in tensors:
            tensors["images"] = normalised(tensors["images"], self.mean, self.std)
        return tensors

    def colours(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (..., channels), as `prepare` makes them, as colours in [0, 1]."""
        return (pixels * torch.tensor(self.std) + torch.tensor(self.mean)).clamp(0, 1)

    def first(self, split: Split, count: int, size: Size) -> Tensors:
        """The first samples of a split, as many as there are up to `count`, as tensors."""
        return self.prepare(split.batch(range(min(count, split.size)), size))


def load_data(name: str, seed: int = 0) -> Dataset:
    """The data set called `KIND` or `KIND:ARGUMENT`, e.g. `imagefolder:PATH`.

    `NAME,labels=10` are the first ten samples of each class to learn from, and as many to search
    with; the test split stays whole. `seed` fixes which samples are held out where the data have no
    splits of their own. Raises `UnknownNameError` for a name that no kind has, and `DataError` for
    data that cannot be used.
    """
    whole, few, count = name.rpartition(_FEW_LABELS)
    if few:
        return _with_few_labels(load_data(whole, seed), count)
    kind, _, argument = name.partition(":")
    known = members("nas.data")
    forms = _arguments(kind) if kind in known else ()
    if (
        "." not in kind
        and argument not in forms
        and not (argument and any(map(str.isupper, forms)))
    ):
        written = [f"{kind}:{form}".rstrip(":") for kind in known for form in _arguments(kind)]
        raise UnknownNameError("data set", name, written)
    data: Dataset = load_member("data set", "nas.data", kind, "load")(argument, seed)
    return data


def _with_few_labels(data: Dataset, count: str) -> Dataset:
    """The data with so many labels of each class to learn from, and as many to search with."""
    name = f"{data.name}{_FEW_LABELS}{count}"
    if not count.isdecimal() or not 0 < int(count[:9]) == int(count):
        raise DataError(f"{name}: labels is a number from 1 on", "e.g. labels=10")
    if not data.task.labelled or data.task.dense:
        raise DataError(
            f"{data.name} has no classes of whole samples, of which labels={count} could be taken",
            "leave it out, or give data with a class for each sample",
        )
    names = data.task.describe().get("classes")
    if not isinstance(names, list):
        names = [str(label) for label in range(data.task.outputs)]
    parts = {
        split.name: Part(split, _few_of_each(split, int(count), names))
        for split in (data.train, data.search)
    }
    return replace(
        data,
        name=name,
        fingerprint=fingerprint(data.fingerprint, "labels", int(count)),
        train=parts["train"],
        search=parts["search"],
    )


def _few_of_each(split: Split, count: int, classes: Sequence[str]) -> list[int]:
    """The numbers of the first samples of each class, as many as there are up to `count`.

    Classes that have fewer are said.
    """
    found: Counter[int] = Counter()
    picked: list[int] = []
    last = min(split.size, 1000 * count * len(classes))  # an endless split may lack a class
    for start in range(0, last, 64):
        numbers = range(start, min(start + 64, last))
        for number, label in zip(numbers, split.annotations(numbers, 32)["labels"].tolist()):
            if found[label] < count:
                found[label] += 1
                picked.append(number)
        if len(picked) == count * len(classes):
            return picked
    few = [name for label, name in enumerate(classes) if found[label] < count]
    say(f"{split.name} has fewer than {count:,} labels of {_first(few)}")
    return picked


def _first(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    shown, more = ", ".join(printable(name, 30) for name in names[:_LISTED]), len(names) - _LISTED
    return f"{shown} and {more:,} more" if more > 0 else shown


def _arguments(kind: str) -> tuple[str, ...]:
    """What may stand after the colon of the name of a kind, e.g. `PATH`."""
    found: tuple[str, ...] = import_module(f"nas.data.{kind}").ARGUMENTS
    return found
