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

from nas.errors import InfeasibleError
from nas.trellis.dynamic_programs import highest_scores
from nas.trellis.graph import Floats, Graph, Ints
from nas.trellis.matrix_game import solve_game
from nas.trellis.within import Within


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
            edge_costs(graph, lambda items: sum(map(cost, items))) if callable(cost) else list(cost)
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
        """What all costs are whole multiples of; 0 if that is nothing with up to three decimals."""
        costs = np.unique(np.concatenate(self.costs))
        for scale in (1, 10, 100, 1000):
            whole = np.rint(costs * scale)
            near = np.abs(costs * scale - whole) <= 1e-9 * np.maximum(whole, 1)
            if near.all() and whole.max() < 2**53:
                return float(np.gcd.reduce(whole.astype(np.int64))) / scale
        return 0.0

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
        for level, costs, value in zip(self.graph.levels, self.costs, [*paths.T, 0]):
            inside = (value >= 0) & (value < level.values)
            edge = np.where(inside, level.edge[state, np.where(inside, value, 0)], -1)
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

    def within(
        self,
        budget: float,
        floor: float = 0.0,
        ticks: int = 4096,
        weights: Sequence[Floats] | None = None,
    ) -> Within:
        """The paths that cost at most `budget`, and (rounded up) more than `floor`.

        With `weights[position]` (values,), none negative, they are drawn with probability
        proportional to the product of the weights of their values instead of uniformly.
        """
        tick, ticks = _grid(self, budget, ticks)
        costs = self._in_ticks(tick, ticks, lambda x: np.ceil(x - _SLACK))
        top = min(budget, self.fastest + ticks * tick)
        band = ticks if floor <= self.fastest else int((top - floor) / tick + _SLACK)
        within = Within(self.graph, costs, np.arange(ticks + 1) <= band, weights)
        if within.total == 0:
            what = "of any weight " if weights else ""
            raise InfeasibleError(
                f"no architecture {what}costs between {floor:.3g} and {budget:.3g}",
                "widen the band",
            )
        return within

    def bound(self, budget: float, scores: Sequence[Floats], ticks: int = 4096) -> float:
        """What no path within `budget` exceeds in the sum of `scores[position][value]`.

        `Within.best` with costs rounded down: the best of a superset, at most one tick per position
        over the budget.
        """
        tick, ticks = _grid(self, budget, ticks)
        costs = self._in_ticks(tick, ticks, lambda x: np.floor(x + _SLACK))
        end = np.ones(ticks + 1, bool)
        return float(highest_scores(self.graph.levels, costs, scores, end)[0][0, ticks])

    def _in_ticks(self, tick: float, ticks: int, rounded: Callable[[Floats], Floats]) -> list[Ints]:
        """Whole ticks by which each edge is dearer than the cheapest way on from its source.

        Counted like this the cheapest path costs no tick at all, and so is never rounded away;
        `ticks + 1` stands for all that is too dear.
        """
        found = []
        before = self.cheapest
        for level, costs, here, after in zip(self.graph.levels, self.costs, before, before[1:]):
            on = after[level.target]
            excess = costs + on - np.where(np.isfinite(on), here[level.source], 0.0)
            found.append(np.clip(rounded(excess / tick), 0, ticks + 1).astype(np.int64))
        return found


def whole(graph: Graph) -> Within:
    """All paths of a graph, whatever they cost."""
    return Trellis(graph, lambda _: 0.0).within(0.0, ticks=1)


def edge_costs(graph: Graph, total: Callable[[tuple[Any, ...]], float]) -> list[Floats]:
    """What each edge costs (edges,), by level; `total` gives the cost of its items together.

    A cost must add up over the edges, but need not over the items of one. So parameters can be
    counted once for each place of weights: a layer that runs in several phases occurs several times
    on one edge (never on two) and takes its time in each phase, but has its weights once.
    """
    return [np.array([total(items) for items in level.items]) for level in graph.levels]


# A whole number of ticks must not become another by a rounding error. Rounding down stays proven:
# as long as all slack together is less than a tick, no sum of whole ticks gets past the budget.
_SLACK = 1e-6


def _grid(trellis: Trellis, budget: float, ticks: int) -> tuple[float, int]:
    """The size of a tick, and how many there are; exact where costs are multiples of a step."""
    room = budget - trellis.fastest
    if room < 0:
        raise InfeasibleError(
            f"no path costs at most {budget:.4g}: the cheapest costs {trellis.fastest:.4g}",
            "raise the budget",
        )
    if trellis.step and 1 <= (whole := int(room / trellis.step + _SLACK)) <= ticks:
        return trellis.step, whole
    return max(room / ticks, 1e-12 * abs(budget), 1e-300), ticks


def contradiction(trellises: Sequence[Trellis], budgets: Sequence[float]) -> float:
    """The largest, over all shares, of the smallest possible mixed cost relative to the budgets.

    More than 1 proves that no path keeps all budgets, for what keeps each keeps every mixture; 1 or
    less proves nothing unless there is but one. The shares that prove most solve a matrix game
    between costs and paths, whose columns are the few paths that are cheapest for some shares
    (Dantzig and Wolfe, 1960). The trellises must be of one graph, the budgets positive.
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
