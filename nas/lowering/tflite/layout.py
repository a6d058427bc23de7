"""Where the axes of a value lie in memory: permutations and reshapes that cost nothing until used.

Maps are channel-last, torch's convolutions are not, and windows are cut by views of six axes. On
NPUs every transposition moves memory and tensors have at most four axes. So a value remembers how
its axes are stored, permutations of torch's cancel before anything is written, and what is left is
written with as few axes as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import inf, prod

import numpy as np

from nas.errors import PreparationError
from nas.lowering.tflite.model import Model

RANK = 4  # axes of a tensor at most
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the model, seen in row-major order as `stored`; its axis i is `order[i]`."""

    tensor: int
    stored: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: int, shape: Sequence[int]) -> Value:
        """A tensor of this shape whose axes are stored in their own order."""
        return cls(tensor, tuple(shape), tuple(range(len(shape))))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes, in their own order."""
        return tuple(self.stored[i] for i in self.order)

    def permuted(self, axes: Sequence[int]) -> Value:
        """The value with its axes in another order; nothing moves in memory."""
        return replace(self, order=tuple(self.order[a] for a in axes))

    def with_tensor(self, tensor: int) -> Value:
        """The same layout around another tensor."""
        return replace(self, tensor=tensor)


def steps(value: Value) -> int:
    """How many transpositions it takes to store a value's axes in their own order."""
    return 0 if is_plain(value) else len(_swaps(*_merged(value)))


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes another one."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def is_plain(value: Value) -> bool:
    """Whether its axes lie in their own order (those of one entry lie anywhere)."""
    long = [a for a in value.order if value.stored[a] > 1]
    return long == sorted(long)


def as_shape(model: Model, tensor: int, shape: Sequence[int]) -> int:
    """The tensor with another shape of as many entries."""
    if model.shape(tensor) == tuple(shape):
        return tensor
    return model.operator("RESHAPE", [tensor, model.numbers(list(shape))], shape)


def plain(model: Model, value: Value) -> Value:
    """The same value with its axes in their own order."""
    shape = value.shape
    if is_plain(value):
        return Value.of(value.tensor, shape)
    return Value.of(_transposed(model, value), shape)


def _transposed(model: Model, value: Value) -> int:
    stored, order = _merged(value)
    tensor = value.tensor
    for shape in _swaps(stored, order):
        out = (shape[1], shape[0], shape[2])
        tensor = as_shape(model, tensor, shape)
        tensor = model.operator("TRANSPOSE", [tensor, model.numbers([1, 0, 2])], out)
    return tensor


