"""The calibration of a table: fitted on some networks, judged on others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from nas.errors import TableError


@dataclass(frozen=True)
class Calibration:
    """`measured = overhead + scale * sum(factor * row)`, and its error on other networks.

    Kinds of layers have factors of their own only where these predict better; all others are 1.
    """

    scale: float
    overhead: float
    fitted_on: int
    held_out: int
    mape_percent: float
    p95_percent: float
    bias_percent: float
    kendall_tau: float
    raw_mape_percent: float  # of the plain sum, before calibration
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fit(cls, sums: Sequence[float], measured: Sequence[float], fitted_on: int) -> Self:
        """Fit on the first `fitted_on` networks (least relative squares), judge on the others."""
        return cls.fit_kinds([{"": x} for x in sums], measured, fitted_on)

    @classmethod
    def fit_kinds(
        cls, sums: Sequence[Mapping[str, float]], measured: Sequence[float], fitted_on: int
    ) -> Self:
        """Fit on sums by kind of layer, where kinds may get factors.

        They get them if this lowers the error on each fitted network when it is left out.
        Raises `TableError` where networks with larger sums do not take longer.
        """
        kinds = sorted({kind for own in sums for kind in own})
        parts = np.array([[own.get(kind, 0.0) for kind in kinds] for own in sums])
        y = np.array(measured)
        x = parts.sum(1)
        near, target = parts[:fitted_on], y[:fitted_on]
        best = min(_STIFFNESS, key=lambda stiff: _left_out(near, target, stiff))
        plain = _left_out(near, target, math.inf)
        if _left_out(near, target, best) > min(_EARNED * plain, plain - _WORTH):
            best = math.inf
        scale, overhead, factors = _solve(near, target, best)
        if scale <= 0:
            raise TableError(
                "whole networks did not take longer where their layers do: the machine is too busy",
                "measure again when it is quiet: vitnas profile --again",
            )
        predicted = (overhead + scale * parts @ factors)[fitted_on:]
        x, y = x[fitted_on:], y[fitted_on:]
        error = (predicted - y) / y * 100
        own = {} if best == math.inf else dict(zip(kinds, factors.round(4).tolist()))
        return cls(
            scale=round(float(scale), 6),
            overhead=round(float(overhead), 6),
            fitted_on=fitted_on,
            held_out=len(y),
            mape_percent=round(float(np.abs(error).mean()), 3),
            p95_percent=round(float(np.percentile(np.abs(error), 95)), 3),
            bias_percent=round(float(error.mean()), 3),
            kendall_tau=round(kendall_tau(predicted, y), 4),
            raw_mape_percent=round(float(np.abs((x - y) / y * 100).mean()), 3),
            factors=own,
        )


@dataclass(frozen=True)
class Agreement:
    """How predictions agree with `networks` that were measured at another time than their table.

    `mape_percent` is the mean error, `ratio` the median of measured over predicted, and
    `inside_interval` how many measured within the interval of their prediction.
    """

    networks: int
    mape_percent: float
    ratio: float
    inside_interval: int


# How strongly the factors of kinds are held at 1: each deviation costs as an error of so many
# percent would, times this. Infinite: one scale for all.
_STIFFNESS = (0.03, 0.1, 0.3, 1.0, math.inf)
_EARNED, _WORTH = 0.9, 0.001  # factors must lower the left-out error to this share, by so much


def _solve(parts: Any, measured: Any, stiffness: float) -> tuple[float, float, Any]:
    """Scale, overhead and factors (kinds,) by least relative squares.

    `parts` (networks, kinds) are sums of rows, `measured` (networks,) the times of networks.
    """
    n, kinds = parts.shape
    ones = np.ones(n)
    a = np.stack([parts.sum(1), ones], 1) / measured[:, None]
    scale, overhead = np.linalg.lstsq(a, ones, rcond=None)[0]
    if stiffness == math.inf or kinds == 1:
        return float(scale), float(overhead), np.ones(kinds)
    # Unknown: overhead, and scale * (factor - 1) of each kind, held near 0 and scaled by its share.
    share = (parts / measured[:, None]).mean(0)
    a = np.concatenate([parts / measured[:, None], 1 / measured[:, None]], 1)
    rest = ones - scale * parts.sum(1) / measured - overhead / measured
    hold = np.diag([*(stiffness * np.maximum(share, 1e-6) ** 0.5), 0.0])
    change = np.linalg.lstsq(
        np.concatenate([a, hold]), np.concatenate([rest, np.zeros(kinds + 1)]), rcond=None
    )[0]
    return float(scale), float(overhead + change[-1]), 1 + change[:-1] / scale


def _left_out(parts: Any, measured: Any, stiffness: float) -> float:
    """Mean relative error on each network when fitted on the others."""
    errors = []
    for i in range(len(measured)):
        others = np.arange(len(measured)) != i
        scale, overhead, factors = _solve(parts[others], measured[others], stiffness)
        if (factors <= 0).any():
            return math.inf
        errors.append(abs(overhead + scale * parts[i] @ factors - measured[i]) / measured[i])
    return float(np.mean(errors))


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-a: the share of pairs in the same order minus those in the other."""
    x, y = np.asarray(a), np.asarray(b)
    i, j = np.triu_indices(len(x), 1)
    return float((np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])).mean())
