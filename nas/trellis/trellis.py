"""The trellis: a graph of architectures with costs of edges, and exact answers about all of them.

An additive cost (latency, MACs, parameters) of a path is the sum over its edges, and the cost of an
edge depends only on its own choice and on the small state that the choices before have left. So one
pass of dynamic programming, from the last position to the first, answers what the cheapest and the
dearest path cost. With the remaining budget counted in whole ticks it also answers how many paths
fit a budget, which of them has the highest additive score, and how to draw uniformly from them.

Ticks divide the room between the cheapest path and the budget, and the cost of each edge is rounded
up to them. So no path that is drawn exceeds the budget, the cheapest path always fits, and with T
ticks and P positions only paths in the last P / T of the room may be left out of counts and of the
best; what is drawn or varied keeps account of the real costs, and leaves out none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nas.errors import InfeasibleError
from nas.trellis.dynamic_programs import highest_scores
from nas.trellis.graph import Floats, Graph, Ints
from nas.trellis.matrix_game import solve_game
from nas.trellis.within import Room, Within


class Trellis:
    """A graph whose edges have a cost, in the unit of budgets.

    `cost` is that of one item: an edge costs the sum over its items. Or it holds the costs (edges,)
    of each level (`edge_costs`), where the items of an edge do not simply add up. `fixed` is what
    every path costs besides. Raises `ValueError` where a cost is negative or not finite.
    """

    def __init__(
        self, graph: Graph, cost: Callable[[Any], float] | Sequence[Floats], fixed: float = 0.0
    ) -> None:
        self.graph, self.fixed = graph, fixed
        self.costs = (
            [np.array([sum(map(cost, items)) for items in level.items]) for level in graph.levels]
            if callable(cost)
            else list(cost)
        )
        if any((costs < 0).any() or not np.isfinite(costs).all() for costs in self.costs):
            raise ValueError("every cost must be finite and not negative")

    @classmethod
    def mixed(cls, trellises: Sequence[Trellis], shares: Floats) -> Trellis:
        """The sum of several costs over one graph, each times its share (none negative)."""
        levels = zip(*(trellis.costs for trellis in trellises))
        costs = [sum(s * own for s, own in zip(shares, level)) for level in levels]
        fixed = float(sum(s * trellis.fixed for s, trellis in zip(shares, trellises)))
        return cls(trellises[0].graph, costs, fixed)

    @cached_property
    def step(self) -> float:
        """The number that all costs are whole multiples of; 0 if none with three decimals is."""
        costs = np.unique(np.concatenate(self.costs))
        for scale in (1, 10, 100, 1000):
            whole = np.rint(costs * scale)
            near = np.abs(costs * scale - whole) <= 1e-9 * np.maximum(whole, 1)
            if near.all() and whole.max() < 2**53:
                return float(np.gcd.reduce(whole.astype(np.int64))) / scale
        return 0.0

    @cached_property
    def cheapest(self) -> list[Floats]:
        """The cost of the cheapest way from each state to the end, by level; inf if none is."""
        return self._extreme(np.minimum, np.inf)

    @property
    def fastest(self) -> float:
        """The cost of the cheapest path, `fixed` included."""
        return float(self.cheapest[0][0]) + self.fixed

    @cached_property
    def slowest(self) -> float:
        """The cost of the dearest path, `fixed` included."""
        return float(self._extreme(np.maximum, -np.inf)[0][0]) + self.fixed

    def _extreme(self, pick: np.ufunc, worst: float) -> list[Floats]:
        """What `cheapest` holds, with another comparison."""
        best = [np.zeros(1)]
        for level, costs in zip(reversed(self.graph.levels), reversed(self.costs)):
            before = np.full(level.sources, worst)
            pick.at(before, level.source, costs + best[0][level.target])
            best.insert(0, before)
        return best

    @cached_property
    def mirrored(self) -> tuple[Trellis, float]:
        """The trellis of what a path costs less than a total, and that total.

        No path costs more. So a lower bound on the cost is an upper bound on this one.
        """
        most = [float(costs.max(initial=0.0)) for costs in self.costs]
        rest = [top - costs for top, costs in zip(most, self.costs)]
        return Trellis(self.graph, rest), self.fixed + sum(most)

    def costs_of(self, paths: Ints) -> Floats:
        """The cost (n,) of each of `paths` (n, positions); infinite where there is no such path."""
        state = np.zeros(len(paths), np.int64)
        total = np.full(len(paths), self.fixed)
        for level, costs, value in zip(self.graph.levels, self.costs, [*paths.T, 0]):
            inside = (value >= 0) & (value < level.values)
            edge = np.where(inside, level.edge[state, np.where(inside, value, 0)], -1)
            total += np.append(costs, np.inf)[edge]  # the last is that of edge -1
            state = np.append(level.target, 0)[edge]
        return total

    def cost(self, path: Ints) -> float:
        """The cost of one path (positions,); `ValueError` where there is no such path."""
        cost = float(self.costs_of(np.asarray(path)[None])[0])
        if cost == np.inf:
            raise ValueError(f"no such path: {np.asarray(path).tolist()}")
        return cost

    def cheapest_path(self) -> Ints:
        """A path (positions,) that costs `fastest`."""
        path, state = [], 0
        for level, costs, after in zip(self.graph.levels, self.costs, self.cheapest[1:]):
            out = np.flatnonzero(level.source == state)
            edge = out[np.argmin(costs[out] + after[level.target[out]])]
            path.append(level.value[edge])
            state = level.target[edge]
        return np.array(path[:-1], np.int64)

    def within(
        self,
        budget: float,
        floor: float = -np.inf,
        ticks: int = 4096,
        weights: Sequence[Floats] | None = None,
    ) -> Within:
        """The paths that cost at most `budget`, and (rounded up) more than `floor`.

        `ticks` is the number of ticks that the room above the cheapest path is divided into; fewer
        are taken where all costs are multiples of a `step`. `weights` are those of `Within`. Raises
        `InfeasibleError` where no path fits.
        """
        tick, ticks = _grid(self, budget, ticks)
        excess = self._excess()
        costs = self._in_ticks(excess, tick, ticks, lambda x: np.ceil(x - _SLACK))
        top = min(budget, self.fastest + ticks * tick)
        band = ticks if floor <= self.fastest else math.floor((top - floor) / tick + _SLACK)
        room = None
        if tick != self.step and band == ticks and not weights:
            more = ROUNDING * abs(budget)
            room = Room(max(budget - self.fastest, 0.0) + more, tick, excess)
        within = Within(self.graph, costs, np.arange(ticks + 1) <= band, weights, room)
        if within.total == 0:
            what = "of any weight " if weights else ""
            raise InfeasibleError(
                f"no architecture {what}costs between {floor:.3g} and {budget:.3g}",
                "widen the band",
            )
        return within

    def bound(self, budget: float, scores: Sequence[Floats], ticks: int = 4096) -> float:
        """A sum of `scores[position][value]` that no path within `budget` exceeds.

        It is the highest of all paths whose costs, rounded down, fit: these may exceed the budget
        by at most one tick for each position.
        """
        tick, ticks = _grid(self, budget, ticks)
        costs = self._in_ticks(self._excess(), tick, ticks, lambda x: np.floor(x + _SLACK))
        end = np.ones(ticks + 1, bool)
        return float(highest_scores(self.graph.levels, costs, scores, end)[0][0, ticks])

    def _excess(self) -> list[Floats]:
        """By how much each edge is dearer than the cheapest way on from its source, by level."""
        found = []
        before = self.cheapest
        for level, costs, here, after in zip(self.graph.levels, self.costs, before, before[1:]):
            on = after[level.target]
            found.append(costs + on - np.where(np.isfinite(on), here[level.source], 0.0))
        return found

    @staticmethod
    def _in_ticks(
        excess: Sequence[Floats], tick: float, ticks: int, rounded: Callable[[Floats], Floats]
    ) -> list[Ints]:
        """The `_excess` of each edge in whole ticks.

        The cheapest path costs no ticks in this way, so that rounding never leaves it out;
        `ticks + 1` stands for any edge that is too dear.
        """
        return [np.clip(rounded(own / tick), 0, ticks + 1).astype(np.int64) for own in excess]


def whole(graph: Graph) -> Within:
    """All paths of a graph, whatever they cost."""
    return Trellis(graph, lambda _: 0.0).within(0.0, ticks=1)


def edge_costs(graph: Graph, total: Callable[[tuple[Any, ...]], float]) -> list[Floats]:
    """The costs (edges,) of each level, where `total` gives the cost of all items of one edge.

    A cost must add up over the edges, but need not over the items of one. So parameters can be
    counted once for each place of weights: a layer that runs in several phases occurs several times
    on one edge (never on two) and takes its time in each phase, but has its weights once.
    """
    return [np.array([total(items) for items in level.items]) for level in graph.levels]


# A whole number of ticks must not become another by a rounding error. A bound stays proven: as long
# as the slack of all edges together is less than a tick, no sum of whole ticks exceeds the budget.
_SLACK = 1e-6
# Costs that are equal on paper differ by this share of them where they are summed in another order.
ROUNDING = 1e-12


def _grid(trellis: Trellis, budget: float, ticks: int) -> tuple[float, int]:
    """The size of a tick and their number; a tick is a step where all costs are multiples of it."""
    room = budget - trellis.fastest
    if -ROUNDING * abs(budget) <= room < 0:
        room = 0.0
    if room < 0:
        raise InfeasibleError(
            f"no path costs at most {budget:.4g}: the cheapest costs {trellis.fastest:.4g}",
            "raise the budget",
        )
    if trellis.step and 1 <= (steps := int(room / trellis.step + _SLACK)) <= ticks:
        return trellis.step, steps
    return max(room / ticks, 1e-12 * abs(budget), 1e-300), ticks


def contradiction(trellises: Sequence[Trellis], budgets: Sequence[float]) -> float:
    """A number that proves, where it is more than 1, that no path keeps all budgets.

    Mix the costs, each relative to its budget, by shares that sum to 1: a path that keeps every
    budget has a mixed cost of at most 1. The number is the cost of the cheapest path by the mixture
    that makes it dearest; 1 or less proves nothing, unless there is only one budget. That mixture
    solves a matrix game between costs and paths, of which only the few paths matter that are
    cheapest by some mixture (column generation: Dantzig and Wolfe, 1960). Raises `ValueError`
    unless the trellises are of one graph and the budgets positive.
    """
    if any(trellis.graph is not trellises[0].graph for trellis in trellises):
        raise ValueError("the costs must be those of one graph")
    if len(trellises) != len(budgets) or min(budgets) <= 0:
        raise ValueError("there must be one positive budget for each cost")
    units = 1 / np.array(budgets)
    shares = np.full(len(budgets), 1 / len(budgets))
    paths: list[Floats] = []
    best = 0.0
    while True:
        path = Trellis.mixed(trellises, shares * units).cheapest_path()[None]
        found = np.array([float(trellis.costs_of(path)[0]) for trellis in trellises]) * units
        best = max(best, float(shares @ found))
        if any(np.array_equal(found, known) for known in paths):
            return best
        paths.append(found)
        shares, _ = solve_game(np.stack(paths, axis=1))
