"""The paths of a graph that fit a budget: how many there are, draws, variation, and the best.

Costs are whole ticks here (`Trellis.within` rounds them up), so that everything follows from tables
by state and remaining ticks (`nas.trellis.dynamic_programs`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.trellis.dynamic_programs import count_ways, highest_scores
from nas.trellis.graph import Floats, Graph, Ints

_CELLS = 2**16  # ways that are looked at together, so that they stay in the cache


class Within:
    """The paths of a graph that cost a permitted number of ticks; `Trellis.within` makes one.

    `costs` are the ticks of each edge, by level; `end` (ticks + 1,) says with how many ticks left a
    path may end. `weights[position]` (values,), finite and not negative, make draws proportional to
    the product of the weights of their values; without weights draws are uniform.
    """

    def __init__(
        self,
        graph: Graph,
        costs: Sequence[Ints],
        end: NDArray[np.bool_],
        weights: Sequence[Floats] | None = None,
    ) -> None:
        self.graph, self.ticks = graph, len(end) - 1
        self._costs, self._end = costs, end
        self._weights = _of_edges(graph, weights) if weights else None
        self._tables, self._exponents = count_ways(graph.levels, costs, end, self._weights)
        # Where in its table each edge finds the ways on with no ticks left; edge -1 finds zeros.
        width = len(end)
        self._offsets = [
            np.append(level.target * (2 * width) + width - cost, 0)
            for level, cost in zip(graph.levels, costs)
        ]
        self._out_offsets = [
            offsets[level.out] for level, offsets in zip(graph.levels, self._offsets)
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
        mantissa = float(tables[0][0, 1, self.ticks])
        return int(mantissa * 2.0**60) << (exponents[0] - 60) if exponents[0] else int(mantissa)

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
        for i, level in enumerate(self.graph.levels[:-1]):
            chance = rng.random(len(wanted))
            edge = np.where(wanted[:, i] >= 0, level.edge[state, wanted[:, i]], -1)
            ways = self._tables[i + 1].take(self._offsets[i][edge] + left)
            if self._weights:
                ways *= self._weights[i][edge]
            open_ = np.flatnonzero(ways == 0)
            # Sorted, so that neighbours read the same memory: this takes a quarter of the time.
            open_ = open_[np.argsort(state[open_] * (self.ticks + 1) + left[open_])]
            for j in range(0, len(open_), step := max(1, _CELLS // level.out.shape[1])):
                own = open_[j : j + step]
                edge[own] = self._drawn(i, state[own], left[own], chance[own])
            paths[:, i] = level.value[edge]
            state, left = level.target[edge], left - self._costs[i][edge]
        return paths

    def _drawn(self, index: int, state: Ints, left: Ints, chance: Floats) -> Ints:
        """An edge out of each state, drawn in proportion to the number of ways on.

        Neighbours of equal state and equal rest share one look at the tables.
        """
        level = self.graph.levels[index]
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


def _of_edges(graph: Graph, weights: Sequence[Floats]) -> list[Floats]:
    """The weight of each edge, relative to the greatest of its position; 0 of edge -1."""
    found = []
    for level, weight in zip(graph.levels, [*weights, np.ones(1)], strict=True):
        own = np.asarray(weight, float)
        if own.shape != (level.values,) or not (np.isfinite(own) & (own >= 0)).all():
            raise ValueError(f"weights must be {level.values} finite numbers, none negative")
        found.append(np.append((own / max(own.max(), 1e-300))[level.value], 0.0))
    return found
