"""Evolution inside a budget, behind ask and tell; it knows nothing of torch, files or devices.

After the evolutionary search with rejection sampling of once-for-all (Cai et al., ICLR 2020) and
SparseViT (CVPR 2023), with two differences: proposals come from the trellis, so that none is thrown
away for its latency, and a surrogate may screen many children for each one that is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, is_dataclass

import numpy as np
from numpy.typing import NDArray

from nas.graph import Ints
from nas.space import Position
from nas.trellis import Floats, Trellis, Within

_TRIES = 50  # rounds of proposals before giving up on finding more


@dataclass(frozen=True)
class Evolution:
    """How the population moves on; defaults after once-for-all (parents 25 %, mutation 0.1)."""

    population: int = 64
    parents: int = 16
    mutation: float = 0.1
    screened: int = 12  # generations on the surrogate for each real one


class Features:
    """One-hot choices of paths: each field of each position, and each of these by resolution.

    The first position (in our spaces the resolution) scales everything after it, so all other
    choices get a coefficient of their own for each of its values.
    """

    def __init__(self, positions: Sequence[Position]) -> None:
        self.tables: list[NDArray[np.float64]] = []
        for position in positions:
            rows = [_fields(value) for value in position.values]
            columns = sorted({field for row in rows for field in row})
            self.tables.append(np.array([[c in row for c in columns] for row in rows], float))

    def __call__(self, paths: Ints) -> Floats:
        """(n, features) for value indices (n, positions)."""
        blocks = [table[paths[:, i]] for i, table in enumerate(self.tables)]
        rest = np.concatenate(blocks[1:], axis=1)
        by_first = [rest * blocks[0][:, [k]] for k in range(blocks[0].shape[1])]
        return np.concatenate([np.ones((len(paths), 1)), *blocks, *by_first], axis=1)


def _fields(value: object) -> set[tuple[int, object]]:
    """A dataclass is the set of its fields, anything else (`None` included) itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return set(enumerate(astuple(value)))
    return {(-1, value)}


