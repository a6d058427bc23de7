"""What members of a space cost: exact where it is a sum over the choices, else estimated as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.errors import UsageError
from nas.records import fingerprint
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.rules import Position
from nas.strategy.constraints import Limit
from nas.strategy.threads import one_thread
from nas.trellis.graph import Floats, Graph, Ints, decode
from nas.trellis.trellis import Trellis

_DRAWS = 400  # calls of a black-box cost, at most, to estimate it as a sum over the choices


@dataclass(frozen=True)
class Additive:
    """A cost that is a sum over the choices: `function(name, value)` gives that of one.

    Names are those of `space.positions()`, e.g. `blocks[2]`; a value is what stands there. Where
    a `Repeat` has ended nothing is added.
    """

    function: Callable[[str, Any], float]
    fixed: float = 0.0


class Costs:
    """A cost of any kind as a limit: exact where it is additive, estimated where it is not."""

    def __init__(
        self,
        space: Space[Any] | SearchSpace,
        positions: Sequence[Position],
        graph: Graph,
        cost: Any,
        rng: np.random.Generator,
    ) -> None:
        self.space, self.cost, self.reach = space, cost, 0.0
        self.exact = True
        self._known: dict[tuple[int, ...], float] = {}
        self._drawn: list[tuple[float, float]] = []  # true and estimated, where it is not exact
        try:
            self._solve(graph, positions, rng)
        except ValueError as error:  # of the trellis
            raise UsageError(
                f"the latency of a choice cannot be used: {error}", "mend the table or the function"
            ) from None

    def _solve(self, graph: Graph, positions: Sequence[Position], rng: np.random.Generator) -> None:
        cost = self.cost
        if hasattr(cost, "calibration"):  # a latency table
            self.trellis = Trellis(graph, cost.cost, fixed=cost.calibration.overhead)
        elif isinstance(cost, Additive):
            self.trellis = Trellis(graph, lambda item: float(cost.function(*item)), cost.fixed)
        elif (table := _table(cost)) is not None:
            _require_all(table, positions)
            self.trellis = Trellis(graph, lambda item: table.get(item[0], {}).get(item[1], 0.0))
        elif callable(cost):
            self.exact = False
            self.trellis, self.reach = self._estimate(graph, positions, rng)
        else:
            raise UsageError(
                f"a latency cannot be a {type(cost).__name__}",
                "give a table, a mapping, nas.Additive(function) or a function",
            )

    @property
    def fingerprint(self) -> str:
        return fingerprint([costs.tolist() for costs in self.trellis.costs], self.trellis.fixed)

    def limit(self, name: str, bound: float) -> Limit:
        if self.exact:
            return Limit.additive(name, bound, self.trellis)
        # What truly fits must be within reach, however wrong the estimate.
        fitting = [estimate for true, estimate in self._drawn if true <= bound]
        reach = max([bound + self.reach, *fitting])
        return Limit(name, bound, self.costs_of, self.trellis, reach)

    def costs_of(self, paths: Ints) -> Floats:
        if self.exact:
            return self.trellis.costs_of(paths)
        return np.array([self._call(tuple(path)) for path in paths.tolist()], dtype=float)

    def _call(self, path: tuple[int, ...]) -> float:
        if path not in self._known:
            member = decode(self.space, np.array(path))
            try:
                value = float(self.cost(member))
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
    def _estimate(
        self, graph: Graph, positions: Sequence[Position], rng: np.random.Generator
    ) -> tuple[Trellis, float]:
        """The function as a sum over the choices, by least squares on random members, and how far
        nine of ten of these lie from it."""
        if isinstance(self.space, SearchSpace):
            raise UsageError("a family's latency is a sum over its layers", "give its LatencyTable")
        whole = Trellis(graph, lambda _: 0.0).within(0.0, ticks=1)
        values = [len(p.values) for p in positions]
        paths = whole.sample(min(_DRAWS, 4 * sum(values)), rng)
        costs = self.costs_of(paths)
        blocks = [np.eye(n)[paths[:, i]] for i, n in enumerate(values)]
        x = np.concatenate(blocks, axis=1)
        mean = costs.mean()
        weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (costs - mean))
        tables = np.split(weights, np.cumsum(values)[:-1])
        low = [t.min() for t in tables]
        costs_of = {p.name: dict(enumerate(t - m)) for p, t, m in zip(positions, tables, low)}
        where = {p.name: {v: k for k, v in enumerate(p.values)} for p in positions}
        fixed = float(mean + sum(low))
        trellis = Trellis(graph, lambda item: costs_of[item[0]][where[item[0]][item[1]]], fixed)
        estimates = trellis.costs_of(paths)
        self._drawn = list(zip(costs.tolist(), estimates.tolist()))
        return trellis, float(np.quantile(np.abs(estimates - costs), 0.9))


def _table(cost: Any) -> dict[str, dict[Any, float]] | None:
    """A mapping or DataFrame (columns: position, value, cost) as what each value costs."""
    if isinstance(cost, Mapping):
        return {name: dict(values) for name, values in cost.items()}
    if hasattr(cost, "itertuples"):
        found: dict[str, dict[Any, float]] = {}
        for name, value, ms in cost.iloc[:, :3].itertuples(index=False):
            found.setdefault(str(name), {})[value] = float(ms)
        return found
    return None


def _require_all(table: Mapping[str, Mapping[Any, float]], positions: Sequence[Position]) -> None:
    for position in positions:
        for value in position.values:
            if value is not None and value not in table.get(position.name, {}):
                raise UsageError(
                    f"the latency table has nothing for {position.name} = {value}",
                    "every value of every position needs a cost",
                )
