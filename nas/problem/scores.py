"""Scores of a user's own: a function, or a table of known ones, called by workers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from hashlib import sha256
from typing import Any

from nas.errors import UsageError
from nas.records import fingerprint
from nas.strategy.loop import Score
from nas.trellis.graph import Ints, decode
from nas.workers.ledger import Ledger, Record, Task


@dataclass(frozen=True)
class ScoreTable:
    """The known scores of members, by the values of some of their choices (`read_score`)."""

    columns: tuple[str, ...]
    scores: Mapping[str, float]

    def __call__(self, member: Any) -> float:
        """The score of a member; `KeyError` if the table has none."""
        row = flat(member)
        key = _cells({c: row.get(c) for c in self.columns})
        if key not in self.scores:
            raise KeyError(f"the table of scores has no row {key}")
        return self.scores[key]

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any score."""
        return fingerprint(self.scores)


def read_score(given: Any) -> Callable[[Any], float]:
    """The function of a member that is given as such, or as a DataFrame with a column `score`.

    Each other column of the table but `latency` is a choice by name, as in `flat`.
    """
    if callable(given):
        function: Callable[[Any], float] = given
        return function
    if "score" not in getattr(given, "columns", ()):
        raise UsageError(
            f"a score cannot be {type(given).__name__} without a column called score",
            "give a function, or a DataFrame with a column for each choice and score",
        )
    columns = [c for c in given.columns if c not in ("score", "latency")]
    rows = given[[*columns, "score"]].itertuples(index=False)
    return ScoreTable(
        tuple(columns), {_cells(dict(zip(columns, row[:-1]))): float(row[-1]) for row in rows}
    )


def make_scorer(score: Callable[[Any], float]) -> Callable[[Any], Record]:
    """What a worker does: the record of a member's score; `ValueError` if that is not finite."""

    def scorer(member: Any) -> Record:
        value = float(score(member))
        if not math.isfinite(value):
            raise ValueError(f"the score is {value}")
        return {"score": value}

    return scorer


def score_paths(space: Any, ledger: Ledger, paths: Ints) -> list[Score]:
    """The scores of paths (n, positions), from the ledger where it has them, else from workers."""
    tasks = []
    for path in paths:
        member = decode(space, path)
        text = _json(member)
        name = sha256(text.encode()).hexdigest()[:12]
        tasks.append(Task(name, member, {"architecture": text}))
    records = ledger.score(tasks)
    return [Score(r.get("score", math.nan), error=r.get("error", "")) for r in records]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The choices of a member by name, as in `blocks[2].heads`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        parts = [flat(v, f"{name}.{k}".lstrip(".")) for k, v in value.items()]
    elif isinstance(value, tuple | list):
        parts = [flat(v, f"{name}[{i}]") for i, v in enumerate(value)]
    else:
        return {name: value}
    return {k: v for part in parts for k, v in part.items()}


def _cells(row: Mapping[str, Any]) -> str:
    """A row as text, the same for a member and for the row of a DataFrame that holds it.

    There an empty cell is nan, and whole numbers in a column with one have become floats.
    """
    plain = {k: _plain(v) for k, v in sorted(row.items())}
    for name, value in plain.items():
        if isinstance(value, float):
            plain[name] = None if math.isnan(value) else int(value) if value % 1 == 0 else value
    return json.dumps(plain, default=str)


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item() if hasattr(value, "item") else value


def _json(member: Any) -> str:
    return json.dumps(
        asdict(member), separators=(",", ":"), default=lambda v: getattr(v, "item", v.__str__)()
    )
