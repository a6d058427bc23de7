"""What stands in a latency table: layers, and whole networks beside the sums of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

UNUSABLE = ("failed", "fallback")


@dataclass(frozen=True)
class Row:
    """One layer's share of an inference, in the table's unit (milliseconds, nearly always).

    A row that could not be had has no numbers and a note that says why: `failed: ...`, or
    `fallback: OPERATOR, ...` where a part of it does not run on the device.
    """

    key: str
    median: float
    p20: float
    iqr: float
    cpu_median: float
    samples: int
    note: str = ""

    @classmethod
    def of(cls, key: str, samples: Iterable[Sequence[float]], note: str = "") -> Self:
        wall, cpu = _undisturbed(np.array(list(samples))).T
        p20, q1, median, q3 = np.percentile(wall, (20, 25, 50, 75)).round(5)
        return cls(
            key,
            float(median),
            float(p20),
            round(float(q3 - q1), 5),
            round(float(np.median(cpu)), 5),
            len(wall),
            note,
        )

    @classmethod
    def without_numbers(cls, key: str, note: str) -> Self:
        return cls(key, math.nan, math.nan, math.nan, math.nan, 0, note)

    @property
    def usable(self) -> bool:
        return not self.note.startswith(UNUSABLE)

    @property
    def kind(self) -> str:
        """The module of the layer."""
        return self.key.partition("(")[0]


def _undisturbed(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The samples (n, wall and processor time) during which the process was not held up.

    All of them if that is too few, or on a device whose processor time says nothing of it.
    """
    wall, cpu = samples.T
    kept = samples[wall <= _HELD_UP * cpu]
    return kept if len(kept) >= max(3, len(samples) / 4) else samples


_HELD_UP = 1.1


@dataclass(frozen=True)
class Reference:
    """One network run end to end, beside the sum of its rows."""

    architecture: str  # JSON
    use: str  # fit: the calibration was fitted on it; held-out: it was judged on it
    sum: float
    median: float
    p20: float
    iqr: float
    samples: int
