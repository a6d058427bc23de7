"""Costs of the members of a space: exact where they are sums over the choices, else estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Protocol

import numpy as np

from nas.errors import UsageError
from nas.problem.arguments import Bounds
from nas.problem.black_box import BlackBox, Estimate, first_paths, fit_sum
from nas.problem.members import find
from nas.progress import Advance, console
from nas.records import fingerprint
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.rules import ENDED, Position
from nas.strategy.constraints import Limit
from nas.trellis.graph import Floats, Graph, Ints
from nas.trellis.trellis import Trellis

_SHOWN_S = 0.3  # seconds between two notes of a number of calls


@dataclass(frozen=True)
class Additive:
    """A cost that is a sum over the choices: `function(name, value)` gives the cost of one.

    Names are those of `space.positions()`, e.g. `blocks[2]`; the value is what is chosen there. A
    position after the end of a `Repeat` costs nothing. `fixed` is added to every sum.
    """

    function: Callable[[str, Any], float]
    fixed: float = 0.0

    def cost(self, choice: tuple[str, Any]) -> float:
        """The cost of one choice, given as its position's name and its value."""
        name, value = choice
        try:
            return float(self.function(name, value))
        except Exception as error:
            raise UsageError(
                f"the latency of {name} = {value!r} raised {type(error).__name__}: {error}",
                "mend the function: it is called as function(name, value)",
            ) from error


def _number(what: str, given: Any) -> float:
    """A number as a float; `UsageError` if it is none."""
    try:
        return float(given)
    except (TypeError, ValueError):
        raise UsageError(f"{what} must be a number, got {given!r}", "e.g. 0.5") from None


class Cost(Protocol):
    """The cost of the members of a space, whichever way it was given (`CostReader`)."""

    @property
    def fingerprint(self) -> str:
        """A text that changes with the cost of any choice, as far as that is known."""

    def costs_of(self, paths: Ints) -> Floats:
        """The true costs (n,) of paths (n, positions)."""

    def limits(self, name: str, bounds: Bounds) -> list[Limit]:
        """The limits that this cost keeps the bounds, the upper one first."""


