"""A Gaussian process from the choices of a path to its score, by which candidates are screened.

It says how uncertain its predictions are and takes in the noise of scores. Its kernel has a part
for what each choice adds, one for what pairs of choices do together, and one for what only whole
combinations do. How much of each there is, and how much each field matters, is learned from the
scores (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 4.2 and
5.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from nas.space.rules import Position
from nas.strategy.features import Fields
from nas.strategy.threads import one_thread
from nas.trellis.graph import Floats, Ints

_JITTER = 1e-6
_CHUNK = 4096  # paths that are predicted together, so that memory does not grow with their number
_LEARNED_FROM = 400  # scores at most that the kernel is learned from
FITTED_TO = 600  # scores at most that are predicted from: the time of a fit grows with their cube
# Logarithms of: additive, pairwise and joint variance, length of the joint part, noise (of scores
# scaled to a variance of 1): the mode of their normal prior, and its standard deviation. Additive
# unless the scores say otherwise, with a noise that is neither ruled out nor assumed.
_PRIOR = np.log([1.0, 0.05, 0.04, 0.5, 0.05])
_PRIOR_STD = np.array([1.0, 1.2, 1.2, 0.7, 1.7])
_BOUNDS = [(-7.0, 4.0)] * 3 + [(-3.0, 3.0), (-12.0, 1.0)]


class _Kernel(NamedTuple):
    """The weights of the fields (they sum to 1), and the five numbers of the prior above."""

    weights: Floats
    additive: float
    pairwise: float
    joint: float
    length: float
    noise: float

    @classmethod
    def of(cls, theta: Floats) -> _Kernel:
        weights = np.exp(theta[:-5] - theta[:-5].max(initial=0.0))
        return cls(weights / max(weights.sum(), 1e-300), *np.exp(theta[-5:]))

    @property
    def variance(self) -> float:
        return self.additive + self.pairwise + self.joint

    def __call__(self, likeness: Floats) -> Floats:
        tail = self.joint * np.exp((likeness - 1) / self.length)
        return likeness * (self.additive + self.pairwise * likeness) + tail


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A Gaussian process that has been fitted to scores (`Surrogate.fit`).

    Its numbers are of scores scaled to `(score - mean) / scale`: `theta` (fields + 5,), the
    logarithms of what its kernel has learned; `x`, the weighted features of the paths fitted to;
    `lower`, the Cholesky factor of their covariance; `alpha`, the solution with their scores. Of
    more than `FITTED_TO` scores it is fitted to a part (`telling`); `count` is how many there were.
    """

    fields: Fields
    theta: Floats
    mean: float
    scale: float
    x: Floats
    lower: Floats
    alpha: Floats
    count: int

    @classmethod
    @one_thread()
    def fit(
        cls,
        positions: Sequence[Position],
        paths: Ints,
        scores: Floats,
        noise: Floats | float = 0.0,
        before: Surrogate | None = None,
        theta: Floats | None = None,
    ) -> Surrogate:
        """Fit paths (n, positions) to scores (n,) with the variance `noise` (n,), as far as known.

        The kernel is learned on from that of an earlier process `before`, of the same positions
        and fewer scores, which takes fewer steps; or it is given by its `theta`.
        """
        fields = Fields(positions) if before is None else before.fields
        count, some = len(scores), telling(scores)
        noise = np.broadcast_to(np.asarray(noise, float), scores.shape)[some]
        paths, scores = paths[some], scores[some]
        x = fields(paths)
        mean, scale = float(scores.mean()), float(scores.std()) or 1.0
        y = (scores - mean) / scale
        known = noise / scale**2
        if theta is None:
            theta = _learned(fields, x, y, known, None if before is None else before.theta)
        kernel = _Kernel.of(theta)
        x = x * np.sqrt(kernel.weights[fields.owner])
        own = kernel(x @ x.T)
        own[np.diag_indices(len(y))] += known + kernel.noise + _JITTER
        lower = cholesky(own, lower=True)
        return cls(fields, theta, mean, scale, x, lower, cho_solve((lower, True), y), count)

    def __len__(self) -> int:
        """The number of scores that it has seen."""
        return self.count

    @cached_property
    def _kernel(self) -> _Kernel:
        return _Kernel.of(self.theta)

    def _towards(self, paths: Ints) -> tuple[Floats, Floats]:
        """The weighted features of paths, and their kernel with the paths fitted to (n, fitted)."""
        x = self.fields(paths) * np.sqrt(self._kernel.weights[self.fields.owner])
        return x, self._kernel(x @ self.x.T)

    @one_thread()
    def predict(self, paths: Ints) -> Floats:
        """The expected scores (n,) of paths (n, positions), without noise, also of those fitted."""
        parts = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)] or [paths]
        found = [self._towards(part)[1] @ self.alpha for part in parts]
        mean: Floats = self.mean + self.scale * np.concatenate(found)
        return mean

    @one_thread()
    def posterior(self, paths: Ints) -> tuple[Floats, Floats]:
        """The expected scores (n,) of paths (n, positions), and their standard deviations (n,)."""
        _, near = self._towards(paths)
        known = solve_triangular(self.lower, near.T, lower=True)
        variance = np.maximum(self._kernel.variance - (known**2).sum(0), 1e-12)
        return self.mean + self.scale * (near @ self.alpha), self.scale * np.sqrt(variance)

    @one_thread()
    def covariance(self, paths: Ints) -> Floats:
        """The covariance (n, n) of the expected scores of paths (n, positions)."""
        x, near = self._towards(paths)
        known = solve_triangular(self.lower, near.T, lower=True)
        left: Floats = self.scale**2 * (self._kernel(x @ x.T) - known.T @ known)
        return left


