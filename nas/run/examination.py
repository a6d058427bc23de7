"""Examinations of a run: networks scored once on samples that no search has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path

from nas.data import Part, Split
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.racing import Outcomes
from nas.evaluation.score_task import AccuracyRecord, tested_record, unpack, variance_in
from nas.progress import bar
from nas.records import Journal
from nas.run.inputs import Inputs
from nas.run.known import FINALS
from nas.run.scores import Candidate
from nas.space.architecture import Architecture
from nas.workers.ledger import Record


@dataclass(frozen=True, eq=False)
class Examined:
    """The accuracy of a network on further samples, its standard error in points, and by class.

    `hits` (samples,) are what was right; None where a record has none.
    """

    percent: float
    error_points: float
    by_class: tuple[float | None, ...] = ()
    hits: Outcomes | None = None

    def difference_error_points(self, other: Examined) -> float | None:
        """The standard error of the difference to the accuracy of another network.

        Both have seen the same samples, so it is that of the mean of paired differences. None where
        the samples of one of them are not known.
        """
        if self.hits is None or other.hits is None:
            return None
        differences = 100.0 * self.hits - 100.0 * other.hits
        return float(differences.std() / sqrt(len(differences)))


class Examination:
    """Scores networks on the first `images` samples of a split, each once.

    `found` holds the result of each network, and the journal in `file` keeps it for a resumed run.
    `known` are records of before; those of other numbers of images are left out.
    """

    def __init__(
        self,
        inputs: Inputs,
        title: str,
        split: Split,
        images: int,
        file: Path,
        known: Iterable[Record],
    ) -> None:
        self.inputs, self.title, self.split = inputs, title, split
        self.images = max(0, min(images, split.size))
        self.found: dict[Architecture, Examined] = {}
        self._journal = Journal(file)
        written = self._journal.read(AccuracyRecord, inputs.scores.metric.name)
        self._kept = {r["id"]: r for r in (*known, *written) if r["images"] == self.images}

    def __call__(self, candidates: Iterable[Candidate]) -> None:
        """Score the networks that `found` does not have yet."""
        wanted = {c.architecture: c.name for c in candidates if c.architecture not in self.found}
        if not wanted or not self.images:
            return
        metric = self.inputs.scores.metric
        with bar(self.title, len(wanted), "networks") as advance:
            for own in self._evaluator.plan(wanted):
                if own.id not in self._kept:
                    self._kept[own.id] = {"id": own.id, **tested_record(self._evaluator.score(own))}
                    self._journal.append(self._kept[own.id])
                record = self._kept[own.id]
                percent, by_class = record[metric.key], tuple(record.get("by_class", ()))
                error, packed = sqrt(variance_in(record, metric)), record.get("hits")
                hits = unpack(packed, self.images) if packed else None
                self.found[own] = Examined(percent, error, by_class, hits)
                advance(1, f"{wanted[own]} {percent:.1f} %")

    @cached_property
    def _evaluator(self) -> Evaluator:
        inputs = self.inputs
        metric = inputs.scores.metric
        return Evaluator(inputs.network, inputs.data, self.split, self.images, metric=metric)


def finals(inputs: Inputs) -> Examination:
    """That of the finalists, on samples of the search split which have scored no candidate."""
    rest = rest_of(inputs.data.search, inputs.evaluator.images)
    return Examination(
        inputs, "final", rest, inputs.settings.final_images, inputs.folder / FINALS, inputs.finals
    )


def rest_of(split: Split, seen: int) -> Split:
    """A split without its first samples, which have scored candidates."""
    return Part(split, range(seen, max(seen, split.size)))


def test(inputs: Inputs) -> Examination:
    """That of what is reported, on the test split, which chooses nothing."""
    recorded = inputs.card.get("largest_test", {})
    # What the card says holds where the scores beside it do.
    holds = inputs.scores.shipped and inputs.scores.metric.key in recorded
    known = [{"id": inputs.space.largest.id, **recorded}] if holds else []
    return Examination(
        inputs, "test", inputs.data.test, inputs.settings.test_images,
        inputs.folder / "test.jsonl", known,
    )  # fmt: skip