@dataclass(frozen=True)
class ExactCost:
    """A cost that the trellis holds."""

    trellis: Trellis

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the cost of any choice."""
        return fingerprint([costs.tolist() for costs in self.trellis.costs], self.trellis.fixed)

    def costs_of(self, paths: Ints) -> Floats:
        """The true costs (n,) of paths (n, positions)."""
        return self.trellis.costs_of(paths)

    def limits(self, name: str, bounds: Bounds) -> list[Limit]:
        """The limits that this cost keeps the bounds, the upper one first."""
        found, (low, high) = [], (bounds.low, bounds.high)
        if math.isfinite(high):
            found.append(Limit(name, high, self.costs_of, self.trellis, floor=low))
        if math.isfinite(low):
            found.append(Limit.at_least(name, low, self.trellis))
        return found


class AskedCost:
    """A cost that a function gives, with an estimate of it that learns from the calls.

    `first` are the paths that are asked first, `bounds` those that it will have to keep. Nothing
    is asked before its limits are.
    """

    fingerprint = "function"  # nobody can compare functions; their costs are compared

    def __init__(
        self,
        graph: Graph,
        positions: Sequence[Position],
        box: BlackBox,
        first: Ints,
        bounds: Sequence[Bounds],
    ) -> None:
        self.box = box
        self._graph, self._positions, self._first = graph, positions, first
        self._estimate: Estimate | None = None
        band = any(math.isfinite(own.low) for own in bounds)
        self._highest = math.inf if band else max(own.high for own in bounds)

    def costs_of(self, paths: Ints) -> Floats:
        """The true costs (n,) of paths (n, positions); a member is asked about once."""
        return self.box(paths)

    def limits(self, name: str, bounds: Bounds) -> list[Limit]:
        """The limits that this cost keeps the bounds, the upper one first."""
        found, (low, high) = [], (bounds.low, bounds.high)
        estimate, box = self._estimate or self.fit(0), self.box
        if math.isfinite(high):
            reach = estimate.reach(high)
            limit = Limit(name, high, box, estimate.trellis, reach, floor=low, asked=box.asked)
            found.append(replace(limit, logarithmic=estimate.logarithmic))
        if math.isfinite(low):
            found.append(
                Limit.at_least(name, low, estimate.trellis, box, box.asked, estimate.error)
            )
        return found

    @property
    def fitted_to(self) -> int:
        """The number of calls that the estimate is fitted to."""
        return 0 if self._estimate is None else self._estimate.count

    def learn(self) -> int:
        """Fit the estimate anew if there are twice as many calls; returns what it is fitted to."""
        if self._estimate is not None and len(self.box.known) >= 2 * self._estimate.count:
            self.fit(len(self.box.known))
        return self.fitted_to

    def fit(self, count: int) -> Estimate:
        """Fit the estimate to the first so many calls; 0 stands for those asked first."""
        if not count:
            self.box(self._first)
            count = len(self.box.known)
        known = list(self.box.known.items())[:count]
        paths = np.array([path for path, _ in known], dtype=np.int64)
        costs = np.array([cost for _, cost in known])
        self._estimate = fit_sum(self._graph, self._positions, paths, costs, self._highest)
        return self._estimate


class Renewal:
    """Says when the limits of a region are to be made anew: when an estimate has learned."""

    def __init__(self, costs: Sequence[AskedCost], make: Callable[[], Sequence[Limit]]) -> None:
        self._costs, self._make = costs, make
        self._seen = [cost.fitted_to for cost in costs]

    def __call__(self) -> Sequence[Limit] | None:
        """The limits, or None where nothing has changed."""
        if (now := [cost.learn() for cost in self._costs]) == self._seen:
            return None
        self._seen = now
        return self._make()


class Heard:
    """Shows beside a bar how often a function has been asked."""

    def __init__(self, name: str, advance: Advance) -> None:
        self._name, self._advance, self._shown = name, advance, monotonic()

    def __call__(self, calls: int) -> None:
        """Show the number of calls, a few times a second."""
        if monotonic() - self._shown > _SHOWN_S:
            self._shown = monotonic()
            self._advance(0, f"{self._name} asked {calls:,} times")


class CostReader:
    """Reads the costs of the members of a space, each as it was given.

    `permitted` is above 0 of paths that no function is asked about; `calls` is how many members it
    may be asked about, and `asked` holds those that are functions.
    """

    def __init__(
        self,
        space: Space[Any] | SearchSpace,
        positions: Sequence[Position],
        graph: Graph,
        permitted: Callable[[Ints], Floats],
        calls: int,
        rng: np.random.Generator,
    ) -> None:
        self._space, self._positions, self._graph = space, positions, graph
        self._permitted, self._calls, self._rng = permitted, calls, rng
        self.asked: list[AskedCost] = []

    def __call__(self, name: str, given: Any, bounds: Sequence[Bounds]) -> Cost:
        """The cost called `name` that is given as a table, an `Additive` or a function of a member.

        A table is a `LatencyTable`, a mapping, or a DataFrame with columns `choice`, `value` and
        `ms`. Raises `UsageError` where it is none of these, lacks a value, or gives a cost that is
        negative or not finite.
        """
        try:
            if (trellis := _exact(self._graph, self._positions, given)) is not None:
                return ExactCost(trellis)
        except ValueError as error:  # of the trellis
            raise UsageError(
                f"the latency of a choice cannot be used: {error}", "mend the table or the function"
            ) from None
        if not callable(given):
            raise UsageError(
                f"a latency cannot be a {type(given).__name__}",
                "give a table, a mapping, nas.Additive(function) or a function",
            )
        if isinstance(self._space, SearchSpace):
            raise UsageError("a family's latency is a sum over its layers", "give its LatencyTable")
        first = first_paths(self._graph, self._positions, self._permitted, self._calls, self._rng)
        box = BlackBox(name, self._space, given, self._calls)
        self.asked.append(AskedCost(self._graph, self._positions, box, first, bounds))
        return self.asked[-1]


def _exact(graph: Graph, positions: Sequence[Position], given: Any) -> Trellis | None:
    """The trellis of a cost that is a sum over the choices; None if it is not given as one."""
    if hasattr(given, "calibration"):  # a latency table
        return Trellis(graph, given.cost, fixed=given.calibration.overhead)
    if isinstance(given, Additive):
        return Trellis(graph, given.cost, _number("the fixed cost", given.fixed))
    if (table := _table(given)) is not None:
        costs = _matched(table, positions)
        return Trellis(graph, lambda item: costs[item[0]][item[1]])
    return None


_NAMES = {
    "position": ("choice", "position", "name"),
    "value": ("value",),
    "cost": ("ms", "cost", "latency", "latency_ms"),
}


def _table(given: Any) -> dict[str, list[tuple[Any, float]]] | None:
    """A mapping, or a DataFrame, as values with their costs for each position."""
    if hasattr(given, "itertuples"):
        columns = [_column(list(given.columns), role) for role in _NAMES]
        found: dict[str, list[tuple[Any, float]]] = {}
        for name, value, ms in given[columns].itertuples(index=False, name=None):
            found.setdefault(str(name), []).append((value, _cost(name, value, ms)))
        return found
    if not isinstance(given, Mapping):
        return None
    for name, values in given.items():
        if not isinstance(values, Mapping):
            raise UsageError(
                f"the latency table has {values!r} for {name}", "give the cost of each value"
            )
    return {
        name: [(value, _cost(name, value, ms)) for value, ms in values.items()]
        for name, values in given.items()
    }


def _cost(name: str, value: Any, given: Any) -> float:
    return _number(f"the cost of {name} = {value}", given)


def _column(columns: Sequence[Any], role: str) -> Any:
    """The one column of a table that has a role, by its name."""
    found = [column for column in columns if str(column).lower() in _NAMES[role]]
    if len(found) != 1:
        raise UsageError(
            f"a table of latencies needs one column {' or '.join(_NAMES[role])}, "
            f"got {', '.join(map(str, columns))}",
            "name its columns choice, value and ms",
        )
    return found[0]


def _matched(
    table: Mapping[str, Sequence[tuple[Any, float]]], positions: Sequence[Position]
) -> dict[str, dict[Any, float]]:
    """The cost of each value of each position; the mean of those given more than once."""
    names = [position.name for position in positions]
    if others := [name for name in table if name not in names]:
        raise UsageError(
            f"the latency table has costs for {others[0]!r}, which is no position of the space",
            f"its positions are {', '.join(names[:8])}{', ...' * (len(names) > 8)}",
        )
    costs: dict[str, dict[Any, float]] = {}
    unknown: list[str] = []
    for position in positions:
        index = {value: i for i, value in enumerate(position.values)}
        given: dict[int, list[float]] = {}
        unmatched: list[Any] = []
        for value, ms in table.get(position.name, ()):
            i = index.get(value) if isinstance(value, Hashable) else None
            if (i := find(value, position.values) if i is None else i) is None:
                unmatched.append(value)
            else:
                given.setdefault(i, []).append(ms)
        unknown += [f"{position.name} = {v!r}" for v in unmatched]
        for i, value in enumerate(position.values):
            if i not in given and value is not ENDED:
                raise UsageError(
                    f"the latency table has nothing for {position.name} = {value}",
                    "every value of every position needs a cost",
                )
        costs[position.name] = {
            v: sum(given[i]) / len(given[i]) for v, i in index.items() if i in given
        }
    if unknown:
        console.print(
            f"of the table of latencies {len(unknown)} costs are of no value of the space, e.g. "
            f"{unknown[0]}: they are not used",
            soft_wrap=True,
        )
    return costs
