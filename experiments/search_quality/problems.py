"""Four problems with a known optimum.

`knapsack`: 20 choices of 8 values, costs and scores that rise together, neighbours that interact
moderately; `epistasis`: 14 choices of 4 values, no value is good by itself, only triples of
neighbours are (what an additive surrogate gets wrong); `noisy`: 12 choices of 6 values, each score
with noise of a quarter of the distance from the median to the optimum; `supernet`: real accuracies
and a real table (`small_supernet.py`). The first three score chains: with whole costs, dynamic
programming over the last values and the remaining budget finds the exact optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nas.space.rules import Position
from nas.trellis.graph import Graph
from nas.trellis.trellis import Trellis

HERE = Path(__file__).parent


@dataclass
class Problem:
    """`truth(paths)` gives exact scores (n,); gaps are in units of optimum - median that fits."""

    name: str
    positions: tuple[Position, ...]
    trellis: Trellis
    budget: float
    truth: object
    optimum: float
    noise: float = 0.0
    chain: tuple = ()  # what `exact_optimum` takes besides a budget

    def __post_init__(self):
        drawn = self.trellis.within(self.budget).sample(2000, np.random.default_rng(0))
        self.scale = self.optimum - float(np.median(self.truth(drawn)))

    def score(self, paths, rng):
        exact = self.truth(paths)
        return exact + rng.normal(size=len(exact)) * self.noise * self.scale

    def gap(self, path):
        return float(self.optimum - self.truth(np.asarray(path)[None])[0]) / self.scale


def chain(name, positions, values, order, alone, together, share, seed, noise=0.0):
    """Scores that add over windows of `order` neighbours, whole costs that rise with the value."""
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.integers(1, 60, size=(positions, values)), axis=1)
    size = rng.gamma(2.0, size=(positions, 1))
    main = alone * size * np.sort(rng.random((positions, values)), axis=1)
    main += 0.15 * alone * size * rng.normal(size=(positions, values))
    tables = [
        rng.normal(size=(values,) * order) * together * rng.gamma(2.0) / 2
        for _ in range(positions - order + 1)
    ]
    where = tuple(Position(f"x[{i}]", tuple(range(values))) for i in range(positions))
    graph = Graph.build([p.values for p in where], lambda i, s, v: (((i, v),), None), lambda s: ())
    trellis = Trellis(graph, lambda item: float(cost[item]))
    budget = int(trellis.fastest + share * (trellis.slowest - trellis.fastest))

    def truth(paths):
        total = main[np.arange(positions), paths].sum(1)
        for i, table in enumerate(tables):
            total = total + table[tuple(paths[:, i + j] for j in range(order))]
        return total

    best = exact_optimum(cost, main, tables, order, budget)
    own = (cost, main, tables, order)
    return Problem(name, where, trellis, budget + 0.5, truth, best, noise, own)


def exact_optimum(cost, main, tables, order, budget):
    """The best sum over a chain within a budget of whole costs."""
    best = {(): np.where(np.arange(budget + 1) == 0, 0.0, -np.inf)}  # by the cost so far
    for i in range(len(cost)):
        after = {}
        for last, reached in best.items():
            for v, c in enumerate(cost[i].tolist()):
                if c > budget:
                    continue
                window = (*last, v)
                gain = main[i, v] + (tables[i - order + 1][window] if len(window) == order else 0)
                moved = np.full(budget + 1, -np.inf)
                moved[c:] = reached[: budget + 1 - c] + gain
                key = window[-(order - 1) :]
                after[key] = np.maximum(after[key], moved) if key in after else moved
        best = after
    return max(float(reached.max()) for reached in best.values())


def knapsack(seed):
    return chain("knapsack", 20, 8, 2, 1.0, 0.35, 0.25, seed)


def epistasis(seed):
    return chain("epistasis", 14, 4, 3, 0.0, 1.0, 0.4, seed)


def noisy(seed):
    return chain("noisy", 12, 6, 2, 1.0, 0.2, 0.3, seed, noise=0.25)


def supernet(seed):
    """The same architectures for every seed, another budget for each: 20 to 77 % of them fit."""
    from small_supernet import small_space, small_trellis

    space = small_space()
    known = pd.read_csv(HERE / "small_supernet.csv")
    score = {tuple(map(int, p.split())): s for p, s in zip(known["path"], known["top1_percent"])}
    budget = float(known["ms"].quantile(0.2 + 0.03 * seed))
    best = float(known["top1_percent"][known["ms"] <= budget].max())

    def truth(paths):
        return np.array([score[tuple(path)] for path in paths.tolist()])

    return Problem("supernet", space.positions, small_trellis(space), budget, truth, best)


PROBLEMS = {"knapsack": knapsack, "supernet": supernet, "epistasis": epistasis, "noisy": noisy}
EVALUATIONS = {"knapsack": 300, "supernet": 200, "epistasis": 300, "noisy": 300}
