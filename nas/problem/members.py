"""Members of a user's space in words: an id, a line of JSON, and a row of a table for each.

The path of a member (the index of the value chosen at each position) is its identity. Its fields
are not: values of two classes may have the same fields, and unequal values the same text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from nas.errors import UsageError
from nas.space.domains import Fixed, Repeat, Space
from nas.space.rules import ENDED, Position
from nas.strategy.constraints import Limit
from nas.trellis.graph import Floats, Ints, decode

RESULTS = ("latency", "score", "expected_score")  # what a table says of members besides


@dataclass(frozen=True, eq=False)
class Column:
    """One field of what a position chooses: `cells` holds that of each of its values.

    The cell is `ENDED` where a value has no such field. A column called like its position tells
    apart values whose fields do not: it holds the names of their classes, or the values themselves.
    """

    name: str
    position: int
    cells: tuple[Any, ...]


def columns_of(positions: Sequence[Position]) -> tuple[Column, ...]:
    """The columns of a table with a row for each member, such that no two rows are the same.

    A choice that is called like a result, such as `score`, has a column `choice.score`.
    """
    found = []
    for i, position in enumerate(positions):
        rows = [{} if v is ENDED else flat(v, position.name) for v in position.values]
        kinds = _kinds(position.values)
        if len(set(kinds) - {ENDED}) > 1:
            rows = [{**row, position.name: kind} for row, kind in zip(rows, kinds)]
        if len(set(map(repr, rows))) < len(rows):
            rows = [{**row, position.name: v} for row, v in zip(rows, position.values)]
        for name in dict.fromkeys(name for row in rows for name in row):
            called = f"choice.{name}" if name in RESULTS else name
            found.append(Column(called, i, tuple(row.get(name, ENDED) for row in rows)))
    return tuple(found)


def _kinds(values: Sequence[Any]) -> list[Any]:
    """What each value is: the name of its class, itself if it has no fields; `ENDED` if none has.

    Classes of one name are called by their modules, too.
    """
    classes = {type(v) for v in values if _is_record(v)}
    names = Counter(c.__name__ for c in classes)

    def kind(value: Any) -> Any:
        if value is ENDED or not classes:
            return ENDED
        own = type(value)
        named = own.__name__ if names[own.__name__] == 1 else value_text(own)
        return named if own in classes else value

    return [kind(value) for value in values]


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The choices of a value by name, as in `blocks[2].heads`."""
    if _is_record(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        parts = [flat(v, f"{name}.{k}".lstrip(".")) for k, v in value.items()]
    elif isinstance(value, tuple | list):
        parts = [flat(v, f"{name}[{i}]") for i, v in enumerate(value)]
    else:
        return {name: value}
    return {k: v for part in parts for k, v in part.items()}


def member_id(path: Sequence[int]) -> str:
    """The identity of a member as text: the indices of its values, as in `0-3-1`."""
    return "-".join(map(str, path))


def find(cell: Any, values: Sequence[Any]) -> int | None:
    """The index of the value that a cell of a table stands for; None if none or several may be.

    An empty cell (None or nan) stands for `None`, else for `ENDED`. Tables that were text once hold
    whole numbers as floats, or any value by its text.
    """
    cell = cell.item() if hasattr(cell, "item") else cell
    if cell is None or cell != cell:
        found = [i for i, v in enumerate(values) if v is None or v != v] or [
            i for i, v in enumerate(values) if v is ENDED
        ]
        if cell is not None and None in values and ENDED in values:
            return None  # it may be either
    else:
        found = [i for i, v in enumerate(values) if v is cell or v == cell] or [
            i for i, v in enumerate(values) if value_text(v) == str(cell)
        ]
    return found[0] if len(found) == 1 else None


class Checks:
    """What the checks of a space and its dataclasses refuse, as a cost of paths: 0, or 1."""

    def __init__(self, space: Any) -> None:
        self._space = space
        self.any = isinstance(space, Space) and _checked(space)
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, paths: Ints) -> Floats:
        """For each path of (paths, positions), 1 if it is refused, else 0."""
        return np.array([self._refused(tuple(path)) for path in paths.tolist()], dtype=float)

    def _refused(self, path: tuple[int, ...]) -> float:
        if not self.any:
            return 0.0
        if path not in self._known:
            try:
                decode(self._space, np.array(path))
                self._known[path] = 0.0
            except (ValueError, AssertionError):
                self._known[path] = 1.0
            except UsageError:  # of a check that raises
                raise
            except Exception as error:
                raise UsageError(
                    f"a member cannot be made: {type(error).__name__}: {error}",
                    "mend its dataclass; it may refuse a combination by a ValueError",
                ) from error
        return self._known[path]

    @property
    def limits(self) -> list[Limit]:
        """The limit that members can be made, where their dataclasses check anything."""
        name = "what the space allows"
        return [Limit(name, 0.0, self, counted="refused")] if self.any else []


def _checked(domain: Any) -> bool:
    """Whether a dataclass checks a combination of choices, other than those that are one choice."""
    if isinstance(domain, Space):
        own = bool(domain.checks) or hasattr(domain.of, "__post_init__")
        return own or any(_checked(d) for _, d in domain.domains)
    if isinstance(domain, Repeat):
        return any(v is None and _checked(d) for d, v in zip(domain.items, domain.values))
    return isinstance(domain, Fixed) and any(map(_checked, domain.items))


class Texts:
    """The members of a space as JSON in one line, different for any two of them.

    Classes are named where fields do not tell values apart, and paths where classes do not either.
    """

    def __init__(self, positions: Sequence[Position]) -> None:
        self._named = self._same(positions, named=False)
        self._numbered = self._named and self._same(positions, named=True)

    @staticmethod
    def _same(positions: Sequence[Position], named: bool) -> bool:
        texts = [[json.dumps(_plain(v, named)) for v in p.values] for p in positions]
        return any(len(set(own)) < len(own) for own in texts)

    def __call__(self, path: Sequence[int], member: Any) -> str:
        """The text of the member of a path."""
        data = _plain(member, self._named)
        data = {"path": member_id(path), **data} if self._numbered else data
        return json.dumps(data, separators=(",", ":"))


def _plain(value: Any, named: bool) -> Any:
    """A value as JSON has it."""
    if _is_record(value):
        kind = {"class": value_text(type(value))} if named else {}
        return {**kind, **{f.name: _plain(getattr(value, f.name), named) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, named) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v, named) for v in value]
    value = value.item() if hasattr(value, "item") else value
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else value_text(value)


def value_text(value: Any) -> str:
    """The text of a value, the same in every process: functions and classes by their names."""
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))
