"""Scores of a user's own: a function, or a table of known ones, called by workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.errors import UsageError
from nas.problem.members import Texts, columns_of, find, member_id
from nas.records import fingerprint
from nas.space.rules import Position
from nas.strategy.loop import Score
from nas.trellis.graph import Ints, decode
from nas.workers.ledger import Ledger, Record, Task


@dataclass(frozen=True)
class ScoreTable:
    """The known scores of members, by their cells in some columns (`read_score`).

    `codes` holds for each column its position, and for each value of that the number of its cell;
    `scores` holds the score for each row of such numbers.
    """

    codes: tuple[tuple[int, tuple[int, ...]], ...]
    scores: Mapping[tuple[int, ...], float]

    def __call__(self, path: Sequence[int]) -> float:
        """The score of the member of a path; `KeyError` if the table has none."""
        key = tuple(code[path[position]] for position, code in self.codes)
        if key not in self.scores:
            raise KeyError("the table of scores has no row for it")
        return self.scores[key]

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any score."""
        return fingerprint(sorted((list(key), score) for key, score in self.scores.items()))


def read_score(given: Any, positions: Sequence[Position]) -> Callable[[Any], float]:
    """The function of a member that is given as such, or as a DataFrame with a column `score`.

    Each other column of the table but `latency` is a choice by name, as in `columns_of`.
    """
    if callable(given):
        function: Callable[[Any], float] = given
        return function
    if "score" not in getattr(given, "columns", ()):
        raise UsageError(
            f"a score cannot be {type(given).__name__} without a column called score",
            "give a function, or a DataFrame with a column for each choice and score",
        )
    used = [column for column in columns_of(positions) if column.name in given.columns]
    kinds = [list(dict.fromkeys(column.cells)) for column in used]
    rows = given[[*(column.name for column in used), "score"]].itertuples(index=False, name=None)
    scores: dict[tuple[int, ...], float] = {}
    for *cells, score in rows:
        numbers = [find(cell, own) for cell, own in zip(cells, kinds)]
        if all(number is not None for number in numbers):
            scores[tuple(n for n in numbers if n is not None)] = float(score)
    codes = tuple(
        (column.position, tuple(own.index(cell) for cell in column.cells))
        for column, own in zip(used, kinds)
    )
    return ScoreTable(codes, scores)


def make_scorer(score: Callable[[Any], float]) -> Callable[[Any], Record]:
    """What a worker does: the record of a member's score; `ValueError` if that is not finite."""

    def scorer(member: Any) -> Record:
        value = float(score(member))
        if not math.isfinite(value):
            raise ValueError(f"the score is {value}")
        return {"score": value}

    return scorer


def score_paths(
    space: Any, texts: Texts, by_path: bool, ledger: Ledger, paths: Ints
) -> list[Score]:
    """The scores of paths (n, positions), from the ledger where it has them, else from workers.

    These are given members, or paths if the score is `by_path`.
    """
    tasks = []
    for path in paths:
        own = tuple(path.tolist())
        member = decode(space, path)
        header = {"architecture": texts(own, member)}
        tasks.append(Task(member_id(own), own if by_path else member, header))
    records = ledger.score(tasks)
    return [Score(r.get("score", math.nan), error=r.get("error", "")) for r in records]
