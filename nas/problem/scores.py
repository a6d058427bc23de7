"""Scores of a user's own: a function, or a table of known ones, called by workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nas.errors import UsageError
from nas.problem.members import RESULTS, Column, Texts, columns_of, find, member_id
from nas.progress import Advance, console
from nas.records import fingerprint
from nas.space.rules import Position
from nas.strategy.loop import Score
from nas.trellis.graph import Ints, decode
from nas.workers.ledger import Ledger, Record, Task


@dataclass(frozen=True)
class ScoreTable:
    """The known scores of members, by their cells in some columns (`read_score`).

    `codes` holds for each column its position, and for each value of that the number of its cell;
    `scores` holds for each row of such numbers the mean of its scores and that mean's noise.
    """

    codes: tuple[tuple[int, tuple[int, ...]], ...]
    scores: Mapping[tuple[int, ...], tuple[float, float]]
    unmatched: str = ""

    def __call__(self, path: Sequence[int]) -> tuple[float, float]:
        """The score of the member of a path and its noise; `KeyError` if the table has none."""
        key = tuple(code[path[position]] for position, code in self.codes)
        if key not in self.scores:
            raise KeyError(f"the table of scores has no row for it{self.unmatched}")
        return self.scores[key]

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any score."""
        return fingerprint(sorted((list(key), *score) for key, score in self.scores.items()))


def read_score(given: Any, positions: Sequence[Position]) -> Callable[[Any], Any]:
    """The function of a member that is given as such, or as a DataFrame with a column `score`.

    The other columns are choices by name, as in `columns_of`. Where all of these are there, more
    may be, such as `latency`; else a column that is none of them is refused (`UsageError`), since
    it may be one with a wrong name. So is a name that two columns have. A score of a table that
    leaves choices out holds for all their values, which is said. Rows of the same member are
    trials: their mean is its score.
    """
    if callable(given):
        function: Callable[[Any], Any] = given
        return function
    names = list(getattr(given, "columns", ()))
    if "score" not in names:
        raise UsageError(
            f"a score cannot be {type(given).__name__} without a column called score",
            "give a function, or a DataFrame with a column for each choice and score",
        )
    columns = columns_of(positions)
    used = [column for column in columns if column.name in names]
    known = {*RESULTS, *(column.name for column in columns)}
    varied = [c.name for c in columns if len(set(map(repr, c.cells))) > 1 and c not in used]
    unknown = [str(name) for name in names if name not in known]
    if not used or (varied and unknown):
        raise UsageError(
            f"the table of scores has no column {', '.join(varied[:4])}"
            + (f", and {', '.join(unknown[:4])} is no choice" if unknown else ""),
            "name its columns as in Exploration.frame(), and drop others",
        )
    wanted = {"score", *(column.name for column in used)}
    if twice := sorted(name for name in wanted if names.count(name) > 1):
        raise UsageError(
            f"the table of scores has several columns called {', '.join(twice[:4])}",
            "drop all but one; trials of one member are rows",
        )
    if varied:
        left = ", ".join(varied[:4]) + ", ..." * (len(varied) > 4)
        said = f"the table of scores has no column {left}: a score holds for all values of it"
        console.print(said, soft_wrap=True)
    return _score_table(given, used)


def _score_table(given: Any, used: Sequence[Column]) -> ScoreTable:
    """The scores of a DataFrame by some of its columns."""
    kinds = [list(dict.fromkeys(column.cells)) for column in used]
    names = [column.name for column in used]
    trials: dict[tuple[int, ...], list[float]] = {}
    missing: list[str] = []
    unscored = 0
    for *cells, score in given[[*names, "score"]].itertuples(index=False, name=None):
        numbers = [find(cell, own) for cell, own in zip(cells, kinds)]
        missing += [f"{n} = {c!r}" for n, c, i in zip(names, cells, numbers) if i is None][:1]
        key = tuple(number for number in numbers if number is not None)
        unscored += score is None or score != score
        if len(key) == len(used) and score is not None and score == score:
            trials.setdefault(key, []).append(float(score))
    unmatched = ""
    if missing:
        unmatched = f"; {len(missing)} rows are of no member, e.g. {missing[0]}"
    if not trials:
        raise UsageError(f"no row of the table of scores can be used{unmatched}", "mend the table")
    if missing or unscored:
        empty = f"; {unscored} have no score" * bool(unscored)
        said = (unmatched + empty).removeprefix("; ")
        console.print(f"of the table of scores {said}: they are not used", soft_wrap=True)
    within = [np.var(own, ddof=1) for own in trials.values() if len(own) > 1]
    noise = float(np.mean(within)) if within else 0.0  # the variance of one trial, of any member
    codes = tuple(
        (column.position, tuple(own.index(cell) for cell in column.cells))
        for column, own in zip(used, kinds)
    )
    scores = {key: (float(np.mean(own)), (noise / len(own)) ** 0.5) for key, own in trials.items()}
    return ScoreTable(codes, scores, unmatched)


@dataclass(frozen=True)
class ScoreRecord:
    """A line of the journal: a member, and its score and noise or why it has none."""

    id: str
    architecture: str
    score: float | None = None
    noise: float = field(default=0.0, metadata={"least": 0})
    error: str | None = None

    def __post_init__(self) -> None:
        if self.score is None and self.error is None:
            raise ValueError("it has neither a score nor an error")


def make_scorer(score: Callable[[Any], Any], usual: float = 0.0) -> Callable[[Any], Record]:
    """What a worker does: the record of a member's score; `ValueError` if that is not finite.

    A score may come with its noise (its standard deviation as a measurement), as a pair; else it
    is the `usual` one.
    """

    def scorer(member: Any) -> Record:
        given = score(member)
        value, noise = given if isinstance(given, tuple) else (given, usual)
        record = {"score": float(value)} | ({"noise": float(noise)} if noise else {})
        if not math.isfinite(record["score"]):
            raise ValueError(f"the score is {record['score']}")
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"the noise of the score is {noise}")
        return record

    return scorer


def score_paths(
    space: Any, texts: Texts, by_path: bool, ledger: Ledger, advance: Advance, paths: Ints
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
    records = ledger.score(tasks, lambda record: advance(1))
    return [
        Score(r.get("score", math.nan), r.get("noise", 0.0) ** 2, r.get("error", ""))
        for r in records
    ]
