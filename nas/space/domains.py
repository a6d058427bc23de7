"""Search spaces as data: a domain for every field of an architecture.

Four domains compose every space: `Choice` (one value of a few), `Space` (one domain per field of
a dataclass), `Fixed` (one domain per entry of a tuple) and `Repeat` (a variable number of items).
An architecture and the flat tuple of its choices are the same thing: `positions` lists what is
chosen in order, `flatten` and `assemble` go from one form to the other. Everything that samples,
varies or encodes architectures works on the flat form and is therefore written once. What choices
allow each other is a matter of `rules` (see `nas.space.rules`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Generic, Protocol, TypeVar

from nas.errors import UsageError
from nas.space.rules import ENDED, Along, Length, Position, Walk

S = TypeVar("S")


class Domain(Protocol):
    """A finite set of values and the flat sequence of choices that picks one."""

    def positions(self, name: str) -> Iterator[Position]: ...
    def flatten(self, value: Any) -> Iterator[Any]: ...
    def assemble(self, values: Iterator[Any]) -> Any: ...
    def parse(self, data: Any, name: str) -> Any: ...


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few values, written from the cheapest to the most expensive."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if not values or len(set(values)) < len(values):
            raise ValueError(f"a Choice needs distinct values, at least one, got {values}")
        object.__setattr__(self, "values", values)

    def positions(self, name: str) -> Iterator[Position]:
        yield Position(name, self.values)

    def flatten(self, value: Any) -> Iterator[Any]:
        yield value

    def assemble(self, values: Iterator[Any]) -> Any:
        return next(values)

    def parse(self, data: Any, name: str) -> Any:
        if data not in self.values:
            raise UsageError(
                f"{name} must be one of {', '.join(map(str, self.values))}, got {data!r}"
            )
        return self.values[self.values.index(data)]


@dataclass(frozen=True, init=False)
class Space(Generic[S]):
    """A domain for every field of the dataclass `of`."""

    of: type[S]
    domains: tuple[tuple[str, Domain], ...]

    def __init__(self, of: type[S], **domains: Domain) -> None:
        names = [f.name for f in fields(of)]  # type: ignore[arg-type]
        if set(names) != set(domains):
            raise TypeError(
                f"{of.__name__} has the fields {names}, the space gives domains for "
                f"{sorted(domains)}: each field needs exactly one"
            )
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "domains", tuple((name, domains[name]) for name in names))

    def positions(self, name: str = "") -> Iterator[Position]:
        for field, domain in self.domains:
            yield from domain.positions(f"{name}.{field}".lstrip("."))

    @cached_property
    def choices(self) -> tuple[Position, ...]:
        """All positions. Kept by the space itself: others may be equal to it, as 1 is to True."""
        return tuple(self.positions())

    def flatten(self, value: Any) -> Iterator[Any]:
        for field, domain in self.domains:
            yield from domain.flatten(getattr(value, field))

    def assemble(self, values: Iterator[Any]) -> S:
        return self.of(**{field: domain.assemble(values) for field, domain in self.domains})

    def parse(self, data: Any, name: str = "architecture") -> S:
        """The value that `data` (parsed JSON) describes; raises `UsageError` naming the field."""
        names = [field for field, _ in self.domains]
        if not isinstance(data, dict) or set(data) != set(names):
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise UsageError(f"{name} must be an object with the keys {names}, got {got}")
        return self.of(**{f: d.parse(data[f], f"{name}.{f}") for f, d in self.domains})

    def values(self) -> tuple[S, ...]:
        """Every value, first field slowest; for small spaces such as that of one block."""
        positions = tuple(self.positions())
        walk = Walk(positions)
        combos = itertools.product(*(position.values for position in positions))
        return tuple(self.assemble(iter(combo)) for combo in combos if walk.allows(combo))


@dataclass(frozen=True, init=False)
class Fixed:
    """A tuple with one domain per entry, and rules along them."""

    items: tuple[Domain, ...]
    rules: tuple[Along, ...]

    def __init__(self, *items: Domain, rules: tuple[Along, ...] = ()) -> None:
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "rules", rules)

    def positions(self, name: str) -> Iterator[Position]:
        for i, item in enumerate(self.items):
            for position in item.positions(f"{name}[{i}]"):
                yield position.under(name, *self.rules)

    def flatten(self, value: Any) -> Iterator[Any]:
        for item, v in zip(self.items, value, strict=True):
            yield from item.flatten(v)

    def assemble(self, values: Iterator[Any]) -> Any:
        return tuple(item.assemble(values) for item in self.items)

    def parse(self, data: Any, name: str) -> Any:
        if not isinstance(data, Sequence) or len(data) != len(self.items):
            raise UsageError(f"{name} must be a list of {len(self.items)} entries, got {data!r}")
        return _parse_items(self, data, name)


@dataclass(frozen=True, init=False)
class Repeat:
    """As many items as one of `times` says; each item is one position of the flat form.

    `item` is the domain of every item, or a tuple with one domain for each index; `times` is a
    number or a choice of numbers, which are kept in rising order; `rules` hold along the items.
    `ENDED` stands for no item. Raises `UsageError` unless the numbers are whole and not negative.
    """

    item: Space[Any] | Choice | tuple[Space[Any] | Choice, ...]
    times: Choice
    rules: tuple[Along, ...]

    def __init__(
        self,
        item: Space[Any] | Choice | Sequence[Space[Any] | Choice],
        times: Choice | int,
        rules: tuple[Along, ...] = (),
    ) -> None:
        object.__setattr__(self, "item", tuple(item) if isinstance(item, Sequence) else item)
        object.__setattr__(self, "times", _whole(times))
        object.__setattr__(self, "rules", rules)

    @cached_property
    def items(self) -> tuple[Space[Any] | Choice, ...]:
        longest = self.times.values[-1]
        items = self.item if isinstance(self.item, tuple) else (self.item,) * longest
        if len(items) != longest:
            raise ValueError(f"{len(items)} domains for up to {longest} items")
        return items

    def positions(self, name: str) -> Iterator[Position]:
        for i, item in enumerate(self.items):
            end = (ENDED,) if i >= self.times.values[0] else ()
            values = item.values if isinstance(item, Choice) else item.values()
            position = Position(f"{name}[{i}]", (*end, *values))
            yield position.under(name, Length(self.times.values), *self.rules)

    def flatten(self, value: Any) -> Iterator[Any]:
        yield from value
        yield from itertools.repeat(ENDED, self.times.values[-1] - len(value))

    def assemble(self, values: Iterator[Any]) -> Any:
        taken = itertools.islice(values, self.times.values[-1])
        return tuple(v for v in list(taken) if v is not ENDED)

    def parse(self, data: Any, name: str) -> Any:
        if not isinstance(data, Sequence) or len(data) not in self.times.values:
            lengths = ", ".join(map(str, self.times.values))
            raise UsageError(f"{name} must be a list of {lengths} blocks, got {data!r}")
        return _parse_items(self, data, name)


def _whole(times: Choice | int) -> Choice:
    """The numbers of items that a `Repeat` may have, in rising order."""
    numbers = times.values if isinstance(times, Choice) else (times,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Integral) or int(number) < 0:
            raise UsageError(
                f"the times of a Repeat must be whole numbers, 0 or more, got {number!r}",
                "e.g. Repeat(item, 3) or Repeat(item, Choice(2, 3, 4))",
            )
    return Choice(*sorted(map(int, numbers)))


def _parse_items(domain: Fixed | Repeat, data: Sequence[Any], name: str) -> tuple[Any, ...]:
    items = enumerate(zip(domain.items, data))
    value = tuple(item.parse(entry, f"{name}[{i}]") for i, (item, entry) in items)
    for rule in domain.rules:
        rule.check(name, value)
    return value


def restrict(domain: Any, field: str, *values: Any) -> Any:
    """The domain in which every choice of `field`, at any depth, is one of `values`.

    A choice that has none of them stays as it is (a block that cannot be pruned stays dense).
    """

    def narrowed(choice: Choice) -> Choice:
        left = [v for v in choice.values if v in values]
        return Choice(*left) if left else choice

    return rewrite(domain, field, narrowed)


def rewrite(domain: Any, field: str, change: Callable[[Choice], Choice]) -> Any:
    """The domain with every choice of `field`, at any depth, changed."""
    if isinstance(domain, Space):
        domains = {
            name: change(inner) if name == field else rewrite(inner, field, change)  # type: ignore[arg-type]
            for name, inner in domain.domains
        }
        return Space(domain.of, **domains)
    if isinstance(domain, Fixed):
        return Fixed(*(rewrite(item, field, change) for item in domain.items), rules=domain.rules)
    if isinstance(domain, Repeat):
        return replace(domain, item=tuple(rewrite(item, field, change) for item in domain.items))
    return domain