@lru_cache(maxsize=4096)
def _swaps(stored: tuple[int, ...], order: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The fewest steps (A, B, C) -> (B, A, C) that bring the axes into this order.

    Vela makes five transpositions of one with four axes; two of these steps do the same.
    """
    paths: dict[tuple[int, ...], list[tuple[int, int, int]]] = {tuple(range(len(stored))): []}
    latest = paths
    while order not in paths:
        following: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for axes, path in latest.items():
            for i, j in combinations(range(1, len(axes) + 1), 2):
                after = axes[i:j] + axes[:i] + axes[j:]
                blocks = axes[:i], axes[i:j], axes[j:]
                a, b, c = (prod(stored[axis] for axis in block) for block in blocks)
                longer = [*path, (a, b, c)]
                if after not in paths and _rows(longer) < _rows(following.get(after)):
                    following[after] = longer
        paths, latest = paths | following, following
    return paths[order]


def _rows(path: list[tuple[int, int, int]] | None) -> float:
    """The cost of some steps: how many runs of memory they move; infinite for None."""
    return inf if path is None else sum(a * b for a, b, _ in path)


def _merged(value: Value) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`stored` and `order` without axes of one entry, neighbours that stay neighbours merged."""
    long = [a for a in value.order if value.stored[a] > 1]
    kept = sorted(long)
    rank = {axis: i for i, axis in enumerate(kept)}
    runs: list[list[int]] = []
    for axis in (rank[a] for a in long):
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    places = sorted(runs)
    stored = tuple(prod(value.stored[kept[a]] for a in run) for run in places)
    return stored, tuple(places.index(run) for run in runs)


def reshaped(model: Model, value: Value, shape: Sequence[int]) -> Value:
    """The value with another shape; moves memory only if axes merge that do not lie together."""
    groups = _groups(value.shape, shape)
    place: list[tuple[int, int, list[int]]] = []  # where a group begins, its number, its new axes
    for i, (old, new) in enumerate(groups):
        axes = [value.order[a] for a in old if value.shape[a] > 1]
        between = range(axes[0], axes[-1] + 1) if axes else range(0)
        if axes != sorted(axes) or any(value.stored[a] > 1 and a not in axes for a in between):
            return Value.of(plain(model, value).tensor, shape)
        place.append((axes[0] if axes else -1, i, new))
    place.sort()
    layout = [axis for *_, new in place for axis in new]
    return Value(value.tensor, tuple(shape[a] for a in layout), inverse(layout))


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring axes of both shapes that hold the same entries."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if left else 1), (new[j] if right else 1)
        if a != b and a == 1:
            right, b = [], 1
        elif a != b and b == 1:
            left, a = [], 1
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                a, left, i = a * old[i], [*left, i], i + 1
            else:
                b, right, j = b * new[j], [*right, j], j + 1
        groups.append((left, right))
    return groups


def around(value: Value, axis: int) -> tuple[int, int, int]:
    """How many entries are stored outside of an axis, along it, and inside of it."""
    at = value.order[axis]
    return prod(value.stored[:at]), value.stored[at], prod(value.stored[at + 1 :])


def replaced(value: Value, tensor: int, axis: int, size: int) -> Value:
    """The layout of `value`, with another tensor and another size of one axis."""
    at = value.order[axis]
    return Value(tensor, (*value.stored[:at], size, *value.stored[at + 1 :]), value.order)


def sliced(model: Model, value: Value, axis: int, start: int, end: int) -> Value:
    """The entries from `start` to before `end` along one axis."""
    outer, size, inner = around(value, axis)
    if (start, end) == (0, size):
        return value
    tensor = as_shape(model, value.tensor, (outer, size, inner))
    shape = (outer, end - start, inner)
    numbers = model.numbers([0, start, 0]), model.numbers(list(shape))
    tensor = model.operator("SLICE", [tensor, *numbers], shape)
    return replaced(value, tensor, axis, end - start)


def concatenated(model: Model, values: Sequence[Value], axis: int) -> Value:
    """Values of equal shape but for `axis`, one after the other, in the layout of the first."""
    first = values[0]
    values = [first, *(like(model, value, first) for value in values[1:])]
    parts = []
    for value in values:
        parts.append(as_shape(model, value.tensor, around(value, axis)))
    outer, _, inner = around(first, axis)
    total = sum(value.shape[axis] for value in values)
    tensor = model.operator("CONCATENATION", parts, (outer, total, inner), axis=1)
    return replaced(first, tensor, axis, total)


def like(model: Model, value: Value, other: Value) -> Value:
    """A value of the rank of `other` with its axes stored in the order of `other`."""
    if value.order == other.order:
        return value
    back = inverse(other.order)
    return plain(model, value.permuted(back)).permuted(other.order)


def rolled(model: Model, value: Value, shifts: dict[int, int]) -> Value:
    """Entries moved towards the start by `shifts[axis]`, those at the start to the end."""
    for axis, shift in shifts.items():
        if shift := shift % value.shape[axis]:
            size = value.shape[axis]
            parts = sliced(model, value, axis, shift, size), sliced(model, value, axis, 0, shift)
            value = concatenated(model, parts, axis)
    return value


def last_inside(model: Model, x: Value) -> Value:
    """The value with its last axis stored innermost."""
    return x if x.order[-1] == len(x.order) - 1 else plain(model, x)


def padded(model: Model, x: Value, amounts: dict[int, tuple[int, int]], value: float) -> Value:
    """A value with so many entries of one number added (before, after) along each axis."""
    if any(side < 0 for sides in amounts.values() for side in sides):
        raise PreparationError("negative padding has no lowering here")
    by_stored = {x.order[a]: s for a, s in amounts.items()}
    runs: list[list[int]] = []  # axes without padding lie together where they can
    for i in range(len(x.stored)):
        if runs and i not in by_stored and runs[-1][-1] not in by_stored:
            runs[-1].append(i)
        else:
            runs.append([i])
    sides = [by_stored.get(run[0], (0, 0)) for run in runs]
    shape = [prod(x.stored[i] for i in run) for run in runs]
    tensor = as_shape(model, x.tensor, shape)
    given = [tensor, model.numbers([list(s) for s in sides])]
    if value:
        given.append(model.constant(np.full(1, value, np.float32)))
    out = [size + sum(side) for size, side in zip(shape, sides)]
    tensor = model.operator("PADV2" if value else "PAD", given, out)
    stored = tuple(s + sum(by_stored.get(i, (0, 0))) for i, s in enumerate(x.stored))
    return Value(tensor, stored, x.order)
