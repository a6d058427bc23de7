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
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from numbers import Integral
from typing import Any, Generic, Protocol, TypeVar

from nas.errors import UsageError
from nas.space.rules import ENDED, Along, Length, Position, Together, Walk

S = TypeVar("S")
MOST_VALUES = 4096  # of one position: the trellis has an edge for each, in each of its states
_MOST_TRIED = 2**16  # combinations, most of them refused, after which no more values are looked for


class Domain(Protocol):
    """A finite set of values and the flat sequence of choices that picks one."""

    def positions(self, name: str) -> Iterator[Position]:
        """Yield what is chosen, in order; names begin with `name`."""

    def flatten(self, value: Any) -> Iterator[Any]:
        """Yield the choices that make `value`, one for each position."""

    def assemble(self, values: Iterator[Any]) -> Any:
        """Take one choice for each position from `values` and make the value of them."""

    def parse(self, data: Any, name: str) -> Any:
        """Make the value of parsed JSON; raises `UsageError`, which calls it `name`."""


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few values, written from the cheapest to the most expensive.

    Values are hashable and distinct. One list, tuple or other collection by itself is refused,
    for it is seldom meant as one value. Raises `UsageError`.
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if len(values) == 1 and _is_collection(values[0]):
            kind = type(values[0]).__name__
            raise UsageError(
                f"a Choice takes its values one by one, got one {kind}",
                "write Choice(16, 32) or Choice(*values); for one tuple Fixed(Choice(16), ...)",
            )
        for value in values:
            _require_hash(value)
        if not values or len(set(values)) < len(values):
            raise UsageError(
                f"a Choice needs distinct values, at least one, got {reprlib.repr(values)}",
                "give each value once; Python takes 1, 1.0 and True for the same",
            )
        object.__setattr__(self, "values", values)

    def only(self, values: Sequence[Any]) -> Choice:
        """The choice of those of its values that are among `values`; itself if none is."""
        narrowed = copy(self)
        left = tuple(v for v in self.values if v in values)
        object.__setattr__(narrowed, "values", left or self.values)
        return narrowed

    def positions(self, name: str) -> Iterator[Position]:
        """Yield its one position."""
        yield Position(name, self.values)

    def flatten(self, value: Any) -> Iterator[Any]:
        """Yield the value itself: it is the only choice."""
        yield value

    def assemble(self, values: Iterator[Any]) -> Any:
        """Return the next choice."""
        return next(values)

    def parse(self, data: Any, name: str) -> Any:
        """Return the value equal to `data`; raises `UsageError` if there is none."""
        if isinstance(data, list):  # what JSON makes of a tuple
            data = tuple(data)
        for value in self.values:
            if value == data and isinstance(value, bool) == isinstance(data, bool):
                return value
        raise UsageError(
            f"{name} must be one of {', '.join(map(str, self.values))}, got {reprlib.repr(data)}",
            f"the closest is {self._closest(data)}",
        )

    def _closest(self, data: Any) -> Any:
        """The value that `data` was perhaps meant to be."""
        numbers = [v for v in self.values if isinstance(v, int | float)]
        if numbers and isinstance(data, int | float):
            return min(numbers, key=lambda v: abs(v - data) if abs(data) < 1e15 else 0)
        close = get_close_matches(str(data)[:40], map(str, self.values), n=1, cutoff=0)
        return close[0] if close else self.values[0]


