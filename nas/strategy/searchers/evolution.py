"""Evolution inside the limits, its children screened by a surrogate: the default.

After the evolutionary search of once-for-all (Cai et al., ICLR 2020) and SparseViT (CVPR 2023),
with two differences: children come from the trellis, so that none is thrown away for its latency,
and many generations run on a surrogate for each candidate that is scored for real. Candidates are
screened by expected improvement (Jones et al., 1998). Those that will be scored together are chosen
one after the other as if the scores of the ones before were known, so that they do not all try the
same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtr

from nas.strategy.constraints import Region
from nas.strategy.features import Fields
from nas.strategy.gaussian_process import Surrogate
from nas.strategy.ridge import Ridge
from nas.strategy.searchers import Known
from nas.trellis.graph import Floats, Ints

_STARTS = 1000  # of the best scores, those whose expectation is looked at for a start


@dataclass(eq=False)
class Evolution:
    """The evolutionary searcher; its population, parents and mutation are those of once-for-all.

    A surrogate is fitted as soon as `random` scores are known; before, candidates are uniform
    draws. From then on `screened` generations run on it for each one that is scored; with
    `screened=0` there is no surrogate. `surrogate` is the one fitted last.
    """

    population: int = 96
    parents: int = 24
    mutation: float = 0.1
    screened: int = 15
    random: int = 24
    surrogate: Surrogate | None = field(default=None, init=False)

    def __call__(self, region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
        """Propose `n` or more paths (any number, positions) of the region, best first."""
        if self.screened and len(known) >= self.random:
            return self._screen(self._fitted(known), region, known, n, rng)
        inside = known.within(region)
        if self.screened or len(inside) < self.population:
            return region.within.sample(n, rng)
        return self._vary(region, inside.best(self.parents), n, rng)

    def _fitted(self, known: Known) -> Surrogate:
        """The surrogate of everything known, fitted again where a score has come since."""
        if self.surrogate is None or len(self.surrogate) != len(known):
            self.surrogate = Surrogate.fit(
                known.positions, known.paths, known.scores, known.noise, before=self.surrogate
            )
        return self.surrogate

    def state(self) -> dict[str, Any]:
        """What the surrogate has learned, as JSON: the next one learns on from it."""
        own = self.surrogate
        return {} if own is None else {"theta": own.theta.tolist(), "count": len(own)}

    def restore(self, state: Mapping[str, Any], known: Known) -> None:
        """Go on from a `state`, when so much of `known` was known that it says."""
        if not state:
            return
        first = slice(0, state["count"])
        paths, scores, noise = known.paths[first], known.scores[first], known.noise[first]
        theta = np.array(state["theta"])
        self.surrogate = Surrogate.fit(known.positions, paths, scores, noise, theta=theta)

    def _screen(
        self, surrogate: Surrogate, region: Region, known: Known, n: int, rng: np.random.Generator
    ) -> Ints:
        """New paths by generations on the surrogate, from the best known, random draws, and a seed.

        The first `n` are chosen to be scored together.
        """
        inside = known.within(region).among_best(_STARTS)
        expected = surrogate.predict(inside.paths) if len(inside) else np.zeros(0)
        best = float(expected.max(initial=-np.inf))
        half = self.population // 2
        start = [inside.paths[np.argsort(-expected, kind="stable")[:half]]]
        start += [region.within.sample(half, rng), _seed(region, known, surrogate.fields)]
        pool = np.unique(np.concatenate(start), axis=0)
        gain = _gain(surrogate, pool, best)
        for _ in range(self.screened):
            top = np.argsort(-gain, kind="stable")[:half]
            pool, gain = pool[top], gain[top]
            children = self._vary(region, pool, self.population, rng)
            children = np.unique(children[~_among(children, pool)], axis=0)
            pool = np.concatenate([pool, children])
            gain = np.concatenate([gain, _gain(surrogate, children, best)])
        new = ~_among(pool, known.paths)
        pool, gain = pool[new], gain[new]
        # Limits that the trellis does not hold would otherwise fill the list with what they reject.
        fits = region.may_fit(pool) if len(region.limits) > 1 else np.ones(len(pool), bool)
        pool, gain = pool[fits], gain[fits]
        order = np.argsort(-gain, kind="stable")[: max(4 * n, 128)]
        return _apart(surrogate, pool[order], best, n)

    def _vary(self, region: Region, parents: Ints, n: int, rng: np.random.Generator) -> Ints:
        """Children (n, positions) of random parents: half crossed pairs, half mutated copies."""
        first, second = (parents[rng.integers(len(parents), size=n)] for _ in range(2))
        half = n // 2
        crossed = region.within.crossover(first[:half], second[:half], rng)
        return np.concatenate([crossed, region.within.mutate(first[half:], self.mutation, rng)])


def _seed(region: Region, known: Known, fields: Fields) -> Ints:
    """The path (1, positions) that would be best if choices only added up; none if nothing fits."""
    ridge = Ridge.fit(known.positions, known.paths, known.scores, fields)
    path, score = ridge.maximise(region.within)
    return path[None] if np.isfinite(score) else known.paths[:0]


def _among(paths: Ints, others: Ints) -> np.ndarray:
    """Which of the paths are among others: booleans (n,)."""
    known = set(map(tuple, others.tolist()))
    return np.array([tuple(path) in known for path in paths.tolist()], dtype=bool)


def _gain(surrogate: Surrogate, paths: Ints, best: float) -> Floats:
    """The expected improvement (n,) of each of the paths on the score `best`."""
    return _improvement(*surrogate.posterior(paths), best) if len(paths) else np.zeros(0)


def _improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """The expected improvement on `best`; the mean where there is nothing to improve on."""
    if not np.isfinite(best):
        return mean
    z = (mean - best) / deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    gain: Floats = deviation * (z * ndtr(z) + density)
    return gain


def _apart(surrogate: Surrogate, paths: Ints, best: float, n: int) -> Ints:
    """The paths in an order whose first `n` are worth scoring together.

    Each of these has the highest expected improvement of those left, with the uncertainty that
    remains once the scores of the ones before it are known.
    """
    if len(paths) <= 1:
        return paths
    mean, covariance = surrogate.predict(paths), surrogate.covariance(paths)
    order: list[int] = []
    left = np.ones(len(paths), bool)
    for _ in range(min(n, len(paths))):
        deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        gain = np.where(left, _improvement(mean, deviation, best), -np.inf)
        chosen = int(np.argmax(gain))
        order.append(chosen)
        left[chosen] = False
        column = covariance[:, chosen]
        covariance = covariance - np.outer(column, column) / max(column[chosen], 1e-12)
    return paths[[*order, *np.flatnonzero(left)]]


make = Evolution
