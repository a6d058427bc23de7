"""Scores of architectures: known before a run, or computed in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.evaluation.score_task import Payload, rival_in, variance_in
from nas.evaluation.shared_prefixes import depth_first, layer_names
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.task import Metric
from nas.strategy.gaussian_process import Surrogate
from nas.strategy.loop import Score
from nas.strategy.quality import JUDGED_FROM
from nas.trellis.graph import encode
from nas.workers.ledger import Ledger, Record, Task

# Correlation of two subnets' hits image by image (measured on `swin:micro`: 0.51): that part of the
# noise, whether the images are easy, is the same for all and does not disturb a comparison.
SHARED = 0.5
_GROUP = 16  # candidates that share what their first layers compute


@dataclass(frozen=True)
class Candidate:
    """A scored network that is not yet measured, and its role: `name` is "best dense", for example.

    `expected_percent` is its score without its noise, as far as the surrogate knows.
    """

    name: str
    architecture: Architecture
    predicted_ms: float
    search_percent: float
    expected_percent: float


class Scores:
    """Accuracies on the search split in percent: shipped, from the journal of a run, or new.

    They are by the `metric`. A full score is of as many `images` of the search split. A candidate
    that lost its race was `seen` on fewer; it informs the surrogate, and cannot win. `variances`
    are those of a score over draws of as many images, in points squared; `drawn` are the shipped
    architectures that were drawn at random.
    """

    def __init__(
        self,
        space: SearchSpace,
        ledger: Ledger,
        images: int,
        metric: Metric,
        shipped: Sequence[Record] = (),
        imported: Sequence[Record] = (),
    ) -> None:
        self.space, self.ledger, self.images = space, ledger, images
        self.metric = metric
        self.known: dict[Architecture, float] = {}
        self.variances: dict[Architecture, float] = {}
        self.seen: dict[Architecture, int] = {}
        self.drawn: list[Architecture] = []
        for record in shipped:
            architecture = space.parse(record["architecture"])
            self.known[architecture] = record[self.metric.key]
            self.variances[architecture] = variance_in({"images": images, **record}, self.metric)
            if record["drawn"] == "random":
                self.drawn.append(architecture)
        self.shipped = set(self.known)
        for record in imported:
            self._take(record)

    def _take(self, record: Record) -> None:
        if "error" in record:
            return
        architecture = self.space.parse(record["architecture"])
        self.known[architecture] = record[self.metric.key]
        self.variances[architecture] = variance_in(record, self.metric)
        if record["dropped"]:
            self.seen[architecture] = record["images"]

    def noise(self, architecture: Architecture) -> float:
        """The variance of a score that differs between subnets, in points squared.

        A dropped candidate has seen the first images alone, whose difficulty is not that of all.
        """
        shared = 0.0 if architecture in self.seen else SHARED
        return (1 - shared) * self.variances[architecture]

    def own(self, origin: str) -> list[Record]:
        """The records of this run that are of one origin, such as "search" or "dense"."""
        return [r for r in self.ledger.records.values() if r["origin"] == origin]

    def error(self, architecture: Architecture) -> str:
        """Why this run could not score an architecture; empty if it could, or has not tried."""
        return str(self.ledger.records.get(architecture.id, {}).get("error", ""))

    def full(self, space: SearchSpace) -> list[Architecture]:
        """The architectures of a space that have a score of all images, and so may win."""
        return [a for a in self.known if a not in self.seen and a in space]

    def __call__(
        self,
        architectures: Sequence[Architecture],
        origin: str,
        rival: Callable[[Architecture], str] = lambda _: "",
        done: Callable[[Record], None] = lambda _: None,
    ) -> list[Score]:
        """Score architectures; `rival` gives the packed outcomes of the network that each races."""
        new = [a for a in architectures if a not in self.known]
        layers = [layer_names(self.space.layers(a)) for a in new]
        tasks = []
        order = [new[i] for i in depth_first(layers)]
        for start in range(0, len(order), _GROUP):
            group = order[start : start + _GROUP]
            siblings = tuple(a.to_json() for a in group)
            for a, text in zip(group, siblings):
                header = {"origin": origin, "architecture": text}
                tasks.append(Task(a.id, Payload(text, rival(a), siblings), header))
        failed: dict[str, str] = {}
        for record in self.ledger.score(tasks, done):
            self._take(record)
            failed[record["id"]] = record.get("error", "")
        return [
            Score(error=failed[a.id]) if failed.get(a.id) else Score(self.known[a], self.noise(a))
            for a in architectures
        ]

    def expected(self, space: SearchSpace) -> dict[Architecture, float]:
        """All scores known of a space, their noise taken out by a surrogate that is fitted to them.

        Choosing by raw scores would choose luck: of a thousand on 400 images the best is some seven
        points too high. With too few scores for a surrogate these are the scores themselves.
        """
        known = [a for a in self.known if a in space]
        scores = np.array([self.known[a] for a in known])
        if len(known) >= JUDGED_FROM:
            paths = np.array([encode(space, a) for a in known])
            noise = np.array([self.noise(a) for a in known])
            scores = Surrogate.fit(space.positions, paths, scores, noise).predict(paths)
        return dict(zip(known, scores.tolist()))


def best_rival(records: Iterable[Record], key: str, fits: Callable[[Record], bool]) -> str:
    """The packed outcomes of the best record that fits and has all images; "" for none.

    `key` is that of the score (`Metric.key`).
    """
    full = [r for r in records if r.get("dropped") is False and fits(r)]
    return rival_in(max(full, key=lambda r: (r[key], r["id"]))) if full else ""