@dataclass(frozen=True, init=False)
class Space(Generic[S]):
    """A domain for every field of the dataclass `of`, and what its values must be (`where`)."""

    of: type[S]
    domains: tuple[tuple[str, Domain], ...]
    checks: tuple[Callable[[S], bool], ...]

    def __init__(self, of: type[S], /, **domains: Domain) -> None:
        if not (isinstance(of, type) and is_dataclass(of)):
            raise UsageError(
                f"a Space is of a dataclass, got {of!r:.100}", "write nas.Space(Net, width=...)"
            )
        names = [f.name for f in fields(of) if f.init]
        for name, domain in domains.items():
            _require_domain(name, domain)
        if set(names) != set(domains):
            odd = sorted(set(names) ^ set(domains))
            raise UsageError(
                f"each field of {of.__name__} needs exactly one domain; "
                f"not so {', '.join(odd[:4])}" + ", ..." * (len(odd) > 4),
                f"its fields are {', '.join(names[:4])}" + ", ..." * (len(names) > 4),
            )
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "domains", tuple((name, domains[name]) for name in names))
        object.__setattr__(self, "checks", ())

    def where(self, *checks: Callable[[S], bool]) -> Space[S]:
        """The part of this space whose values make every check true: functions of a value.

        What the checks of the whole space refuse is drawn, rejected and counted; those of an item
        of a `Repeat`, which is one choice, leave its values out before anything is drawn.
        """
        for check in checks:
            if not callable(check):
                raise UsageError(
                    f"a check must be a function of a {self.of.__name__}, got {check!r:.60}",
                    "e.g. .where(lambda net: net.depth * net.width <= 512)",
                )
        narrowed = copy(self)
        object.__setattr__(narrowed, "checks", (*self.checks, *checks))
        return narrowed

    def positions(self, name: str = "") -> Iterator[Position]:
        """Yield the positions of all fields, in the order of the dataclass."""
        for field, domain in self.domains:
            yield from domain.positions(f"{name}.{field}".lstrip("."))

    @cached_property
    def choices(self) -> tuple[Position, ...]:
        """All positions. Kept by the space itself: others may be equal to it, as 1 is to True."""
        return tuple(self.positions())

    def flatten(self, value: Any) -> Iterator[Any]:
        """Yield the choices of all fields, in the order of the dataclass."""
        for field, domain in self.domains:
            yield from domain.flatten(getattr(value, field))

    def assemble(self, values: Iterator[Any]) -> S:
        """Make an instance of the dataclass; `ValueError` where it or a check refuses the choices.

        A check that raises anything is a `UsageError`.
        """
        made = self.of(**{field: domain.assemble(values) for field, domain in self.domains})
        self._require(made)
        return made

    def _require(self, made: S) -> None:
        for check in self.checks:
            name = getattr(check, "__name__", repr(check))
            try:
                holds = bool(check(made))
            except Exception as error:
                raise UsageError(
                    f"the check {name} raised {type(error).__name__} for {made!r:.100}: {error}",
                    "mend the function: it is called with a value of its space",
                ) from error
            if not holds:
                raise ValueError(f"the check {name} does not hold")

    def parse(self, data: Any, name: str = "architecture") -> S:
        """The value that `data` (parsed JSON) describes; raises `UsageError` naming the field."""
        names = [field for field, _ in self.domains]
        if not isinstance(data, dict) or set(data) != set(names):
            given = list(data) if isinstance(data, dict) else []
            missing = [key for key in names if key not in given]
            more = [key for key in given if key not in names]
            changes = (("add", missing), ("leave out", more))
            got = ", ".join(map(str, given)) if given else reprlib.repr(data)
            raise UsageError(
                f"{name} must be an object with the keys {', '.join(names)}, got {got}",
                " and ".join(f"{verb} {', '.join(keys)}" for verb, keys in changes if keys),
            )
        chosen = {f: d.parse(data[f], f"{name}.{f}") for f, d in self.domains}
        try:
            made = self.of(**chosen)
            self._require(made)
        except (ValueError, AssertionError) as error:
            raise UsageError(f"{name}: {error}", "choose another combination") from None
        return made

    def values(self) -> tuple[S, ...]:
        """Every value, first field slowest; for small spaces such as that of one block.

        What the dataclass refuses with a `ValueError` is none. Raises `UsageError` where there are
        more than `MOST_VALUES`, or none.
        """
        return _values_of(self)


@dataclass(frozen=True, init=False)
class Fixed:
    """A tuple with one domain per entry, and rules along them."""

    items: tuple[Domain, ...]
    rules: tuple[Along, ...]

    def __init__(self, *items: Domain, rules: Along | Sequence[Along] = ()) -> None:
        for i, item in enumerate(items):
            _require_domain(f"entry {i}", item)
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "rules", _rules(rules))

    def positions(self, name: str) -> Iterator[Position]:
        """Yield the positions of all entries; the rules hold along them."""
        for i, item in enumerate(self.items):
            for position in item.positions(f"{name}[{i}]"):
                yield position.under(name, *self.rules)

    def flatten(self, value: Any) -> Iterator[Any]:
        """Yield the choices of all entries."""
        for item, v in zip(self.items, value, strict=True):
            yield from item.flatten(v)

    def assemble(self, values: Iterator[Any]) -> Any:
        """Make the tuple of all entries."""
        return tuple(item.assemble(values) for item in self.items)

    def parse(self, data: Any, name: str) -> Any:
        """Make the tuple of a list; raises `UsageError` if it breaks a rule."""
        if not isinstance(data, Sequence) or len(data) != len(self.items):
            raise UsageError(
                f"{name} must be a list of {len(self.items)} entries, got {reprlib.repr(data)}",
                _other_length(data, len(self.items)),
            )
        return _parse_items(self, data, name)


