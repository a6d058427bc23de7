"""What a campaign ends with: rows and a calibration from samples, and how much of it is noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import TableError
from nas.latency.fit import Calibration
from nas.latency.noise import Visit, Visits, share_held_up, steadied, undisturbed
from nas.latency.port import Port, Report
from nas.latency.protocols import Piece, samples_by_row
from nas.latency.rows import Reference, Row
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.trellis.graph import Graph

_UNREACHED = "failed: no architecture without failed layers has it"
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)  # of single inferences, which a table knows


@dataclass(frozen=True)
class Plan:
    """What a campaign measures, given what is known so far of what runs on the device.

    `everything` is the graph of the space, `graph` what is left of it without the `failed` rows
    (reasons by key). The first `fitted` of the networks are for the calibration, the others judge
    it. `serial` says that the program has one thread.
    """

    space: SearchSpace
    everything: Graph
    graph: Graph
    rows: dict[str, Layer]  # to be measured, by key
    pieces: list[Piece]
    networks: list[Piece]  # the references; none before each row has been visited once
    failed: Mapping[str, str]
    fitted: int
    serial: bool
    port: Port | None

    def make_rows(
        self, visits: Visits, notes: Mapping[str, str]
    ) -> tuple[dict[str, Row], Report | None]:
        """The row of every layer that was timed, failed, or was carried over by the port."""
        samples = samples_by_row(self.space, self.rows, visits, self.serial)
        measured = {
            key: Row.of(key, own, notes.get(key, ""), self.serial) for key, own in samples.items()
        }
        reached = self.graph.items()
        lost = {key: _UNREACHED for key in self.everything.items() if key not in reached}
        for key, why in (lost | dict(self.failed)).items():
            measured[key] = Row.without_numbers(key, why)
        return self.port.carry(measured) if self.port else (measured, None)

    def references(self, rows: Mapping[str, Row], visits: Visits) -> tuple[Reference, ...]:
        """The reference networks: the first for the fit, the others held out."""
        fitted = min(self.fitted, len(self.networks) // 2)
        found = []
        for i, piece in enumerate(self.networks):
            total = sum(rows[layer.key].median for layer in piece.layers)
            samples = [sample for visit in visits[piece.name] for sample in visit]
            own = Row.of("", samples, serial=self.serial)
            use = "fit" if i < fitted else "held-out"
            numbers = (round(total, 5), own.median, own.p20, own.iqr, own.samples)
            found.append(Reference(piece.about, use, *numbers))
        return tuple(found)

    def sums(self, rows: Mapping[str, Row]) -> list[dict[str, float]]:
        """For each network the sums of its rows by kind of layer."""
        found = []
        for piece in self.networks:
            own: dict[str, float] = defaultdict(float)
            for layer in piece.layers:
                own[rows[layer.key].kind] += rows[layer.key].median
            found.append(own)
        return found


@dataclass(frozen=True)
class Outcome:
    """Everything that a campaign found, and a table is made of.

    `noise_percent` is the part of the calibration's error that other samples would not repeat.
    `quantiles` are those of single inferences, by their medians.
    """

    rows: dict[str, Row]
    references: tuple[Reference, ...]
    calibration: Calibration
    wall_over_cpu: float  # median over all samples; 0 where the runtime knows no processor time
    held_up_percent: float  # of all samples
    noise_percent: float
    quantiles: dict[float, float]
    port: Report | None  # how well a port predicts, where rows were carried over
    seconds: float  # what the last run took


def outcome(
    plan: Plan, order: Sequence[tuple[str, Visit]], notes: Mapping[str, str], seconds: float
) -> Outcome:
    """The outcome of all visits so far, given in the order in which they were made.

    Raises `TableError` where networks with larger sums do not take longer.
    """
    raw: dict[str, list[Visit]] = defaultdict(list)
    for name, visit in order:
        raw[name].append(visit)
    visits = steadied(order, plan.serial)
    rows, references, calibration, port = _fitted(plan, visits, notes)
    return Outcome(
        rows,
        references,
        calibration,
        _wall_over_cpu(plan, raw),
        round(100 * share_held_up(raw), 1),
        _noise_percent(plan, visits, notes),
        _quantiles(plan, raw),
        port,
        seconds,
    )


def _fitted(
    plan: Plan, visits: Visits, notes: Mapping[str, str]
) -> tuple[dict[str, Row], tuple[Reference, ...], Calibration, Report | None]:
    rows, port = plan.make_rows(visits, notes)
    references = plan.references(rows, visits)
    fitted = sum(reference.use == "fit" for reference in references)
    medians = [reference.median for reference in references]
    return rows, references, Calibration.fit_kinds(plan.sums(rows), medians, fitted), port


def _noise_percent(plan: Plan, visits: Visits, notes: Mapping[str, str]) -> float:
    """How far the errors of the networks move when the samples are others: from two halves.

    Half the mean difference of two tables, each of every other visit: what is not noise is in
    both, and each has half of the samples.
    """
    if min(map(len, visits.values())) < 2:
        return 0.0
    errors = []
    for first in (0, 1):
        half = {name: own[first::2] for name, own in visits.items()}
        try:
            rows, references, c, _ = _fitted(plan, half, notes)
        except TableError:
            return 100.0  # half of the samples are too noisy to fit anything
        held = [i for i, reference in enumerate(references) if reference.use != "fit"]
        sums = plan.sums(rows)
        errors.append(
            [
                c.overhead + c.scale * sum(c.factors.get(k, 1.0) * ms for k, ms in sums[i].items())
                for i in held
            ]
            / np.array([references[i].median for i in held])
        )
    return round(float(np.abs(errors[0] - errors[1]).mean() * 50), 3)


def _quantiles(plan: Plan, visits: Visits) -> dict[float, float]:
    """How many times the median of a network a quantile of its single inferences is.

    Of inferences that were not held up: what holds them up is another matter on another day.
    """
    ratios = []
    for piece in plan.networks:
        samples = np.array([sample for visit in visits[piece.name] for sample in visit])
        wall = undisturbed(samples, plan.serial)[:, 0]
        ratios.append(wall / np.median(wall))
    found = np.quantile(np.concatenate(ratios), QUANTILES)
    return {q: round(float(x), 4) for q, x in zip(QUANTILES, found)}


def _wall_over_cpu(plan: Plan, visits: Visits) -> float:
    own = samples_by_row(plan.space, plan.rows, visits, plan.serial)
    samples = np.array([sample for rows in own.values() for sample in rows])
    known = samples[samples[:, 1] > 1e-3]
    return float(np.median(known[:, 0] / known[:, 1])) if len(known) else 0.0