class Surrogate:
    """Ridge regression from the choices of a path to its score.

    The penalty is chosen by the closed-form leave-one-out error.
    """

    def __init__(self, positions: Sequence[Position]) -> None:
        self.features = Features(positions)
        self.rank_correlation = float("nan")

    def fit(self, paths: Ints, scores: Floats) -> Surrogate:
        x = self.features(paths)
        self._mean = float(scores.mean())
        y = scores - self._mean
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        self.error = np.inf
        for penalty in np.logspace(-1, 3, 17):
            shrink = s**2 / (s**2 + penalty)
            fitted = u @ (shrink * (u.T @ y))
            leverage = (u**2 * shrink).sum(1)
            left_out = y - (y - fitted) / np.maximum(1 - leverage, 1e-6)
            error = float(((y - left_out) ** 2).mean())
            if error < self.error:
                self.error = error
                self._weights = vt.T @ (s / (s**2 + penalty) * (u.T @ y))
                self.rank_correlation = spearman(left_out, y)
        return self

    def expected(self, paths: Ints, scores: Floats, noise: Floats) -> Floats:
        """Scores with the noise taken out: the mean of score and prediction, weighted by precision.

        `noise` is the variance of each score as a measurement (of n images: p (1 - p) / n). What
        the left-out error exceeds it by is the variance of the prediction. Choosing by raw scores
        would choose luck: of a thousand scores on 400 images the best is some 7 points too high.
        """
        model = max(self.error - float(noise.mean()), 0.02 * self.error)
        weight = model / (model + noise)
        return weight * scores + (1 - weight) * self.predict(paths)

    def predict(self, paths: Ints) -> Floats:
        return self._mean + self.features(paths) @ self._weights  # type: ignore[no-any-return]


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation (ties get their mean rank)."""

    def ranks(x: Floats) -> Floats:
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


class EvolutionSearcher:
    """Ask for paths, tell their scores; every path asked for fits the budget.

    `sampler="trellis"` proposes from inside the budget; `"rejection"` proposes from the whole
    space and rejects, as the papers do. Proposals and rejections by cause are counted.
    """

    def __init__(
        self,
        trellis: Trellis,
        budget: float,
        rng: np.random.Generator,
        surrogate: Surrogate | None = None,
        sampler: str = "trellis",
        settings: Evolution = Evolution(),
        valid: Callable[[Ints], bool] = lambda _: True,
    ) -> None:
        self.trellis, self.budget, self.rng = trellis, budget, rng
        self.surrogate, self.settings, self.valid = surrogate, settings, valid
        inside = trellis.within(budget)
        whole = trellis.slowest + abs(trellis.slowest) * 1e-6 + 1e-9
        self.region: Within = inside if sampler == "trellis" else trellis.within(whole)
        self.scores: dict[tuple[int, ...], float] = {}
        self.proposals = 0
        self.rejections: Counter[str] = Counter({"over_budget": 0, "duplicate": 0, "invalid": 0})

    def tell(self, paths: Ints, scores: Sequence[float]) -> None:
        self.scores |= {tuple(path): score for path, score in zip(paths.tolist(), scores)}

    def ask(self, n: int) -> Ints:
        """`n` new paths that fit, distinct and never asked for before; fewer if none are left."""
        chosen: dict[tuple[int, ...], None] = {}
        for _ in range(_TRIES):
            wanted = n - len(chosen)
            for path in self._accept(self._propose(wanted), {*self.scores, *chosen}, wanted):
                chosen[tuple(path.tolist())] = None
            if len(chosen) == n:
                break
        positions = len(self.trellis.graph.levels) - 1
        return np.array(list(chosen), dtype=np.int64).reshape(-1, positions)

    def _propose(self, n: int) -> Ints:
        """Candidates, best first where a surrogate says so."""
        size = self.settings.population
        if self.surrogate is None:
            return (
                self._children(size)
                if len(self.scores) >= size
                else self.region.sample(n, self.rng)
            )
        pool = self._known(size)
        fresh = self.region.sample(4 * size, self.rng)
        pool = np.concatenate([pool, fresh]) if len(pool) else fresh
        for _ in range(self.settings.screened):
            pool = np.unique(pool, axis=0)
            best = np.argsort(-self.surrogate.predict(pool), kind="stable")[:size]
            pool = np.concatenate([pool[best], self._vary(pool[best], 2 * size)])
        pool = np.unique(pool, axis=0)
        order = np.argsort(-self.surrogate.predict(pool), kind="stable")
        # A quarter comes from variation of what scored best for real: the surrogate may be wrong.
        explore = self._children(max(1, n // 4)) if self.scores else pool[:0]
        return np.concatenate([explore, pool[order]])

    def _known(self, n: int) -> Ints:
        best = sorted(self.scores, key=lambda path: -self.scores[path])
        fitting = [p for p in best if self._fits(np.array(p))][:n]
        return np.array(fitting, dtype=np.int64).reshape(len(fitting), -1)

    def _children(self, n: int) -> Ints:
        parents = self._known(self.settings.parents)
        return self._vary(parents, n) if len(parents) else self.region.sample(n, self.rng)

    def _vary(self, parents: Ints, n: int) -> Ints:
        """Half mutated copies, half crossed pairs."""
        first, second = (parents[self.rng.integers(len(parents), size=n)] for _ in range(2))
        half = n // 2
        mutated = self.region.mutate(first[half:], self.settings.mutation, self.rng)
        return np.concatenate(
            [self.region.crossover(first[:half], second[:half], self.rng), mutated]
        )

    def _fits(self, path: Ints) -> bool:
        return self.trellis.cost(path) <= self.budget

    def _accept(self, paths: Ints, seen: set[tuple[int, ...]], wanted: int) -> list[Ints]:
        """The rejection step: every proposal's true cost and validity, rejections counted."""
        accepted: list[Ints] = []
        for path in paths:
            if len(accepted) == wanted:
                break
            self.proposals += 1
            key = tuple(path.tolist())
            if key in seen:
                self.rejections["duplicate"] += 1
            elif not self._fits(path):
                self.rejections["over_budget"] += 1
            elif not self.valid(path):
                self.rejections["invalid"] += 1
            else:
                accepted.append(path)
                seen.add(key)
        return accepted


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both (lower cost, higher score), by cost."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for i in order:
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front
