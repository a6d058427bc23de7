"""What is known of scores, as a function of the choices: a Gaussian process.

It screens candidates: it knows what it does not know, takes in noise, and its kernel holds what
each choice adds, what pairs do together, and what only whole combinations do; how much of each, and
how much each field matters, is learned (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, sections 4.2 and 5.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from nas.space.rules import Position
from nas.strategy.features import Fields
from nas.strategy.threads import one_thread
from nas.trellis.graph import Floats, Ints

_JITTER = 1e-6
_LEARNED_FROM = (
    400  # scores that the kernel is learned from at most; all of them are predicted from
)
# Logarithms of: additive, pairwise and joint variance, length of the joint part, noise (of scores
# scaled to a variance of 1): the mode of their normal prior, and its standard deviation. Additive
# unless the scores say otherwise, with a noise that is neither ruled out nor assumed.
_PRIOR = np.log([1.0, 0.05, 0.04, 0.5, 0.05])
_PRIOR_STD = np.array([1.0, 1.2, 1.2, 0.7, 1.7])
_BOUNDS = [(-7.0, 4.0)] * 3 + [(-3.0, 3.0), (-12.0, 1.0)]


class _Kernel(NamedTuple):
    """Weights of the fields (they sum to 1), and the five numbers of the prior above."""

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


class Surrogate:
    """A Gaussian process from the choices of a path to its score; `fit` first, again with more."""

    def __init__(self, positions: Sequence[Position]) -> None:
        self.fields = Fields(positions)
        self._theta: Floats | None = None

    @one_thread()
    def fit(self, paths: Ints, scores: Floats, noise: Floats | float = 0.0) -> Surrogate:
        """`noise` is the variance of each score as a measurement, as far as it is known."""
        x = self.fields(paths)
        self._mean, self._scale = float(scores.mean()), float(scores.std()) or 1.0
        y = (scores - self._mean) / self._scale
        known = np.broadcast_to(np.asarray(noise) / self._scale**2, y.shape)
        self._learn(x, y, known)
        self._x = x * np.sqrt(self._kernel.weights[self.fields.owner])
        own = self._kernel(self._x @ self._x.T)
        own[np.diag_indices(len(y))] += known + self._kernel.noise + _JITTER
        self._lower = cholesky(own, lower=True)
        self._alpha = cho_solve((self._lower, True), y)
        return self

    def _learn(self, x: Floats, y: Floats, noise: Floats) -> None:
        """The kernel that explains the scores best, from where the last one was."""
        if len(y) > _LEARNED_FROM:  # the best, which matter, and of the others every so many
            order = np.argsort(-y, kind="stable")
            half = _LEARNED_FROM // 2
            rest = order[half:]
            some = np.concatenate([order[:half], rest[:: -(-len(rest) // half)]])
            x, y, noise = x[some], y[some], noise[some]
        first = self._theta is None
        start = np.concatenate([np.zeros(self.fields.count), _PRIOR]) if first else self._theta
        found = minimize(
            _negative_evidence,
            start,
            args=(x, y, noise, self.fields.owner),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-8.0, 8.0)] * self.fields.count + _BOUNDS,
            options={"maxiter": 40 if first else 8},
        )
        self._theta = found.x
        self._kernel = _Kernel.of(found.x)

    def _towards(self, paths: Ints) -> tuple[Floats, Floats]:
        """Features of paths, weighted, and their kernel with what was fitted (n, fitted)."""
        x = self.fields(paths) * np.sqrt(self._kernel.weights[self.fields.owner])
        return x, self._kernel(x @ self._x.T)

    @one_thread()
    def predict(self, paths: Ints) -> Floats:
        """Expected scores (n,), free of noise: also those of fitted paths."""
        mean: Floats = self._mean + self._scale * (self._towards(paths)[1] @ self._alpha)
        return mean

    @one_thread()
    def posterior(self, paths: Ints) -> tuple[Floats, Floats]:
        """Expected scores (n,) and their standard deviations (n,)."""
        _, near = self._towards(paths)
        known = solve_triangular(self._lower, near.T, lower=True)
        variance = np.maximum(self._kernel.variance - (known**2).sum(0), 1e-12)
        return self._mean + self._scale * (near @ self._alpha), self._scale * np.sqrt(variance)

    @one_thread()
    def covariance(self, paths: Ints) -> Floats:
        """What is not known of these paths, together (n, n)."""
        x, near = self._towards(paths)
        known = solve_triangular(self._lower, near.T, lower=True)
        left: Floats = self._scale**2 * (self._kernel(x @ x.T) - known.T @ known)
        return left


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
    slope = 0.5 * (inverse - np.outer(alpha, alpha))  # of the value by each entry of the kernel
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
