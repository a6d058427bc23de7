"""What a search over a space of a user's own has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.problem.costs import Costs
from nas.problem.scores import flat
from nas.strategy.quality import Quality, in_budget, judge
from nas.strategy.searchers import Searcher
from nas.strategy.statistics import hypervolumes, pareto
from nas.trellis.graph import decode
from nas.workers.ledger import Ledger

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Found:
    """A member of the space with its cost and its score."""

    architecture: Any
    latency: float
    score: float


@dataclass(frozen=True)
class Answer:
    """The best that was found within one budget, and what is known of how good it is."""

    budget: float
    best: Found | None
    quality: Quality


@dataclass(frozen=True)
class Exploration:
    """What a search has found: every candidate in the order in which it was asked for, the front
    of latency and score, an answer for each budget, and counts."""

    candidates: tuple[Found, ...]
    front: tuple[Found, ...]
    answers: tuple[Answer, ...]
    proposals: int
    rejections: Mapping[str, int]
    set_aside: Mapping[str, str]  # reasons, by JSON of the architecture
    hypervolume: tuple[float, ...]  # by number of candidates, as a share
    rank_correlation: float  # of the surrogate's predictions with scores it had not seen

    @property
    def best(self) -> Found | None:
        """The answer for the first budget."""
        return self.answers[0].best

    def frame(self) -> DataFrame:
        """The candidates as a table: a column for each choice, `latency` and `score`."""
        import pandas as pd

        rows = [{**flat(c.architecture), "latency": c.latency, "score": c.score}
                for c in self.candidates]  # fmt: skip
        return pd.DataFrame(rows)


def exploration(space: Any, asked: Searcher, cost: Costs, ledger: Ledger) -> Exploration:
    known = asked.known
    costs = cost.costs_of(known.paths)
    found = [
        Found(decode(space, path), float(c), float(s))
        for path, c, s in zip(known.paths, costs, known.scores)
    ]
    answers = []
    for region in asked.regions:
        best = in_budget(region, known)
        at = None if best is None else int(np.flatnonzero((known.paths == best).all(1))[0])
        answers.append(
            Answer(
                region.limits[0].bound,
                None if at is None else found[at],
                judge(region, known, best),
            )
        )
    bound = max(region.limits[0].bound for region in asked.regions)
    scores = known.scores.tolist()
    return Exploration(
        candidates=tuple(found),
        front=tuple(found[i] for i in pareto(costs.tolist(), scores)),
        answers=tuple(answers),
        proposals=asked.proposals,
        rejections=dict(asked.rejections),
        set_aside={r["architecture"]: r["error"] for r in ledger.records.values() if "error" in r},
        hypervolume=tuple(hypervolumes(costs.tolist(), scores, bound, min(scores, default=0.0))),
        rank_correlation=asked.rank_correlation,
    )
