"""Latency tables: measured rows, calibrated predictions, and where they come from.

A table predicts `overhead + scale * sum(rows)`; overhead and scale are fitted on end-to-end runs of
random networks spread over the latency range, and the error is stated on *other* networks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import numpy as np

from nas.errors import TableError
from nas.latency.files import read, write
from nas.latency.fit import Agreement, Calibration
from nas.latency.noise import wanting
from nas.latency.rows import Reference, Row
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.space.task import Task
from nas.tasks import load_task
from nas.trellis.graph import Graph
from nas.trellis.trellis import Trellis
from nas.versions import layer_code

_BUSY_PERCENT = 10.0  # of samples that were held up


@dataclass(frozen=True)
class LatencyTable:
    """Rows of one device and runtime, with the manifest that says where they come from.

    One that was `altered` has files that are not as they were written.
    """

    rows: dict[str, Row]
    manifest: dict[str, Any]
    references: tuple[Reference, ...] = ()
    altered: bool = False

    @cached_property
    def calibration(self) -> Calibration:
        """The fit that turns sums of rows into predictions, as the manifest says it."""
        own = {f.name for f in fields(Calibration)}
        return Calibration(**{k: v for k, v in self.manifest["calibration"].items() if k in own})

    @property
    def task(self) -> Task:
        """The task of the space that was measured; external tables have none (`KeyError`)."""
        return load_task(self.manifest)

    @property
    def unit(self) -> str:
        """The unit of all times of the table: `ms`, or `Minstructions` for counts."""
        return str(self.manifest["unit"])

    @property
    def current(self) -> bool:
        """Whether the layers have the same code today as when the table was measured."""
        family = str(self.manifest["space"]).partition(":")[0]
        return bool(self.manifest["layer_code"] == layer_code(family))

    @property
    def wanting(self) -> bool:
        """Whether its error is above the one that is wanted because of noise, and may be lowered.

        Tables of earlier versions do not know how much of their error is noise: all of it may be.
        """
        if self.manifest["source"] in ("vendor-model", "emulated-count", "external"):
            return False  # the same numbers every time, or not measured by us
        error = self.calibration.mape_percent
        return wanting(error, self.manifest.get("noise_percent", error))

    @property
    def busy(self) -> bool:
        """Whether other programs held up the process that measured it, in a tenth of samples."""
        return bool(self.manifest.get("held_up_percent", 0.0) > _BUSY_PERCENT)

    def tail(self, quantile: float) -> float:
        """How many times its median a quantile of single inferences is, on a quiet machine.

        1.0 for the median, and in a table that does not know; in between by interpolation.
        """
        known = {0.5: 1.0} | {float(q): x for q, x in self.manifest.get("quantiles", {}).items()}
        places = sorted(known)
        return float(np.interp(quantile, places, [known[q] for q in places]))

    @property
    def measured_source(self) -> str:
        """The source of the rows that were measured, also in a table that is mostly ported."""
        return str(self.manifest.get("measured_source", self.manifest["source"]))

    def row(self, layer: Layer) -> Row:
        """The row of a layer; `TableError` if there is none."""
        row = self.rows.get(layer.key)
        if row is None:
            space, device = self.manifest["space"], self.manifest["device"]["name"]
            raise TableError(
                f"the table of {device} has no row {layer.key}",
                f"measure it: vitnas profile --device {device} --space {space} --classes N",
            )
        return row

    def cost(self, layer: Layer) -> float:
        """What a layer adds to a prediction: its calibrated row, infinite if it cannot run."""
        row, c = self.row(layer), self.calibration
        return c.scale * c.factors.get(row.kind, 1.0) * row.median if row.usable else math.inf

    def predict(self, space: SearchSpace, architecture: Architecture) -> float:
        """What a network takes, in the table's unit; infinite where a layer of it cannot run."""
        layers = space.layers(architecture)
        return self.calibration.overhead + sum(map(self.cost, layers))

    @property
    def _sigma(self) -> float:
        """The relative spread of predictions: p95 of |error| taken as 1.96 standard deviations."""
        return max(self.calibration.p95_percent, 0.1) / 196

    def interval(self, predicted: float, confidence: float) -> tuple[float, float]:
        """The interval in which a network of this prediction measures with this confidence.

        Within the minutes of the campaign, that is: what differs between processes and hours, and
        other programs, are not in it.
        """
        center = predicted / (1 + self.calibration.bias_percent / 100)
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * self._sigma
        return center * (1 - reach), center * (1 + reach)

    def agreement(self, times: Sequence[tuple[float, float]], confidence: float) -> Agreement:
        """How predictions agree with networks timed later, of each the predicted and measured."""
        predicted, measured = np.array(times).T
        low, high = np.array([self.interval(x, confidence) for x in predicted]).T
        return Agreement(
            networks=len(times),
            mape_percent=round(float(100 * np.abs(predicted / measured - 1).mean()), 3),
            ratio=round(float(np.median(measured / predicted)), 4),
            inside_interval=int(((low <= measured) & (measured <= high)).sum()),
        )

    def limit(self, budget: float, confidence: float) -> float:
        """The largest prediction whose interval of this confidence ends within the budget."""
        center = budget / (1 + NormalDist().inv_cdf((1 + confidence) / 2) * self._sigma)
        return center * (1 + self.calibration.bias_percent / 100)

    def trellis(self, space: SearchSpace) -> Trellis:
        """The trellis of all architectures that run on the device, costs in the table's unit."""
        graph = Graph.of(space)
        unusable = {key for key, row in self.rows.items() if not row.usable}
        return Trellis(graph.without(unusable), self.cost, fixed=self.calibration.overhead)

    def sums(self, layers: Iterable[Layer]) -> dict[str, float]:
        """The sums of the medians of these layers by kind of layer, not calibrated."""
        total: dict[str, float] = defaultdict(float)
        for layer in layers:
            row = self.row(layer)
            total[row.kind] += row.median
        return dict(total)

    def save(self, folder: Path) -> None:
        """Write the table's files into a folder."""
        write(folder, self.manifest, self.rows, self.references)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a table; `TableError` names the line of a file that is no table."""
        found = read(folder)
        return cls(found.rows, found.manifest, found.references, found.altered)

    def require_unaltered(self) -> None:
        """Raise `TableError` if the files of the table are not as they were written."""
        if self.altered:
            device, space = self.manifest["device"]["name"], self.manifest["space"]
            raise TableError(
                f"the table of {device} for {space} was altered after it was measured",
                "restore its files or measure it again: vitnas profile --again; vitnas audit says "
                "what is wrong with it",
            )

    def check(self, space: SearchSpace, described: dict[str, Any]) -> None:
        """Raise `TableError` if the table is not of this device, space and layer code.

        `described` is what `Runtime.describe` says. Rows that cannot be times, and a table that was
        altered, are refused, too.
        """
        self.require_unaltered()
        wanted = {**described, "layer_code": layer_code(space.family)}
        found = {**self.manifest["device"], "layer_code": self.manifest["layer_code"]}
        wanted, found = ({k: v for k, v in d.items() if k != "name"} for d in (wanted, found))
        measure = f"vitnas profile --device {described['name']} --space {space.name}"
        if differing := [k for k in wanted if found.get(k) != wanted[k]]:
            shown = ", ".join(f"{k} {found.get(k)!r} is not {wanted[k]!r}" for k in differing[:2])
            raise TableError(
                f"this table is of another machine or version: {shown}", f"measure one: {measure}"
            )
        if self.manifest["space"] != space.name:
            raise TableError(
                f"this table is for the space {self.manifest['space']}, not {space.name}",
                f"measure one: {measure}",
            )
        if bad := [row for row in self.rows.values() if row.usable and not row.median > 0]:
            raise TableError(
                f"the row {bad[0].key} has a median of {bad[0].median:g}",
                "see what else is wrong with the table: vitnas audit FOLDER",
            )
