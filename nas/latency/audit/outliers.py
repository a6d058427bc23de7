"""What a row of a latency table should cost by the other rows: its neighbours, and a robust fit.

A key holds the sizes of its layer as numbers. Keys that are equal but for the numbers are of one
kind; so keys of other people's tables can be compared like our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.strategy.threads import one_thread

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A number, with its name where it has one: `heads=3`, `expand:6`, the axes of `56x56x48`. Digits
# that end a word (`Conv2d`, `norm1`) are no sizes.
_SIZE = re.compile(r"(?:(\w+)[=:])?(?<![A-Za-wyz])(\d+)")
_FEW = 8  # with fewer rows a fit has one slope, for all sizes together
_LEAST = 4  # fewer rows say nothing about each other


class Step(NamedTuple):
    """Pairs of rows that differ in one size only; `less` and `more` are their positions."""

    names: frozenset[str]  # of that size; several where they always change together
    less: Ints
    more: Ints
    ratio: Floats  # of the sizes


@dataclass(frozen=True, eq=False)
class Kind:
    """Rows whose keys differ in numbers only."""

    name: str
    positions: Ints  # of its rows in the table
    names: tuple[str, ...]  # of the sizes; those without a name are called `@0`, `@1`, ...
    sizes: Floats  # (rows, names)

    @cached_property
    def axes(self) -> list[list[int]]:
        """The sizes that vary; sizes that always change together count as one axis."""
        axes: list[list[int]] = []
        counts = [len(np.unique(column)) for column in self.sizes.T]
        for j, count in enumerate(counts):
            if count == 1:
                continue
            for axis in axes:
                i = axis[0]
                if counts[i] == count == len(np.unique(self.sizes[:, [i, j]], axis=0)):
                    axis.append(j)
                    break
            else:
                axes.append([j])
        return axes

    def steps(self) -> Iterator[Step]:
        """For each axis, the pairs of each row and the next larger one that is otherwise equal."""
        leaders = [axis[0] for axis in self.axes]
        for axis in self.axes:
            others = [j for j in leaders if j != axis[0]]
            own = self.sizes[:, axis[0]]
            order = np.lexsort([own, *(self.sizes[:, j] for j in others)])
            less, more = order[:-1], order[1:]
            equal = (self.sizes[less][:, others] == self.sizes[more][:, others]).all(1)
            less, more = less[equal], more[equal]
            names = frozenset(self.names[j] for j in axis)
            # Zero (a squeeze that is not there) is smaller than anything, by no factor.
            ratio = own[more] / np.maximum(own[less], 1)
            yield Step(names, self.positions[less], self.positions[more], ratio)

    def residuals(self, costs: Floats) -> tuple[Floats, float] | None:
        """The residual (in log) of each row from a robust fit, and the scale of the residuals.

        The fit is quadratic in the logs of the sizes, where there are enough rows. `costs` (rows,)
        are those of this kind. Fewer than four rows give None.
        """
        if len(costs) < _LEAST or not self.axes:
            return None
        logs = np.log1p(self.sizes[:, [axis[0] for axis in self.axes]])
        features = _features((logs - logs.mean(0)) / logs.std(0), len(costs))
        return _robust(features, np.log(costs))


def kinds(keys: Sequence[str]) -> list[Kind]:
    """Group rows by kind, in the order in which kinds first appear."""
    found: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(_SIZE.sub(r"\1#", key), []).append(i)
    return [_kind([keys[i] for i in positions], positions) for positions in found.values()]


def _kind(keys: list[str], positions: list[int]) -> Kind:
    matches = [_SIZE.findall(key) for key in keys]
    names = tuple(name or f"@{j}" for j, (name, _) in enumerate(matches[0]))
    sizes = np.array([[float(number) for _, number in match] for match in matches])
    sizes = sizes.reshape(len(keys), len(names))
    return Kind(layer_kind(keys[0]), np.array(positions), names, sizes)


def layer_kind(key: str) -> str:
    """The module of a row: `WindowBlock` of `WindowBlock(heads=2, ...)@56x56x48`."""
    plain = key.partition("(")[0] if "(" in key else _SIZE.split(key)[0]
    return plain.strip("_-: ") or key


def _features(logs: Floats, rows: int) -> Floats:
    """(rows, features): constant, slopes, and products where three rows support each feature."""
    constant = np.ones((rows, 1))
    i, j = np.triu_indices(logs.shape[1])
    full = np.concatenate([constant, logs, logs[:, i] * logs[:, j]], 1)
    if rows >= 3 * full.shape[1]:
        return full
    if rows >= max(_FEW, 3 * (1 + logs.shape[1])):
        return full[:, : 1 + logs.shape[1]]
    return np.concatenate([constant, logs.sum(1, keepdims=True)], 1)


@one_thread()
def _robust(features: Floats, y: Floats) -> tuple[Floats, float]:
    """Residuals of least absolute deviations, then of Tukey's biweight; and their scale.

    Least absolute deviations start well where a tenth of the rows is off by a factor of 1000; the
    biweight then leaves those out altogether.
    """
    ridge = 1e-6 * np.eye(features.shape[1])
    weights = np.ones_like(y)
    residual, scale = y - np.median(y), 1.0
    for i in range(40):
        weighted = features * weights[:, None]
        beta = np.linalg.solve(weighted.T @ features + ridge, weighted.T @ y)
        residual = y - features @ beta
        scale = float(1.4826 * np.median(np.abs(residual))) + 1e-3
        if i < 20:
            weights = 1 / np.maximum(np.abs(residual), 1e-3)
        else:
            weights = np.maximum(1 - (residual / (6 * scale)) ** 2, 0) ** 2 + 1e-9
    return residual, scale
