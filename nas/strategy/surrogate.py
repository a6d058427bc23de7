"""What is known of scores, as a function of the choices: a Gaussian process, and a ridge.

Both see a path as the fields of its values (`Fields`). The process screens candidates: it knows
what it does not know, takes in noise, and its kernel holds what each choice adds, what pairs do
together, and what only whole combinations do; how much of each, and how much each field matters,
is learned (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 4.2 and
5.4). The ridge is additive given the first choice, so that the trellis can maximise it exactly: it
gives seeds, and a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from nas.space.rules import Position
from nas.trellis.graph import Ints
from nas.trellis.trellis import Floats

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


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread: with two it rounds in another way, so that a search would go
    another way on another number of cores, and while others use these it takes ten times as long.
    """
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    """The libraries of linear algebra in this process."""
    return ThreadpoolController()


class Fields:
    """Paths as features: each field of each position as categories, and as levels where ordered.

    Rows of one field have norm 1, so that the inner product of two paths within a field is their
    likeness: 1 where they agree; where they do not, -1 / (values - 1) for categories, and falling
    to -1 with the distance for levels.
    """

    def __init__(self, positions: Sequence[Position]) -> None:
        self.tables: list[Floats] = []  # for each position (values, features)
        owner: list[int] = []
        for position in positions:
            blocks = [block for column in _columns(position.values) for block in _codes(column)]
            for block in blocks:
                owner += [len(set(owner))] * block.shape[1]
            empty = np.zeros((len(position.values), 0))
            self.tables.append(np.concatenate([empty, *blocks], axis=1))
        self.owner = np.array(owner, dtype=np.int64)  # the field of each feature
        self.count = len(set(owner))

    def __call__(self, paths: Ints) -> Floats:
        """(n, features) for value indices (n, positions)."""
        return np.concatenate([t[paths[:, i]] for i, t in enumerate(self.tables)], axis=1)


def _columns(values: Sequence[Any]) -> list[list[Any]]:
    """Values by field: a dataclass has its own, anything else is one; `None` has none of them."""
    width = max((len(fields(v)) for v in values if is_dataclass(v)), default=0)
    if not width:
        return [list(values)]
    nothing = (None,) * width
    rows = [nothing if v is None else tuple(getattr(v, f.name) for f in fields(v)) for v in values]
    return [list(column) for column in zip(*rows)]


def _codes(column: list[Any]) -> list[Floats]:
    """Codes of a field's values, one block a kind; none where there is nothing to choose."""
    kinds = list(dict.fromkeys(column))
    n = len(kinds)
    if n < 2:
        return []
    index = [kinds.index(value) for value in column]
    simplex = (np.eye(n) - 1 / n) * np.sqrt(n / (n - 1))
    blocks = [simplex[index]]
    levels = sorted({v for v in kinds if isinstance(v, int | float)})
    if len(levels) > 2:
        steps = np.sign(np.subtract.outer(levels, np.add(levels[1:], levels[:-1]) / 2))
        code = dict(zip(levels, steps / np.sqrt(len(levels) - 1)))
        none = np.zeros(len(levels) - 1)
        blocks.append(np.array([code.get(v, none) for v in column]))
    return blocks


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


@dataclass(frozen=True)
class Ridge:
    """Ridge regression that is additive given the first choice; the penalty is that of the least
    leave-one-out error.

    The first position (in our spaces the resolution) scales everything after it, so each other
    choice has a coefficient besides for every value of the first.
    """

    fields: Fields
    weights: Floats
    mean: float
    error: float  # root mean square of the leave-one-out error

    @classmethod
    @one_thread()
    def fit(cls, positions: Sequence[Position], paths: Ints, scores: Floats) -> Ridge:
        own = Fields(positions)
        x, mean = cls._features(own, paths), float(scores.mean())
        y = scores - mean
        # Not by LAPACK's SVD, which fails to converge on one in a hundred such tables of zeros and
        # ones (OpenBLAS 0.3.31, AMD Zen 3), and takes three times as long.
        wide = x.shape[0] <= x.shape[1]
        spectrum, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
        spectrum = spectrum.clip(min=0.0)
        rows = vectors * np.sqrt(spectrum) if wide else x @ vectors
        along, squared = rows.T @ y, rows**2
        best: tuple[float, Floats] = (np.inf, np.zeros(x.shape[1]))
        for penalty in np.logspace(-2, 3, 21):
            share = 1 / (spectrum + penalty)
            residual = y - rows @ (share * along)
            left_out = residual / np.maximum(1 - squared @ share, 1e-6)
            error = float((left_out**2).mean())
            if error < best[0]:
                best = (error, x.T @ residual / penalty)
        return cls(own, best[1], mean, best[0] ** 0.5)

    @staticmethod
    def _features(fields: Fields, paths: Ints) -> Floats:
        values = len(fields.tables[0])
        first = np.eye(values)[paths[:, 0]]
        rest = fields(paths)[:, fields.tables[0].shape[1] :]
        by_first = [rest * first[:, [k]] for k in range(values)]
        return np.concatenate([first, rest, *by_first], axis=1)

    @one_thread()
    def predict(self, paths: Ints) -> Floats:
        return self.mean + self._features(self.fields, paths) @ self.weights

    @cached_property
    def tables(self) -> list[list[Floats]]:
        """For each value of the first position what each value of each position adds.

        The other values of the first are forbidden: minus infinity.
        """
        values = len(self.fields.tables[0])
        rest = sum(t.shape[1] for t in self.fields.tables[1:])
        shared = self.weights[values : values + rest]
        found = []
        for k in range(values):
            own = shared + self.weights[values + rest * (k + 1) : values + rest * (k + 2)]
            start = np.full(values, -np.inf)
            start[k] = self.mean + self.weights[k]
            tables, at = [start], 0
            for table in self.fields.tables[1:]:
                tables.append(table @ own[at : at + table.shape[1]])
                at += table.shape[1]
            found.append(tables)
        return found

    def maximise(self, solve: Callable[[list[Floats]], tuple[Any, float]]) -> tuple[Any, float]:
        """The best that `solve(tables)` finds for any first value: a path, and its score."""
        return max((solve(tables) for tables in self.tables), key=lambda found: found[1])
