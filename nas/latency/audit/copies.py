"""Rows that were not measured but copied: equal numbers, or equal up to one factor.

Two honest measurements of one row differ by noise, which is many times the last digit that is
written down. With a relative standard error `e` the difference of two medians `m` is normal with
`sqrt(2) e m`, so both round to the same `g` with chance `g / (2 sqrt(pi) e m)` at most; likewise
for the spread. The number of equal rows is then nearly Poisson with the sum of those chances as its
mean, and its tail says how likely so many are. Few digits make coincidences likely, and count less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.latency.audit.outliers import Floats
from nas.latency.rows import Row

LOG10_CHANCE = -6.0  # less likely than this is no coincidence
_FLOOR = 0.0005  # no device repeats itself better than this
_PEAK = 1 / (2 * math.sqrt(math.pi))  # density of the difference of two equal normals at zero


@dataclass(frozen=True)
class Copy:
    """A row that has the numbers of another table's row, times `factor`."""

    key: str
    factor: float
    rows: int  # so many have
    common: int  # of so many that both tables have
    log10_chance: float  # of that, if both were measured


def copied(mine: Sequence[Row], theirs: Mapping[str, Row]) -> list[Copy]:
    """The rows of `mine` whose numbers are exactly those of `theirs`, or those times one factor."""
    pairs = [(r, theirs[r.key]) for r in mine if r.key in theirs and theirs[r.key].usable]
    pairs = [(a, b) for a, b in pairs if min(a.median, b.median) > 0 and "ported" not in a.note]
    if not pairs:
        return []
    a, b = (np.array([(r.median, r.iqr, r.samples) for r in side]).T for side in zip(*pairs))
    grains = _grain(a[0]), _grain(b[0])
    usual = _usual_factor(a[0], b[0], grains)
    # Spreads make a copy of a few rows certain; a copy may also have medians only.
    for factor, tried, spreads in (
        (1.0, 1, True),
        (1.0, 1, False),
        (usual, len(pairs), True),
        (usual, len(pairs), False),
    ):
        equal, chance = _agreement(a, b, factor, grains, spreads)
        log10 = _log10_tail(int(equal.sum()), float(chance.sum())) + math.log10(tried)
        if log10 > LOG10_CHANCE or equal.sum() < (2 if factor == 1 else 3):
            continue
        telling = np.flatnonzero(equal & (chance < 0.05))
        keys = (pairs[i][0].key for i in telling)
        return [Copy(key, factor, int(equal.sum()), len(pairs), log10) for key in keys]
    return []


def repeated(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Pairs of keys of one table: a row, and an earlier row with the same numbers throughout."""
    if not rows:
        return
    grain = _grain(np.array([row.median for row in rows]))
    seen: dict[tuple[float, ...], str] = {}
    for row in rows:
        if not row.iqr > 0:
            continue  # exact, or nothing is known of its spread
        same_median, same_iqr = _chances(row.median, row.iqr, row.samples, grain)
        if same_median**2 * same_iqr * len(rows) > 1e-4:
            continue  # too few digits to tell
        numbers = (row.median, row.p20, row.iqr, row.cpu_median, row.samples)
        if (first := seen.setdefault(numbers, row.key)) != row.key:
            yield row.key, first


def _grain(values: Floats) -> float:
    """The last decimal place that values are written with, or the clock's step if that is more."""
    decimal = 1e-9
    for places in range(9):
        scaled = values * 10**places
        if np.allclose(scaled, np.round(scaled), rtol=0, atol=1e-4):
            decimal = float(10.0**-places)
            break
    distinct = np.unique(values)
    if 1 < len(distinct) < 0.8 * len(values):  # so many ties are those of a coarse clock
        return max(decimal, float(np.diff(distinct).min()))
    return decimal


def _chances(median: float, iqr: float, samples: float, grain: float) -> tuple[float, float]:
    """The chances that another measurement gives the same median, and the same spread."""
    n = max(samples, 1.0)
    error = max(_FLOOR * median, 0.93 * iqr / math.sqrt(n)) if iqr > 0 else _FLOOR * median
    spread = 1.2 * iqr / math.sqrt(n)  # standard error of an interquartile range, of a normal
    return min(1.0, _PEAK * grain / error), min(1.0, _PEAK * grain / spread) if spread > 0 else 1.0


def _agreement(
    a: Floats, b: Floats, factor: float, grains: tuple[float, float], spreads: bool
) -> tuple[NDArray[np.bool_], Floats]:
    """Which rows agree to the last digit (in median, and in spread), and the chance of each."""
    width = grains[0] + factor * grains[1] if factor != 1 else max(grains)
    slack = 0.51 * width if factor != 1 else 0.01 * width
    equal = np.abs(a[0] - factor * b[0]) <= slack
    known = np.isfinite(a[1]) & np.isfinite(b[1]) & spreads
    equal &= ~known | (np.abs(a[1] - factor * b[1]) <= slack)
    both = [_chances(m, i, n, width) for m, i, n in zip(*a)]
    return equal, np.array([x * (y if k else 1.0) for (x, y), k in zip(both, known)])


def _usual_factor(a: Floats, b: Floats, grains: tuple[float, float]) -> float:
    """The factor by which most rows agree to the last digit."""
    logs = np.log(a / b)
    slack = 0.51 * (grains[0] / a + grains[1] / b)
    ordered = np.sort(logs)
    within = np.searchsorted(ordered, logs + slack) - np.searchsorted(ordered, logs - slack)
    within = np.where(slack < 1e-3, within, 0)  # few digits agree with any factor
    densest = int(within.argmax())
    near = np.abs(logs - logs[densest]) <= slack[densest]
    best = np.where(near, slack, np.inf).argmin()  # the one that says the factor most exactly
    return float(np.exp(logs[best]))


def _log10_tail(count: int, mean: float) -> float:
    """An upper bound (Chernoff's) of the chance of `count` or more at this Poisson mean."""
    if count <= mean:
        return 0.0
    if mean <= 0:
        return -300.0
    return max((count - mean - count * math.log(count / mean)) / math.log(10), -300.0)
