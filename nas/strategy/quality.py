"""The quality of an answer: how far it may be from the best there is, by everything known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nas.strategy.constraints import Region
from nas.strategy.ridge import Ridge
from nas.strategy.searchers import Known
from nas.trellis.graph import Ints

JUDGED_FROM = 24  # scores; a surrogate of fewer says nothing about paths without a score
_TICKS = 8192


@dataclass(frozen=True)
class Quality:
    """How far an answer may be from the best there is, and what more budget would bring.

    `bound` is the highest score that the ridge regression predicts for any path that fits, or more
    (costs are rounded down; as far as the cost is known, where it is a black box); `gap` is how
    much lower it predicts the answer; `error` is the root mean square error of its predictions on
    scores left out of the fit; `gain_10_percent` is the rise of `bound` with a budget 10 % higher.
    All four are in the unit of scores, and None where too little is known.

    `within_budget` counts the paths that keep the limit that leaves the fewest, black boxes left
    out; `share_within_budget` is its share of all `architectures`.
    """

    bound: float | None
    gap: float | None
    error: float | None
    gain_10_percent: float | None
    architectures: int
    within_budget: int
    share_within_budget: float

    def summary(self) -> dict[str, Any]:
        """The fields by name as `run.json` holds them, numbers above 0.001 to four decimals."""

        def short(x: Any) -> Any:
            return round(x, 4) if isinstance(x, float) and x > 1e-3 else x

        return {key: short(value) for key, value in asdict(self).items()}


def judge(region: Region, known: Known, answer: Ints | None) -> Quality:
    """The quality of an answer (positions,) within a region, or of None, where there is none."""
    count = region.graph.count
    inside = count
    for limit in region.limits:
        if limit.exact and limit.trellis and limit.bound < limit.trellis.slowest:
            inside = min(inside, limit.trellis.within(limit.bound, ticks=_TICKS).count)
    bound = gap = error = gain = None
    if len(known) >= JUDGED_FROM and region.limits[0].trellis is not None:
        ridge = Ridge.fit(known.positions, known.paths, known.scores)
        error = ridge.error
        bound = _bound(region, ridge, 1.0)
        gain = max(_bound(region, ridge, 1.1) - bound, 0.0)
        if answer is not None:
            gap = bound - float(ridge.predict(answer[None])[0])
    return Quality(bound, gap, error, gain, count, inside, inside / count)


def _bound(region: Region, ridge: Ridge, more: float) -> float:
    """The lowest of the bounds by each limit that has a trellis, with `more` times the budget."""
    found = []
    for i, limit in enumerate(region.limits):
        if limit.trellis is None:
            continue
        reach, trellis = limit.reached(1.0 if i else more), limit.trellis
        found.append(
            max(trellis.bound(max(reach, trellis.fastest), tables) for tables in ridge.tables)
        )
    return min(found)
