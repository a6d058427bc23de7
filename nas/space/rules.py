"""Rules between the choices of a space: what a walk over them remembers, and what it refuses.

A rule belongs to a container (`Fixed`, `Repeat`) and holds within it. Its last value is part of the
walk's state from its first position to its last and no longer, so that states stay few. All that
goes over choices one by one asks the same `Walk`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from typing import Any, Protocol

from nas.errors import UsageError

_RELATIONS = {
    "<=": (operator.le, "must not decrease"),
    ">=": (operator.ge, "must not increase"),
    "==": (operator.eq, "must stay the same"),
}

Last = tuple[Any, ...]  # what a rule remembers; () is nothing


class End(Enum):
    """The value of the positions after the last item of a `Repeat`, which nothing else equals."""

    ENDED = "ended"

    def __repr__(self) -> str:
        return self.value

    __str__ = __repr__


ENDED = End.ENDED


class Rule(Protocol):
    """What the value of one position allows at the next, within a container."""

    def reads(self, name: str, value: Any) -> Last:
        """What the rule is about in the value of a position."""

    def after(self, last: Last, name: str, value: Any) -> Last | None:
        """What to remember after this value; None if it is not allowed after `last`."""


@dataclass(frozen=True)
class Position:
    """One choice to make; `ENDED` among the values means that a `Repeat` has ended.

    `rules` are those of the containers it is in, each with its container's name.
    """

    name: str
    values: tuple[Any, ...]
    rules: tuple[tuple[str, Rule], ...] = ()

    def under(self, container: str, *rules: Rule) -> Position:
        """The position within a container that has a name and rules of its own."""
        own = tuple((container, rule) for rule in rules)
        return replace(self, rules=(*own, *self.rules)) if own else self


@dataclass(frozen=True)
class Along:
    """Each value of `field` has a relation to the next one in a container.

    `<=`: they do not decrease, `>=`: they do not increase, `==`: they stay the same. The field may
    be at any depth: of the entries, of their parts, or the name of the container itself.
    """

    field: str
    relation: str

    def __post_init__(self) -> None:
        if self.relation not in _RELATIONS:
            raise UsageError(
                f"a relation is one of {', '.join(_RELATIONS)}, got {self.relation!r:.100}",
                'e.g. nas.Along("width", "<=")',
            )

    def reads(self, name: str, value: Any) -> Last:
        """The values of the field in `value`, in order."""
        return tuple(_found(name, value, self.field))

    def after(self, last: Last, name: str, value: Any) -> Last | None:
        """The last value of the field, or None if it breaks the relation to the one before."""
        holds = _RELATIONS[self.relation][0]
        for found in self.reads(name, value):
            try:
                if last and not holds(last[0], found):
                    return None
            except TypeError:
                raise UsageError(
                    f"{self.field} has {last[0]!r} and {found!r}, which have no order",
                    "use numbers, or the relation ==",
                ) from None
            last = (found,)
        return last

    def check(self, name: str, value: Any) -> None:
        """Raises `UsageError` if the container `name` has a `value` that breaks the rule."""
        if self.after((), name, value) is None:
            got = ", ".join(map(str, self.reads(name, value)))
            raise UsageError(
                f"{name}: {self.field} {_RELATIONS[self.relation][1]} from one to the next "
                f"({self.relation}), got {got}",
                f"choose {self.field} in that order",
            )


def _found(name: str, value: Any, field: str) -> Iterator[Any]:
    """The values of `field` in a value called `name`, in order, whatever contains them."""
    if isinstance(value, tuple):
        for entry in value:
            yield from _found(name, entry, field)
    elif value is not ENDED and name.rpartition(".")[2].partition("[")[0] == field:
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for inner in value.__dataclass_fields__:
            yield from _found(inner, getattr(value, inner), field)


_OVER = -1


@dataclass(frozen=True)
class Length:
    """A sequence ends (its values are `ENDED` from there on) after one of `times` items.

    It may also have none, whatever `times` says, where what contains it may be `absent`.
    """

    times: tuple[int, ...]
    absent: bool = False

    def reads(self, name: str, value: Any) -> Last:
        """The value itself: whether it is `ENDED` is all that counts."""
        return (value,)

    def after(self, last: Last, name: str, value: Any) -> Last | None:
        """The number of items so far, or None where the sequence may not end or go on."""
        length = last[0] if last else 0
        if value is ENDED:
            may_end = length in (_OVER, *self.times) or (self.absent and not length)
            return (_OVER,) if may_end else None
        return None if length == _OVER else (length + 1,)


@dataclass(frozen=True)
class Together:
    """The positions of an item are all `ENDED`, or the item is there.

    Then those called `always` have another value; others may still be `ENDED`.
    """

    always: tuple[str, ...]

    def reads(self, name: str, value: Any) -> Last:
        """The value itself: whether it is `ENDED` is all that counts."""
        return (value,)

    def after(self, last: Last, name: str, value: Any) -> Last | None:
        """Whether the item is there, as far as that is known; None if it was said otherwise."""
        there = value is not ENDED
        if not there and name not in self.always:
            return last
        return None if last and last[0] != there else (there,)


class Walk:
    """One choice after another: what to remember for the rules of the positions."""

    def __init__(self, positions: Sequence[Position]) -> None:
        spans: dict[tuple[str, Rule], list[int]] = {}
        for i, position in enumerate(positions):
            for container, rule in position.rules:
                span = spans.setdefault((container, rule), [])
                span += [i] if any(rule.reads(position.name, v) for v in position.values) else []
        self._names = [position.name for position in positions]
        self._start: tuple[Last, ...] = ((),) * len(spans)
        self._at: list[list[tuple[int, Rule, bool]]] = [[] for _ in positions]
        for slot, ((container, rule), span) in enumerate(spans.items()):
            if not span:
                raise UsageError(
                    f"{rule}: {container} has no choice of that name",
                    "give a rule the name of a field of the items",
                )
            for i in span:
                self._at[i].append((slot, rule, i == span[-1]))

    def advance(self, index: int, last: tuple[Last, ...] | None, value: Any) -> Any:
        """What to remember after `value` at position `index`; None if a rule forbids it.

        `last` is what this returned at the position before, None at the first.
        """
        last = self._start if last is None else last
        for slot, rule, over in self._at[index]:
            after = rule.after(last[slot], self._names[index], value)
            if after is None:
                return None
            last = (*last[:slot], () if over else after, *last[slot + 1 :])
        return last

    def allows(self, values: Sequence[Any]) -> bool:
        """Whether these values, one for each position, obey all rules."""
        last = self._start
        for i, value in enumerate(values):
            if (last := self.advance(i, last, value)) is None:
                return False
        return True
