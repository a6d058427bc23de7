"""Statistics of costs and scores: rank correlation, fronts, and the area that they dominate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation (ties get their mean rank); nan where one side is constant."""
    from scipy.stats import spearmanr

    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(spearmanr(x, y).statistic)


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The indices of the Pareto front, by cost; of several equal points it holds one.

    A point is on it if no other is as cheap with a higher score, or cheaper with as high a score.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for i in order:
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def hypervolumes(
    costs: Sequence[float], scores: Sequence[float], limit: float, base: float
) -> list[float]:
    """The area that the first points dominate, for each number of them (as many as points).

    It lies below the cost `limit` and above the score `base`, as a share of the rectangle down to
    cost 0 and up to the best score: 1 is the best score at no cost.
    """
    from pymoo.indicators.hv import HV

    best = max([s for c, s in zip(costs, scores) if c <= limit], default=base)
    whole = limit * (best - base)
    if whole <= 0:
        return [0.0] * len(costs)
    area = HV(ref_point=np.array([limit, -base]))
    found: list[float] = []
    front = np.zeros((0, 2))
    for cost, score in zip(costs, scores):
        point = np.array([cost, -score])
        inside = cost < limit and score > base
        if inside and not (front <= point).all(1).any():
            front = np.concatenate([front[~(front >= point).all(1)], point[None]])
            found.append(float(area(front)) / whole)
        else:
            found.append(found[-1] if found else 0.0)
    return found
