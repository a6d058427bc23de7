"""The paths of a graph that fit a budget: how many there are, draws, variation, and the best.

Costs are whole ticks here (`Trellis.within` rounds them up), so that everything follows from tables
by state and remaining ticks (`nas.trellis.dynamic_programs`). Whoever follows a path besides keeps
account of what is really left (`Room`), so that rounding bars no path that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.trellis.dynamic_programs import count_ways, highest_scores
from nas.trellis.graph import Floats, Graph, Ints

_CELLS = 2**16  # ways that are looked at together, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Room:
    """The budget above the cheapest path, in its own unit, where costs are no whole ticks.

    `excess` (edges,) says for each level by how much an edge is dearer than the cheapest way on
    from its source; a path fits if its excesses add up to at most `total`.
    """

    total: float
    tick: float
    excess: Sequence[Floats]


class Within:
    """The paths of a graph that cost a permitted number of ticks; `Trellis.within` makes one.

    `costs` are the ticks of each edge, by level; `end` (ticks + 1,) says with how many ticks left a
    path may end. `weights[position]` (values,), finite and not negative, make draws proportional to
    the product of the weights of their values; without weights draws are uniform. Given the `room`,
    all paths that fit can be drawn and followed, also those that cost too many ticks; the latter
    are not in `count`, and draws near the budget are not quite uniform.
    """

    def __init__(
        self,
        graph: Graph,
        costs: Sequence[Ints],
        end: NDArray[np.bool_],
        weights: Sequence[Floats] | None = None,
        room: Room | None = None,
    ) -> None:
        self._room = room
        self.graph, self.ticks = graph, len(end) - 1
        self._costs, self._end = costs, end
        self._weights = _of_edges(graph, weights) if weights else None
        self._tables, self._exponents = count_ways(graph.levels, costs, end, self._weights)
        self._offsets = self._where(costs)
        self._lower = self._offsets
        if room is not None:
            whole = [np.floor(own / room.tick) for own in room.excess]
            self._lower = self._where([np.clip(w, 0, len(end)).astype(np.int64) for w in whole])
            self._excess = [np.append(own, np.inf) for own in room.excess]

    def _where(self, costs: Sequence[Ints]) -> list[Ints]:
        """Where each edge finds in its table the ways on with no ticks left; edge -1 finds 0."""
        width = self.ticks + 1
        return [
            np.append(level.target * (2 * width) + width - cost, 0)
            for level, cost in zip(self.graph.levels, costs)
        ]

    @property
    def total(self) -> float:
        """The sum of the weights of all paths that fit, each position's relative to its greatest.

        Without weights it is the number of these paths; 0 where no path fits, infinite above 1e308.
        """
        with np.errstate(over="ignore"):
            return float(np.ldexp(self._tables[0][0, 1, self.ticks], self._exponents[0]))

    @property
    def count(self) -> int:
        """The number of paths that fit, whatever their weight; above 2**53 to 15 digits."""
        tables, exponents = self._tables, self._exponents
        if self._weights is not None:
            tables, exponents = count_ways(self.graph.levels, self._costs, self._end)
        return _number(tables[0][0, 1, self.ticks], exponents[0])

    @cached_property
    def most(self) -> int:
        """An upper bound on the number of paths that fit: `count`, and those that rounding hides.

        Some that are counted may cost more than the budget.
        """
        if self._room is None:
            return self.count
        lower = [np.floor(own / self._room.tick + 1e-6) for own in self._room.excess]
        costs = [np.clip(own, 0, len(self._end)).astype(np.int64) for own in lower]
        tables, exponents = count_ways(self.graph.levels, costs, self._end)
        return _number(tables[0][0, 1, self.ticks], exponents[0])

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` independent draws, as value indices (n, positions)."""
        return self.follow(np.full((n, len(self.graph.levels) - 1), -1), rng)

    def mutate(self, parents: Ints, probability: float, rng: np.random.Generator) -> Ints:
        """Children (n, positions) of `parents`, in which each choice is drawn anew with a
        probability."""
        return self.follow(np.where(rng.random(parents.shape) < probability, -1, parents), rng)

    def crossover(self, mothers: Ints, fathers: Ints, rng: np.random.Generator) -> Ints:
        """Children (n, positions) that take each choice from one of two parents at random."""
        return self.follow(np.where(rng.random(mothers.shape) < 0.5, mothers, fathers), rng)

    def follow(self, wanted: Ints, rng: np.random.Generator) -> Ints:
        """Paths that make the `wanted` choices (n, positions) where these leave a way to fit.

        A choice that is -1, not allowed, or leaves too little for the rest is drawn instead: each
        value in proportion to the number of ways to go on that fit. So the result is uniform among
        all paths that fit where nothing is wanted.
        """
        paths = np.empty_like(wanted)
        state = np.zeros(len(wanted), np.int64)
        left = np.full(len(wanted), self.ticks)
        rest = np.full(len(wanted), self._room.total if self._room else 0.0)
        for i, level in enumerate(self.graph.levels[:-1]):
            chance = rng.random(len(wanted))
            edge = np.where(wanted[:, i] >= 0, level.edge[state, wanted[:, i]], -1)
            ways = self._tables[i + 1].take(self._lower[i][edge] + left)
            if self._weights:
                ways *= self._weights[i][edge]
            open_ = np.flatnonzero(
                ways == 0 if self._room is None else self._excess[i][edge] > rest
            )
            edge[open_] = self._draw(i, self._lower, state[open_], left[open_], chance[open_])
            if self._room is not None:  # of what may be too dear by less than a tick, some is
                open_ = open_[self._excess[i][edge[open_]] > rest[open_]]
                edge[open_] = self._draw(i, self._offsets, state[open_], left[open_], chance[open_])
                rest = rest - self._excess[i][edge]
                left = np.minimum((rest / self._room.tick).astype(np.int64), self.ticks)
            else:
                left = left - self._costs[i][edge]
            paths[:, i] = level.value[edge]
            state = level.target[edge]
        return paths

    def _draw(
        self, index: int, offsets: Sequence[Ints], state: Ints, left: Ints, chance: Floats
    ) -> Ints:
        """An edge out of each state, drawn in proportion to the number of ways on."""
        level = self.graph.levels[index]
        edge = np.empty(len(state), np.int64)
        # Sorted, so that neighbours read the same memory: this takes a quarter of the time.
        order = np.argsort(state * (self.ticks + 1) + left)
        for j in range(0, len(order), step := max(1, _CELLS // level.out.shape[1])):
            own = order[j : j + step]
            edge[own] = self._drawn(index, offsets[index], state[own], left[own], chance[own])
        return edge

    def _drawn(self, index: int, offsets: Ints, state: Ints, left: Ints, chance: Floats) -> Ints:
        """`_draw` of a few, of which neighbours of equal state and rest share one look."""
        level = self.graph.levels[index]
        new = np.append(True, (np.diff(state) != 0) | (np.diff(left) != 0))
        some, degree = state[new], level.degree[state].max()
        out = level.out[some, :degree]
        ways = self._tables[index + 1].take(offsets[out] + left[new, None])
        if self._weights:
            ways *= self._weights[index][out]
        total = np.cumsum(ways, axis=1, out=ways)[np.cumsum(new) - 1]
        chosen = (total > (chance * total[:, -1])[:, None]).argmax(1)
        edge: Ints = level.out[state, chosen]
        return edge

    def best(self, scores: Sequence[Floats]) -> tuple[Ints, float]:
        """The path with the highest sum of `scores[position][value]` that fits, and that sum."""
        tables = highest_scores(self.graph.levels, self._costs, scores, self._end)
        path, state, left = [], 0, self.ticks
        for i, level in enumerate(self.graph.levels[:-1]):
            edges = level.out[state, : level.degree[state]]
            edges = edges[self._costs[i][edges] <= left]
            rest = left - self._costs[i][edges]
            value = level.value[edges]
            chosen = np.argmax(scores[i][value] + tables[i + 1][level.target[edges], rest])
            path.append(value[chosen])
            state, left = level.target[edges[chosen]], rest[chosen]
        return np.array(path), float(tables[0][0, self.ticks])


def _number(mantissa: float, exponent: int) -> int:
    """`mantissa * 2**exponent`, which a float may not hold."""
    return int(mantissa * 2.0**60) << (exponent - 60) if exponent else int(mantissa)


def _of_edges(graph: Graph, weights: Sequence[Floats]) -> list[Floats]:
    """The weight of each edge, relative to the greatest of its position; 0 of edge -1."""
    found = []
    for level, weight in zip(graph.levels, [*weights, np.ones(1)], strict=True):
        own = np.asarray(weight, float)
        if own.shape != (level.values,) or not (np.isfinite(own) & (own >= 0)).all():
            raise ValueError(f"weights must be {level.values} finite numbers, none negative")
        found.append(np.append((own / max(own.max(), 1e-300))[level.value], 0.0))
    return found
