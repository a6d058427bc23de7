"""How good the answer of a search is, by everything known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas.strategy.constraints import Region
from nas.strategy.ridge import Ridge
from nas.strategy.searchers import Known
from nas.trellis.graph import Ints

JUDGED_FROM = 24  # scores below which nothing can be said about what is not scored


@dataclass(frozen=True)
class Quality:
    """How far the answer may be from the best there is, and what more budget would bring.

    `bound` is exact for the surrogate: no path that fits is predicted above it (additive given the
    first choice, costs rounded down; as far as the cost is known where it is a black box).
    `within_budget` counts by the limit that leaves least, black boxes left out. `gap` is what the
    answer is predicted below it; `error` is the root mean square error of these predictions on
    scores left out of the fit.
    """

    bound: float | None
    gap: float | None
    error: float | None
    gain_10_percent: float | None  # how much the bound rises with 10 % more budget
    architectures: int
    within_budget: int
    share_within_budget: float  # of uniform draws from the whole space

    def summary(self) -> dict[str, Any]:
        def short(x: Any) -> Any:
            return round(x, 4) if isinstance(x, float) and x > 1e-3 else x

        return {key: short(value) for key, value in asdict(self).items()}


def judge(region: Region, known: Known, answer: Ints | None) -> Quality:
    """The quality of an answer (positions,), by everything known."""
    budget = region.limits[0]
    count = region.graph.count
    inside = count
    for limit in region.limits:
        if limit.exact and limit.trellis and limit.bound < limit.trellis.slowest:
            inside = min(inside, limit.trellis.within(limit.bound, ticks=8192).count)
    bound = gap = error = gain = None
    if len(known) >= JUDGED_FROM and budget.trellis is not None:
        ridge = Ridge.fit(known.positions, known.paths, known.scores)
        error = ridge.error
        bound = _bound(region, ridge, 1.0)
        gain = max(_bound(region, ridge, 1.1) - bound, 0.0)
        if answer is not None:
            gap = bound - float(ridge.predict(answer[None])[0])
    return Quality(bound, gap, error, gain, count, inside, inside / count)


def _bound(region: Region, ridge: Ridge, more: float) -> float:
    """The least of the bounds of every additive limit, the budget raised by a factor."""
    found = []
    for i, limit in enumerate(region.limits):
        if limit.trellis is None:
            continue
        reach = (limit.bound if limit.exact else limit.reach or limit.bound) * (1 if i else more)
        trellis = limit.trellis
        found.append(
            max(trellis.bound(max(reach, trellis.fastest), tables) for tables in ridge.tables)
        )
    return min(found)


def in_budget(region: Region, known: Known) -> Ints | None:
    """The known path with the highest score that meets all limits."""
    fits = region.fits(known.paths)
    if not fits.any():
        return None
    values = np.where(fits, known.scores, -np.inf)
    best: Ints = known.paths[int(np.argmax(values))]
    return best
