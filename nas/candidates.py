"""What a search knows of an architecture, and where its scores come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, sqrt
from typing import Any

import numpy as np

from nas.evaluate import Evaluator
from nas.family import SearchSpace
from nas.graph import encode
from nas.records import Journal
from nas.searcher import Surrogate
from nas.space import Architecture

SURROGATE_FROM = 24  # scores below which there is no surrogate
# Correlation of two subnets' hits image by image (measured on `swin:micro`: 0.51): that part of the
# noise, whether the images are easy, is the same for all and does not disturb a comparison.
SHARED = 0.5


@dataclass
class Candidate:
    """An architecture of this run with what is known of it."""

    name: str
    architecture: Architecture
    predicted_ms: float
    search_top1_percent: float
    expected_top1_percent: float  # the same without its noise, as far as the surrogate knows
    samples_ms: list[float] = field(default_factory=list)
    test_top1_percent: float | None = None

    @property
    def measured_ms(self) -> float | None:
        return float(np.median(self.samples_ms)) if self.samples_ms else None

    @property
    def measured_p95_ms(self) -> float | None:
        return float(np.percentile(self.samples_ms, 95)) if self.samples_ms else None

    @property
    def upper_ms(self) -> float:
        """The upper 95 % confidence limit of the median (by order statistics); inf unmeasured."""
        n = len(self.samples_ms)
        if not n:
            return float("inf")
        return sorted(self.samples_ms)[min(n - 1, ceil(n / 2 + 0.98 * sqrt(n)))]

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "id": self.architecture.id,
            "architecture": asdict(self.architecture),
            "predicted_ms": round(self.predicted_ms, 4),
            "measured_ms": rounded(self.measured_ms),
            "measured_p95_ms": rounded(self.measured_p95_ms),
            "search_top1_percent": round(self.search_top1_percent, 3),
            "expected_top1_percent": round(self.expected_top1_percent, 3),
            "test_top1_percent": rounded(self.test_top1_percent),
        }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class Scores:
    """Search-split accuracies: looked up in the journals, else evaluated and appended."""

    def __init__(
        self, evaluator: Evaluator, journal: Journal, shipped: Sequence[dict[str, Any]]
    ) -> None:
        self.evaluator, self.journal = evaluator, journal
        space = evaluator.network.space
        self.shipped: dict[Architecture, float] = {}
        self.drawn: list[Architecture] = []  # of the shipped ones, those drawn at random
        for record in shipped:
            architecture = space.parse(record["architecture"])
            self.shipped[architecture] = record["top1_percent"]
            if record["drawn"] == "random":
                self.drawn.append(architecture)
        self.known = dict(self.shipped)
        for record in journal.read():
            self.known[space.parse(record["architecture"])] = record["top1_percent"]

    def fitting(self, space: SearchSpace) -> dict[Architecture, float]:
        """The shipped scores of this space (or of a part of one)."""
        return {a: score for a, score in self.shipped.items() if a in space}

    def __call__(self, architectures: Sequence[Architecture], origin: str) -> list[float]:
        for architecture in architectures:
            if architecture not in self.known:
                self.known[architecture] = self.evaluator.top1_percent(architecture)
                self.journal.append(
                    {
                        "id": architecture.id,
                        "origin": origin,
                        "top1_percent": self.known[architecture],
                        "architecture": architecture.to_json(),
                    }
                )
        return [self.known[architecture] for architecture in architectures]

    def expected(self, space: SearchSpace) -> dict[Architecture, float]:
        """Every score known of a space, its noise taken out by a surrogate fitted to all of them.

        With too few scores for a surrogate these are the scores themselves.
        """
        known = {a: score for a, score in self.known.items() if a in space}
        scores = np.array(list(known.values()))
        if len(known) >= SURROGATE_FROM:
            paths = np.array([encode(space, a) for a in known])
            share = np.clip(scores / 100, 0.02, 0.98)
            noise = 1e4 * (1 - SHARED) * share * (1 - share) / self.evaluator.images
            scores = Surrogate(space.positions).fit(paths, scores).expected(paths, scores, noise)
        return dict(zip(known, scores.tolist()))
