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
from nas.trellis.dynamic_programs import count_ways, highest_scores
from nas.trellis.graph import Graph, Ints
from nas.trellis.matrix_game import solve_game

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

    @classmethod
    def mixed(cls, trellises: Sequence[Trellis], shares: Floats) -> Trellis:
        """The sum of several costs over one graph, each times its share (none negative)."""
        costs = zip(*(trellis.costs for trellis in trellises))
        mixed = cls(trellises[0].graph, lambda _: 0.0)
        mixed.costs = [sum(s * own for s, own in zip(shares, level)) for level in costs]
        mixed.fixed = float(sum(s * trellis.fixed for s, trellis in zip(shares, trellises)))
        return mixed

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
        return Within(self, budget, floor, ticks, weights)

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


# A whole number of ticks must not become another by a rounding error. Rounding down stays proven:
# as long as all slack together is less than a tick, no sum of whole ticks gets past the budget.
_SLACK = 1e-6
_CELLS = 2**16  # ways that are looked at together, so that they stay in the cache


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


class Within:
    """The paths of a trellis inside a budget: their number, draws, and variation.

    Raises `InfeasibleError` if there is none.
    """

    def __init__(
        self,
        trellis: Trellis,
        budget: float,
        floor: float,
        ticks: int,
        weights: Sequence[Floats] | None = None,
    ) -> None:
        self.trellis, self.budget, self.floor = trellis, budget, floor
        self.tick, self.ticks = _grid(trellis, budget, ticks)
        ticks = self.ticks
        self._costs = trellis._in_ticks(self.tick, ticks, lambda x: np.ceil(x - _SLACK))
        top = min(budget, trellis.fastest + ticks * self.tick)
        band = ticks if floor <= trellis.fastest else int((top - floor) / self.tick + _SLACK)
        self._end = np.arange(ticks + 1) <= band
        self._weights = self._of_edges(weights) if weights else None
        self._tables = count_ways(trellis.graph.levels, self._costs, self._end, self._weights)
        if self.ways(0)[0, ticks] == 0:
            what = "of any weight " if weights else ""
            raise InfeasibleError(
                f"no architecture {what}costs between {floor:.3g} and {budget:.3g}",
                "widen the band",
            )
        # Where in its table each edge finds the ways on with nothing left; edge -1 finds zeros.
        width = ticks + 1
        self._offsets = [
            np.append(level.target * (2 * width) + width - cost, 0)
            for level, cost in zip(trellis.graph.levels, self._costs)
        ]
        self._out_offsets = [
            offsets[level.out] for level, offsets in zip(trellis.graph.levels, self._offsets)
        ]

    def _of_edges(self, weights: Sequence[Floats]) -> list[Floats]:
        """The weight of each edge, relative to the greatest of its position; 0 of edge -1."""
        found = []
        for level, weight in zip(self.trellis.graph.levels, [*weights, np.ones(1)], strict=True):
            own = np.asarray(weight, float)
            if own.shape != (level.values,) or not (np.isfinite(own) & (own >= 0)).all():
                raise ValueError(f"weights must be {level.values} finite numbers, none negative")
            found.append(np.append((own / max(own.max(), 1e-300))[level.value], 0.0))
        return found

    def ways(self, index: int) -> Floats:
        """(states, ticks + 1): how many ends of a path fit into so many ticks from a position on.

        With weights, the sum of theirs.
        """
        return self._tables[index][:, 1]

    @property
    def count(self) -> int:
        """How many paths fit, costs rounded up to ticks; exact up to 2**53, then to 15 digits."""
        if self._weights:
            return self.trellis.within(self.budget, self.floor, self.ticks).count
        return int(self.ways(0)[0, self.ticks])

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` independent draws (uniform without weights), as value indices (n, positions)."""
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
        paths = np.empty_like(wanted)
        state = np.zeros(len(wanted), np.int64)
        left = np.full(len(wanted), self.ticks)
        for i, level in enumerate(self.trellis.graph.levels[:-1]):
            chance = rng.random(len(wanted))
            edge = np.where(wanted[:, i] >= 0, level.edge[state, wanted[:, i]], -1)
            ways = self._tables[i + 1].take(self._offsets[i][edge] + left)
            if self._weights:
                ways *= self._weights[i][edge]
            open_ = np.flatnonzero(ways == 0)
            # Neighbours in state and budget read the same memory: a quarter of the time.
            open_ = open_[np.argsort(state[open_] * (self.ticks + 1) + left[open_])]
            for j in range(0, len(open_), step := max(1, _CELLS // level.out.shape[1])):
                own = open_[j : j + step]
                edge[own] = self._drawn(i, state[own], left[own], chance[own])
            paths[:, i] = level.value[edge]
            state, left = level.target[edge], left - self._costs[i][edge]
        return paths

    def _drawn(self, index: int, state: Ints, left: Ints, chance: Floats) -> Ints:
        """An edge out of each state, with the number of ways on; looks once at what is alike."""
        level = self.trellis.graph.levels[index]
        new = np.append(True, (np.diff(state) != 0) | (np.diff(left) != 0))
        some, degree = state[new], level.degree[state].max()
        offsets = self._out_offsets[index][some, :degree] + left[new, None]
        ways = self._tables[index + 1].take(offsets)
        if self._weights:
            ways *= self._weights[index][level.out[some, :degree]]
        total = np.cumsum(ways, axis=1, out=ways)[np.cumsum(new) - 1]
        chosen = (total > (chance * total[:, -1])[:, None]).argmax(1)
        edge: Ints = level.out[state, chosen]
        return edge

    def best(self, scores: Sequence[Floats]) -> tuple[Ints, float]:
        """The path with the highest sum of `scores[position][value]` that fits, and that sum."""
        tables = highest_scores(self.trellis.graph.levels, self._costs, scores, self._end)
        path, state, left = [], 0, self.ticks
        for i, level in enumerate(self.trellis.graph.levels[:-1]):
            edges = level.out[state, : level.degree[state]]
            edges = edges[self._costs[i][edges] <= left]
            rest = left - self._costs[i][edges]
            value = level.value[edges]
            chosen = np.argmax(scores[i][value] + tables[i + 1][level.target[edges], rest])
            path.append(value[chosen])
            state, left = level.target[edges[chosen]], rest[chosen]
        return np.array(path), float(tables[0][0, self.ticks])


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