@dataclass(frozen=True, init=False)
class Repeat:
    """As many items as one of `times` says; each item is one position of the flat form, or several.

    `item` is the domain of every item, or a tuple with one domain for each index; `times` is a
    number or a choice of numbers, which are kept in rising order; `rules` hold along the items.
    `ENDED` stands for no item. Raises `UsageError` unless the numbers are whole and not negative.
    """

    item: Domain | tuple[Domain, ...]
    times: Choice
    rules: tuple[Along, ...]

    def __init__(
        self,
        item: Domain | Sequence[Domain],
        times: Choice | int,
        rules: Along | Sequence[Along] = (),
    ) -> None:
        for own in item if isinstance(item, Sequence) else (item,):
            _require_domain("an item", own)
        object.__setattr__(self, "item", tuple(item) if isinstance(item, Sequence) else item)
        object.__setattr__(self, "times", _whole(times))
        object.__setattr__(self, "rules", _rules(rules))

    @cached_property
    def items(self) -> tuple[Domain, ...]:
        """One domain for each index that an item may have."""
        longest = self.times.values[-1]
        items = self.item if isinstance(self.item, tuple) else (self.item,) * longest
        if len(items) != longest:
            raise UsageError(
                f"a Repeat has {len(items)} domains for up to {longest} items",
                "give one domain, or a tuple with one for each item",
            )
        return items

    @cached_property
    def values(self) -> tuple[tuple[Any, ...] | None, ...]:
        """The values of each item, which is one choice of them; None where these are too many."""
        found = {key: _few_values(item) for key, item in {id(x): x for x in self.items}.items()}
        return tuple(found[id(item)] for item in self.items)

    def positions(self, name: str) -> Iterator[Position]:
        """Yield a position for each item; `ENDED` is a value of those that may be absent.

        An item of more than `MOST_VALUES` values has the positions of its own domain.
        """
        length = Length(self.times.values)
        for i, (item, values) in enumerate(zip(self.items, self.values)):
            optional, own = i >= self.times.values[0], f"{name}[{i}]"
            if values is None:
                yield from self._parts(name, own, tuple(item.positions(own)), optional)
            else:
                position = Position(own, (*((ENDED,) if optional else ()), *values))
                yield position.under(name, length, *self.rules)

    def _parts(
        self, name: str, own: str, inner: tuple[Position, ...], optional: bool
    ) -> Iterator[Position]:
        """The positions of an item called `own` that is several; all are `ENDED` or the item is."""
        always = [position.name for position in inner if ENDED not in position.values]
        if not always:
            raise UsageError(
                f"an item of {name} may be empty, and has too many values to be one choice",
                "give it a choice that is always made, or Repeat(..., 1) or more inside",
            )
        for position in inner:
            if optional:
                end = () if ENDED in position.values else (ENDED,)
                rules = tuple(
                    (c, replace(rule, absent=True) if isinstance(rule, Length) else rule)
                    for c, rule in position.rules
                )
                position = Position(position.name, (*end, *position.values), rules)
                position = position.under(own, Together(tuple(always)))
            length = [Length(self.times.values)] if position.name == always[0] else []
            yield position.under(name, *length, *self.rules)

    @cached_property
    def _widths(self) -> tuple[int, ...]:
        """The number of positions of each item that is several; 0 of one that is one choice."""
        return tuple(
            0 if values is not None else sum(1 for _ in item.positions(""))
            for item, values in zip(self.items, self.values)
        )

    def flatten(self, value: Any) -> Iterator[Any]:
        """Yield the items, or their parts, and `ENDED` for those that are absent."""
        for i, (item, width) in enumerate(zip(self.items, self._widths)):
            if i >= len(value):
                yield from itertools.repeat(ENDED, width or 1)
            elif width:
                yield from item.flatten(value[i])
            else:
                yield value[i]

    def assemble(self, values: Iterator[Any]) -> Any:
        """Make the tuple of the items before `ENDED`."""
        found = []
        for item, width in zip(self.items, self._widths):
            taken = list(itertools.islice(values, width or 1))
            if any(v is not ENDED for v in taken):
                found.append(item.assemble(iter(taken)) if width else taken[0])
        return tuple(found)

    def parse(self, data: Any, name: str) -> Any:
        """Make the tuple of a list; raises `UsageError` if it breaks a rule."""
        if not isinstance(data, Sequence) or len(data) not in self.times.values:
            lengths = ", ".join(map(str, self.times.values))
            raise UsageError(
                f"{name} must be a list of {lengths} blocks, got {reprlib.repr(data)}",
                _other_length(data, *self.times.values),
            )
        return _parse_items(self, data, name)


