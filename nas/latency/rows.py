"""What stands in a latency table: layers, and whole networks beside the sums of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from nas.latency.noise import undisturbed

UNUSABLE = ("failed", "fallback")


@dataclass(frozen=True)
class Row:
    """What one layer takes in an inference, in the unit of the table (nearly always ms).

    A row that could not be measured has no numbers and a note that says why: `failed: ...`, or
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
    def of(
        cls, key: str, samples: Iterable[Sequence[float]], note: str = "", serial: bool = True
    ) -> Self:
        """The row of a layer from its samples (wall, processor time), without what held them up.

        `serial` is that of `nas.latency.noise.undisturbed`.
        """
        wall, cpu = undisturbed(np.array(list(samples)), serial).T
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
        """The row of a layer that could not be timed; the note says why."""
        return cls(key, math.nan, math.nan, math.nan, math.nan, 0, note)

    @property
    def usable(self) -> bool:
        """Whether the layer runs on the device, so that the row has numbers."""
        return not self.note.startswith(UNUSABLE)

    @property
    def kind(self) -> str:
        """The name of the layer's module, e.g. `WindowBlock`."""
        return self.key.partition("(")[0]


@dataclass(frozen=True)
class Reference:
    """One network that was run end to end, and the sum of its rows."""

    architecture: str  # JSON
    use: str  # fit: the calibration was fitted on it; held-out: it was judged on it
    sum: float
    median: float
    p20: float
    iqr: float
    samples: int