def telling(scores: Floats, most: int = FITTED_TO) -> Ints:
    """The indices, in order, of up to `most` scores that tell most of where the best are.

    These are the best ones, the latest, and some evenly of the others, by rank.
    """
    n = len(scores)
    if n <= most:
        return np.arange(n)
    best, latest = 2 * most // 5, most // 5
    order = np.argsort(-scores, kind="stable")
    chosen = np.zeros(n, bool)
    chosen[order[:best]] = chosen[n - latest :] = True
    others = order[~chosen[order]]
    even = np.linspace(0, len(others) - 1, most - int(chosen.sum())).round().astype(np.int64)
    chosen[others[even]] = True
    return np.flatnonzero(chosen)


def _learned(fields: Fields, x: Floats, y: Floats, noise: Floats, start: Floats | None) -> Floats:
    """The logarithms `theta` of the kernel that explains the scores best, from `start` if given."""
    if len(y) > _LEARNED_FROM:  # the best scores, which matter, and some evenly of the others
        order = np.argsort(-y, kind="stable")
        half = _LEARNED_FROM // 2
        rest = order[half:]
        some = np.concatenate([order[:half], rest[:: -(-len(rest) // half)]])
        x, y, noise = x[some], y[some], noise[some]
    found = minimize(
        _negative_evidence,
        np.concatenate([np.zeros(fields.count), _PRIOR]) if start is None else start,
        args=(x, y, noise, fields.owner),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-8.0, 8.0)] * fields.count + _BOUNDS,
        options={"maxiter": 40 if start is None else 8},
    )
    theta: Floats = found.x
    return theta


def _negative_evidence(
    theta: Floats, x: Floats, y: Floats, noise: Floats, owner: Ints
) -> tuple[float, Floats]:
    """Minus the logarithm of the marginal likelihood times the prior, and its gradient.

    Rasmussen and Williams, equations 2.30 and 5.9.
    """
    kernel = _Kernel.of(theta)
    likeness = (x * kernel.weights[owner]) @ x.T
    own = kernel(likeness)
    own[np.diag_indices(len(y))] += noise + kernel.noise + _JITTER
    try:
        factor = cho_factor(own, lower=True)
    except LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve(factor, np.eye(len(y)))
    alpha = inverse @ y
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum())
    slope = 0.5 * (inverse - np.outer(alpha, alpha))  # the value's, by each entry of the kernel
    tail = kernel.joint * np.exp((likeness - 1) / kernel.length)
    by_likeness = slope * (kernel.additive + 2 * kernel.pairwise * likeness + tail / kernel.length)
    by_weight = np.bincount(owner, ((by_likeness @ x) * x).sum(0), minlength=len(kernel.weights))
    by_kind = (
        kernel.additive * (slope * likeness).sum(),
        kernel.pairwise * (slope * likeness**2).sum(),
        (slope * tail).sum(),
        (slope * tail * (1 - likeness)).sum() / kernel.length,
        kernel.noise * np.trace(slope),
    )
    fields, kinds = theta[:-5] - theta[:-5].mean(), (theta[-5:] - _PRIOR) / _PRIOR_STD
    value += 0.25 * float(fields @ fields) + 0.5 * float(kinds @ kinds)
    gradient = np.concatenate(
        [
            kernel.weights * (by_weight - kernel.weights @ by_weight) + 0.5 * fields,
            by_kind + kinds / _PRIOR_STD,
        ]
    )
    return value, gradient
