"""The result of a search over a space of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from nas.problem.members import Column
from nas.space.rules import ENDED
from nas.strategy.quality import Quality

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Found:
    """A member of the space with its cost and its score, and the path that is its identity.

    `expected_score` is what the surrogate expects of it by all scores, that is without the luck of
    its own; nan where there are too few. The path holds the index of the value that is chosen at
    each position.
    """

    architecture: Any
    latency: float
    score: float
    expected_score: float = field(repr=False, compare=False)
    path: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """The best member found within one budget, None if there is none, and how good it is.

    `best` has the highest score, which is luck in part where scores are noisy; `expected` has the
    highest expected score, or is `best` where too few scores are known.
    """

    budget: float
    best: Found | None
    expected: Found | None
    quality: Quality


@dataclass(frozen=True)
class Exploration:
    """All that a search has found.

    `candidates` are all members with a score, in the order in which they were asked for; `front`
    those on the Pareto front of latency and score; `answers` the best for each budget. `proposals`
    counts the paths looked at and `rejections` those not asked for, by cause; `set_aside` gives
    the errors of members without a score, by their JSON (`nas.problem.members.Texts`).
    `hypervolume` is the area that the first candidates dominate, for each number of them, as a
    share of the largest possible (see `nas.strategy.statistics.hypervolumes`); `rank_correlation`
    is Spearman's, of the surrogate's predictions with scores that it had not seen. `calls` counts
    the members that functions were asked about for their cost, by the name of the limit. `columns`
    are those of `frame`.
    """

    candidates: tuple[Found, ...]
    front: tuple[Found, ...]
    answers: tuple[Answer, ...]
    proposals: int
    rejections: Mapping[str, int]
    set_aside: Mapping[str, str]
    hypervolume: tuple[float, ...]
    rank_correlation: float
    columns: tuple[Column, ...] = field(repr=False, compare=False)
    calls: Mapping[str, int] = field(default_factory=dict)

    @property
    def best(self) -> Found | None:
        """The member of the highest score within the first budget."""
        return self.answers[0].best

    @property
    def expected(self) -> Found | None:
        """The member of the highest expected score within the first budget."""
        return self.answers[0].expected

    def frame(self) -> DataFrame:
        """The candidates as a table: a column for each choice, `latency` and `score`.

        `expected_score` is another one, where enough scores are known. Where a `Repeat` has ended
        cells are empty; where `None` is a value, too, they say so.
        """
        import pandas as pd

        plain = {c.name: None in c.cells for c in self.columns}
        rows, judged = [], any(isfinite(found.expected_score) for found in self.candidates)
        for found in self.candidates:
            cells = {c.name: c.cells[found.path[c.position]] for c in self.columns}
            told = {k: v for k, v in cells.items() if v is not ENDED or plain[k]}
            results = {"latency": found.latency, "score": found.score}
            results |= {"expected_score": found.expected_score} if judged else {}
            rows.append({**told, **results})
        return pd.DataFrame(rows)
