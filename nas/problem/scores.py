"""A user's score, called by workers and kept in a ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from typing import Any

from nas.errors import UsageError
from nas.records import fingerprint
from nas.strategy.loop import Score
from nas.trellis.graph import Ints, decode
from nas.workers.ledger import Ledger, Record, Task


class Work:
    """A user's score, as a worker calls it."""

    def __init__(self, score: Any) -> None:
        self.score = score
        self.known: dict[str, float] | None = None
        if not callable(score):
            if "score" not in getattr(score, "columns", ()):
                raise UsageError(
                    f"a score cannot be {type(score).__name__} without a column called score",
                    "give a function, or a DataFrame with a column for each choice and score",
                )
            columns = [c for c in score.columns if c not in ("score", "latency")]
            self.columns = columns
            self.known = {
                _cells(dict(zip(columns, row[:-1]))): float(row[-1])
                for row in score[[*columns, "score"]].itertuples(index=False)
            }

    @property
    def fingerprint(self) -> str:
        """Of a table of scores; a function may be mended between a run and its continuation."""
        return "" if self.known is None else fingerprint(self.known)

    def __call__(self, architecture: Any) -> Record:
        if self.known is None:
            value = float(self.score(architecture))
        else:
            row = flat(architecture)
            key = _cells({c: row.get(c) for c in self.columns})
            if key not in self.known:
                raise KeyError(f"the table of scores has no row {key}")
            value = self.known[key]
        if not math.isfinite(value):
            raise ValueError(f"the score is {value}")
        return {"score": value}


def made(work: Work) -> Work:
    return work


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The fields of a member by name, as in `blocks[2].heads`."""
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
    """A row as text; empty cells, and whole numbers that became floats by them, as they were."""
    plain = {k: _plain(v) for k, v in sorted(row.items())}
    for name, value in plain.items():
        if isinstance(value, float):
            plain[name] = None if math.isnan(value) else int(value) if value % 1 == 0 else value
    return json.dumps(plain, default=str)


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item() if hasattr(value, "item") else value


def _json(architecture: Any) -> str:
    return json.dumps(
        asdict(architecture),
        separators=(",", ":"),
        default=lambda v: getattr(v, "item", v.__str__)(),
    )


def scored(space: Any, ledger: Ledger, paths: Ints) -> list[Score]:
    tasks = []
    for path in paths:
        member = decode(space, path)
        text = _json(member)
        name = sha256(text.encode()).hexdigest()[:12]
        tasks.append(Task(name, member, {"architecture": text}))
    records = ledger.score(tasks)
    return [Score(r.get("score", math.nan), error=r.get("error", "")) for r in records]
