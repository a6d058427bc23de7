"""The trellis: every architecture of a space as a path, and exact answers about all of them.

An additive cost (latency, MACs, parameters) of a path is the sum over its edges, and what an edge
costs depends only on its own choice and on the small state left by the choices before. So the
number of architectures, the cheapest and the dearest, how many fit a budget, uniform draws from
exactly those, and the best one under an additive score follow from one pass of dynamic programming
from the last position to the first, over a remaining budget counted in integer ticks.

Ticks divide the room between the cheapest path and the budget; costs are rounded up to them, edge
by edge. So nothing that is drawn exceeds the budget, the cheapest path is always among what fits,
and of T ticks and P positions a path may be left out only in the last P / T of the room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import InfeasibleError
from nas.graph import Graph, Ints, Level

Floats = NDArray[np.float64]


class Trellis:
    """A graph whose edges have a cost; `cost` gives that of one item, in the unit of budgets."""

    def __init__(self, graph: Graph, cost: Callable[[Any], float], fixed: float = 0.0) -> None:
        self.graph, self.fixed = graph, fixed
        self.costs = [
            np.array([sum(map(cost, items)) for items in level.items]) for level in graph.levels
        ]
        if any((costs < 0).any() or not np.isfinite(costs).all() for costs in self.costs):
            raise ValueError("every cost must be finite and not negative")

    @cached_property
    def cheapest(self) -> list[Floats]:
        """For each level and state: the cost of the cheapest way to the end (inf if none)."""
        return self._extreme(np.minimum, np.inf)

    @property
    def fastest(self) -> float:
        """The cost of the cheapest path, `fixed` included."""
        return float(self.cheapest[0][0]) + self.fixed

    @cached_property
    def slowest(self) -> float:
        return float(self._extreme(np.maximum, -np.inf)[0][0]) + self.fixed

    def _extreme(self, pick: np.ufunc, worst: float) -> list[Floats]:
        best = [np.zeros(1)]
        for level, costs in zip(reversed(self.graph.levels), reversed(self.costs)):
            before = np.full(level.sources, worst)
            pick.at(before, level.source, costs + best[0][level.target])
            best.insert(0, before)
        return best

    def costs_of(self, paths: Ints) -> Floats:
        """The cost (n,) of each of `paths` (n, positions); infinite where there is no such path."""
        state = np.zeros(len(paths), np.int64)
        total = np.full(len(paths), self.fixed)
        for i, (level, costs) in enumerate(zip(self.graph.levels, self.costs)):
            value = paths[:, i] if i < paths.shape[1] else np.zeros_like(state)
            edge = np.where(
                (value >= 0) & (value < level.values),
                level.edge[state, np.clip(value, 0, level.values - 1)],
                -1,
            )
            total += np.append(costs, np.inf)[edge]  # the last is that of edge -1
            state = np.append(level.target, 0)[edge]
        return total

    def cost(self, path: Ints) -> float:
        """The cost of one path of value indices (positions,)."""
        cost = float(self.costs_of(np.asarray(path)[None])[0])
        if cost == np.inf:
            raise ValueError(f"no such path: {np.asarray(path).tolist()}")
        return cost

    def cheapest_path(self) -> Ints:
        """One path that costs `fastest`, as value indices (positions,)."""
        path, state = [], 0
        for level, costs, after in zip(self.graph.levels, self.costs, self.cheapest[1:]):
            out = np.flatnonzero(level.source == state)
            edge = out[np.argmin(costs[out] + after[level.target[out]])]
            path.append(level.value[edge])
            state = level.target[edge]
        return np.array(path[:-1], np.int64)

    def within(self, budget: float, floor: float = 0.0, ticks: int = 4096) -> Within:
        """The paths that cost at most `budget`, and (rounded up) more than `floor`."""
        return Within(self, budget, floor, ticks)


class Within:
    """The paths of a trellis inside a budget: their number, uniform draws, and variation.

    Raises `InfeasibleError` if there is none.
    """

    def __init__(self, trellis: Trellis, budget: float, floor: float, ticks: int) -> None:
        self.trellis, self.budget, self.ticks = trellis, budget, ticks
        room = budget - trellis.fastest
        if room < 0:
            raise InfeasibleError(
                f"no path costs at most {budget:.4g}: the cheapest costs {trellis.fastest:.4g}",
                "raise the budget",
            )
        self.tick = max(room / ticks, 1e-12 * abs(budget), 1e-300)
        self._ticks = [
            self._rounded(level, costs, before, after)
            for level, costs, before, after in zip(
                trellis.graph.levels, trellis.costs, trellis.cheapest, trellis.cheapest[1:]
            )
        ]
        band = ticks if floor <= trellis.fastest else int((budget - floor) / self.tick)
        end = np.zeros((1, ticks + 1))
        end[:, : band + 1] = 1.0
        # ways[l][state, left]: how many ends of a path fit into `left` ticks.
        self.ways = [end]
        for level, cost in zip(reversed(trellis.graph.levels), reversed(self._ticks)):
            before = np.zeros((level.sources, ticks + 1))
            after = self.ways[0]
            for s, t, c in zip(level.source.tolist(), level.target.tolist(), cost.tolist()):
                if c <= ticks:
                    before[s, c:] += after[t, : ticks + 1 - c]
            self.ways.insert(0, before)
        if self.ways[0][0, ticks] == 0:
            raise InfeasibleError(
                f"no architecture costs between {floor:.3g} and {budget:.3g}", "widen the band"
            )

    def _rounded(self, level: Level, costs: Floats, before: Floats, after: Floats) -> Ints:
        """Ticks by which each edge is dearer than the cheapest way on from its source.

        Counted like this the cheapest path costs no tick at all, and so is never rounded away.
        """
        excess = costs + after[level.target] - before[level.source]
        # A whole number of ticks must not become one more by a rounding error.
        ticks = np.ceil(excess / self.tick - 1e-6)
        return np.where(
            np.isfinite(ticks), np.clip(ticks, 0, self.ticks + 1), self.ticks + 1
        ).astype(np.int64)

    @property
    def count(self) -> int:
        """How many paths fit, costs rounded up to ticks; exact up to 2**53, then to 15 digits."""
        return int(self.ways[0][0, self.ticks])

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` independent uniform draws, as value indices (n, positions)."""
        return self.follow(np.full((n, len(self.trellis.graph.levels) - 1), -1), rng)

    def mutate(self, parents: Ints, probability: float, rng: np.random.Generator) -> Ints:
        """Children (n, positions): each choice is drawn anew with `probability`."""
        return self.follow(np.where(rng.random(parents.shape) < probability, -1, parents), rng)

    def crossover(self, mothers: Ints, fathers: Ints, rng: np.random.Generator) -> Ints:
        """Children that take each choice from one of two parents."""
        return self.follow(np.where(rng.random(mothers.shape) < 0.5, mothers, fathers), rng)

    def follow(self, wanted: Ints, rng: np.random.Generator) -> Ints:
        """Paths that make the `wanted` choices (n, positions) where these leave a way to fit.

        A choice that is -1, not allowed, or leaves too little for the rest is drawn instead, each
        value with the number of feasible ways to go on: where nothing is wanted the result is
        uniform among all paths that fit.
        """
        n = len(wanted)
        paths = np.empty_like(wanted)
        state = np.zeros(n, np.int64)
        left = np.full(n, self.ticks)
        for i, level in enumerate(self.trellis.graph.levels[:-1]):
            after, cost = self.ways[i + 1], self._ticks[i]
            edges = level.edge[state]  # (n, values)
            rest = left[:, None] - cost[edges]
            open_ = (edges >= 0) & (rest >= 0)
            ways = np.where(open_, after[level.target[edges], np.maximum(rest, 0)], 0.0)
            total = np.cumsum(ways, axis=1)
            drawn = (total <= (rng.random(n) * total[:, -1])[:, None]).sum(1)
            # Rounding in the sum may point past the last value that has a way on.
            last = level.values - 1 - (ways[:, ::-1] > 0).argmax(1)
            want = wanted[:, i]
            keep = (want >= 0) & (ways[np.arange(n), np.maximum(want, 0)] > 0)
            paths[:, i] = np.where(keep, want, np.minimum(drawn, last))
            edge = edges[np.arange(n), paths[:, i]]
            state, left = level.target[edge], left - cost[edge]
        return paths

    def best(self, scores: Sequence[Floats]) -> tuple[Ints, float]:
        """The path with the highest sum of `scores[position][value]` that fits, and that sum."""
        graph, ticks = self.trellis.graph, self.ticks
        value = [np.where(self.ways[-1] > 0, 0.0, -np.inf)]
        gains = [*scores, np.zeros(1)]
        for level, cost, gain in zip(graph.levels[::-1], self._ticks[::-1], gains[::-1]):
            before = np.full((level.sources, ticks + 1), -np.inf)
            edges = zip(
                level.source.tolist(), level.target.tolist(), cost.tolist(), gain[level.value]
            )
            for s, t, c, g in edges:
                if c <= ticks:
                    np.maximum(before[s, c:], g + value[0][t, : ticks + 1 - c], out=before[s, c:])
            value.insert(0, before)
        path, state, left = [], 0, ticks
        for i, level in enumerate(graph.levels[:-1]):
            edges = level.edge[state]
            allowed = [
                (float(scores[i][v] + value[i + 1][level.target[e], left - self._ticks[i][e]]), v)
                for v, e in enumerate(edges.tolist())
                if e >= 0 and self._ticks[i][e] <= left
            ]
            chosen = max(allowed)[1]
            path.append(chosen)
            state, left = level.target[edges[chosen]], left - self._ticks[i][edges[chosen]]
        return np.array(path), float(value[0][0, ticks])
