"""A table under audit, and what a finding is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nas.latency.audit.outliers import Floats, Kind, kinds
from nas.latency.rows import Row
from nas.latency.table import LatencyTable
from nas.space.family import SearchSpace

FLOOR = 0.005  # no median is known better than this: layers before a layer, clocks, rounding
SURE = 5.0  # standard errors
SLIP = (math.log(200), math.log(5000))  # a factor of about 1000 is one of units

ERROR, WARNING = "error", "warning"
EXACT = ("emulated-count", "vendor-model")  # sources that give the same numbers every time


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a table, and what mends it."""

    rule: str
    severity: str  # error: do not search with this table; warning: know this before you do
    row: str  # its key; empty where it is about the whole table
    message: str
    fix: str


@dataclass(frozen=True, eq=False)
class Subject:
    """What the rules judge: a table, and what it is compared with."""

    table: LatencyTable
    other: LatencyTable | None
    space: SearchSpace | None

    @cached_property
    def rows(self) -> list[Row]:
        """The rows that have a positive cost, in the order of the table."""
        rows = self.table.rows.values()
        return [r for r in rows if r.usable and math.isfinite(r.median) and r.median > 0]

    @cached_property
    def costs(self) -> Floats:
        """The medians of `rows` (rows,), in the unit of the table."""
        return np.array([row.median for row in self.rows])

    @cached_property
    def kinds(self) -> list[Kind]:
        """The rows grouped by kind of layer; positions are those in `rows`."""
        return kinds([row.key for row in self.rows])

    @cached_property
    def errors(self) -> Floats:
        """The relative standard error of each row's median.

        A spread found from few samples may be small by luck, so none is taken for smaller than the
        usual one; 1.2533 and 1.349 are those of the median and the quartiles of a normal.
        """
        spread = np.array([row.iqr for row in self.rows]) / self.costs
        usual = np.nanmedian(spread) if np.isfinite(spread).any() else 0.0
        spread = np.fmax(spread, usual) / 1.349
        samples = np.maximum([row.samples for row in self.rows], 1)
        error: Floats = np.maximum(1.2533 * spread / np.sqrt(samples), FLOOR)
        # Rows that were carried over are as good as the port is.
        ported = [row.note == "ported" for row in self.rows]
        port = self.manifest.get("port", {}).get("mape_percent", 0.0) / 100
        return np.where(ported, np.fmax(error, port), error)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the table."""
        return self.table.manifest

    @property
    def device(self) -> dict[str, Any]:
        """What the manifest says of the device; empty if it says nothing."""
        device: dict[str, Any] = self.manifest.get("device", {})
        return device

    @property
    def unit(self) -> str:
        """The unit of the table, milliseconds where the manifest names none."""
        return str(self.manifest.get("unit", "ms"))

    @property
    def mend(self) -> str:
        """The advice for a row that is wrong."""
        if self.manifest.get("source") == "external":
            return "ask where the table comes from, or leave the row out"
        return f"measure it again: {self.again}"

    @property
    def again(self) -> str:
        """The command that measures this table anew."""
        return f"{self.once_more} --again"

    @property
    def once_more(self) -> str:
        """The command that goes on with measuring this table."""
        name, space = self.device.get("name", "NAME"), self.manifest.get("space", "NAME")
        return f"vitnas profile --space {space} --device {name}"


Found = Iterator[Finding]