def _values_of(domain: Domain) -> tuple[Any, ...]:
    """Every value of a domain, the first position slowest; `UsageError` if there are too many."""
    found = _few_values(domain)
    if found is None:
        raise UsageError(
            f"there are more than {MOST_VALUES:,} values", "list those of a smaller part"
        )
    return found


def _few_values(domain: Domain) -> tuple[Any, ...] | None:
    """Every value of a domain, the first position slowest; None if there are too many to try."""
    if isinstance(domain, Choice):
        return domain.values
    found: list[Any] = []
    refused = ""
    for tried, combo in enumerate(_allowed(tuple(domain.positions("")))):
        if len(found) > MOST_VALUES or tried > _MOST_TRIED:
            return None
        try:
            found.append(domain.assemble(iter(combo)))
        except (ValueError, AssertionError) as error:
            refused = f": {error}"
    if len(found) > MOST_VALUES:
        return None
    if not found:
        raise UsageError(f"the space has no value{refused}", "loosen a rule or a check")
    _require_hash(found[0])
    return tuple(found)


def _allowed(positions: tuple[Position, ...]) -> Iterator[tuple[Any, ...]]:
    """All values of positions that obey their rules, the first position slowest."""
    walk = Walk(positions)
    dead: set[tuple[int, Any]] = set()

    def onward(index: int, last: Any) -> Iterator[tuple[Any, ...]]:
        if index == len(positions):
            yield ()
            return
        leads_on = False
        for value in positions[index].values:
            after = walk.advance(index, last, value)
            if after is not None and (index + 1, after) not in dead:
                for rest in onward(index + 1, after):
                    leads_on = True
                    yield (value, *rest)
        if not leads_on:
            dead.add((index, last))

    return onward(0, None)


def _other_length(data: Any, *lengths: int) -> str:
    """The advice for what is no list of one of these lengths."""
    if not isinstance(data, list | tuple):
        return "write a list: [...]"
    more = min(lengths, key=lambda length: abs(length - len(data))) - len(data)
    return f"add {more}" if more > 0 else f"leave out {-more}"


def _is_collection(value: Any) -> bool:
    """Whether a value holds others, and is neither text nor a record."""
    record = (is_dataclass(value) and not isinstance(value, type)) or hasattr(value, "_fields")
    return isinstance(value, Iterable) and not record and not isinstance(value, str | bytes)


def _require_hash(value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        own = is_dataclass(value)
        raise UsageError(
            f"{value!r} cannot be a value: it has no hash",
            f"write @dataclass(frozen=True) for {type(value).__name__}"
            if own
            else f"use a tuple or a frozen dataclass instead of the {type(value).__name__}",
        ) from None


def _require_domain(name: str, given: Any) -> None:
    if isinstance(given, type) or not hasattr(given, "positions"):
        raise UsageError(
            f"{name} must be a Choice, Space, Fixed or Repeat, got {given!r}",
            "e.g. Choice(16, 32); Choice(16) for a constant",
        )


def _rules(given: Along | Sequence[Along]) -> tuple[Along, ...]:
    """The rules of a container, given as one or several."""
    rules = tuple(given) if isinstance(given, Sequence) else (given,)
    for rule in rules:
        if not hasattr(rule, "after"):
            raise UsageError(f"a rule must be an Along, got {rule!r}", 'e.g. Along("width", "<=")')
    return rules


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
    return rewrite(domain, field, lambda choice: choice.only(values))


def rewrite(domain: Any, field: str, change: Callable[[Choice], Choice]) -> Any:
    """The domain with every choice of `field`, at any depth, changed."""
    if isinstance(domain, Space):
        domains = {
            name: change(inner) if name == field else rewrite(inner, field, change)  # type: ignore[arg-type]
            for name, inner in domain.domains
        }
        return Space(domain.of, **domains).where(*domain.checks)
    if isinstance(domain, Fixed):
        return Fixed(*(rewrite(item, field, change) for item in domain.items), rules=domain.rules)
    if isinstance(domain, Repeat):
        return replace(domain, item=tuple(rewrite(item, field, change) for item in domain.items))
    return domain
