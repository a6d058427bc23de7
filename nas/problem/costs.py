"""Costs of the members of a space: exact where they are sums over the choices, else estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.errors import UsageError
from nas.problem.arguments import Bounds
from nas.problem.members import find
from nas.records import fingerprint
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.rules import ENDED, Position
from nas.strategy.constraints import Limit
from nas.strategy.threads import one_thread
from nas.trellis.graph import Floats, Graph, Ints, decode
from nas.trellis.trellis import Trellis, whole

_DRAWS = 400  # calls of a black-box cost, at most, to estimate it as a sum over the choices


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


@dataclass(frozen=True)
class Cost:
    """The cost of the members of a space, whichever way it was given (`read_cost`).

    `costs_of` gives the true costs (n,) of paths (n, positions); `trellis` holds them, or an
    estimate of them, made from true costs and their estimates `drawn` (n, 2) and off by at most
    `error` in nine of ten of these. `drawn` is empty where the trellis is exact.
    """

    trellis: Trellis
    costs_of: Callable[[Ints], Floats]
    drawn: tuple[tuple[float, float], ...] = ()
    error: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the cost of any choice."""
        return fingerprint([costs.tolist() for costs in self.trellis.costs], self.trellis.fixed)

    def limits(self, name: str, bounds: Bounds) -> list[Limit]:
        """The limits that this cost keeps the bounds, the upper one first."""
        found, (low, high) = [], (bounds.low, bounds.high)
        if math.isfinite(high):
            reach = None
            if self.drawn:
                # Paths that are known to fit must be within reach, however wrong their estimate.
                fitting = [estimate for true, estimate in self.drawn if true <= high]
                reach = max([high + self.error, *fitting])
            found.append(Limit(name, high, self.costs_of, self.trellis, reach, floor=low))
        if math.isfinite(low):
            costs_of = self.costs_of if self.drawn else None
            found.append(Limit.at_least(name, low, self.trellis, costs_of, self.error))
        return found


def read_cost(
    space: Space[Any] | SearchSpace,
    positions: Sequence[Position],
    graph: Graph,
    given: Any,
    permitted: Callable[[Ints], Floats],
    rng: np.random.Generator,
) -> Cost:
    """The cost that is given as a table, an `Additive` or a function of a member.

    A table is a `LatencyTable`, a mapping, or a DataFrame with columns `choice`, `value` and `ms`.
    Raises `UsageError` where it is none of
    these, lacks a value, or gives a cost that is negative or not finite. No black box is called for
    paths of which `permitted` is above 0.
    """
    try:
        if (trellis := _exact(graph, positions, given)) is not None:
            return Cost(trellis, trellis.costs_of)
        if not callable(given):
            raise UsageError(
                f"a latency cannot be a {type(given).__name__}",
                "give a table, a mapping, nas.Additive(function) or a function",
            )
        if isinstance(space, SearchSpace):
            raise UsageError("a family's latency is a sum over its layers", "give its LatencyTable")
        return _estimated(graph, positions, _BlackBox(space, given), permitted, rng)
    except ValueError as error:  # of the trellis
        raise UsageError(
            f"the latency of a choice cannot be used: {error}", "mend the table or the function"
        ) from None


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
    if unknown := [name for name in table if name not in names]:
        raise UsageError(
            f"the latency table has costs for {unknown[0]!r}, which is no position of the space",
            f"its positions are {', '.join(names[:8])}{', ...' * (len(names) > 8)}",
        )
    costs: dict[str, dict[Any, float]] = {}
    for position in positions:
        index = {value: i for i, value in enumerate(position.values)}
        given: dict[int | None, list[float]] = {}
        for value, ms in table.get(position.name, ()):
            i = index.get(value) if isinstance(value, Hashable) else None
            given.setdefault(find(value, position.values) if i is None else i, []).append(ms)
        for i, value in enumerate(position.values):
            if i not in given and value is not ENDED:
                raise UsageError(
                    f"the latency table has nothing for {position.name} = {value}",
                    "every value of every position needs a cost",
                )
        costs[position.name] = {
            v: sum(given[i]) / len(given[i]) for v, i in index.items() if i in given
        }
    return costs


class _BlackBox:
    """A function of a member as costs of paths; it is called once for each path."""

    def __init__(self, space: Space[Any], function: Callable[[Any], float]) -> None:
        self._space, self._function = space, function
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, paths: Ints) -> Floats:
        return np.array([self._cost(tuple(path)) for path in paths.tolist()], dtype=float)

    def _cost(self, path: tuple[int, ...]) -> float:
        if path not in self._known:
            member = decode(self._space, np.array(path))
            try:
                value = float(self._function(member))
            except Exception as error:
                raise UsageError(
                    f"the latency of {member} raised {type(error).__name__}: {error}",
                    "mend the function",
                ) from error
            if not math.isfinite(value):
                raise UsageError(f"the latency of {member} is {value}", "mend the function")
            self._known[path] = value
        return self._known[path]


@one_thread()
def _estimated(
    graph: Graph,
    positions: Sequence[Position],
    costs_of: _BlackBox,
    permitted: Callable[[Ints], Floats],
    rng: np.random.Generator,
) -> Cost:
    """A black box with its estimate as a sum over the choices: least squares on random members."""
    values = [len(p.values) for p in positions]
    paths = whole(graph).sample(min(_DRAWS, 4 * sum(values)), rng)
    paths = paths[permitted(paths) <= 0]
    if not len(paths):
        raise UsageError(
            f"the space refuses all of {min(_DRAWS, 4 * sum(values))} members drawn at random",
            "loosen its checks, or give a latency that is a table or an Additive",
        )
    costs = costs_of(paths)
    blocks = [np.eye(n)[paths[:, i]] for i, n in enumerate(values)]
    x = np.concatenate(blocks, axis=1)
    mean = costs.mean()
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (costs - mean))
    tables = np.split(weights, np.cumsum(values)[:-1])
    low = [t.min() for t in tables]
    each = {p.name: dict(enumerate(t - m)) for p, t, m in zip(positions, tables, low)}
    index = {p.name: {v: k for k, v in enumerate(p.values)} for p in positions}
    fixed = float(mean + sum(low))
    trellis = Trellis(graph, lambda item: each[item[0]][index[item[0]][item[1]]], fixed)
    estimates = trellis.costs_of(paths)
    error = float(np.quantile(np.abs(estimates - costs), 0.9))
    return Cost(trellis, costs_of, tuple(zip(costs.tolist(), estimates.tolist())), error)
