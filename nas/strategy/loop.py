"""The loop: ask a searcher, have its paths scored, tell it; and how good the answer is.

Paths are asked for in batches of a fixed size and told in the order in which they were asked for.
So the number of workers, and the order in which they finish, change nothing of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas.errors import EvaluationError, InfeasibleError
from nas.strategy.constraints import Region
from nas.strategy.searchers import Known, Searcher
from nas.strategy.surrogate import Ridge
from nas.trellis.graph import Ints

BATCH = 8
JUDGED_FROM = 24  # scores below which nothing can be said about what is not scored


@dataclass(frozen=True)
class Score:
    """What came of one path: its score and that score's variance, or why it has none."""

    value: float = math.nan
    noise: float = 0.0
    error: str = ""


@dataclass
class Patience:
    """How many candidates of a run may fail: a share of them, and in any case a few."""

    share: float = 0.25
    always: int = 4
    tried: int = 0
    failed: int = 0

    def note(self, error: str) -> None:
        """Count one more, failed if there is an error; `EvaluationError` when too many have."""
        self.tried += 1
        self.failed += bool(error)
        if error and self.failed > max(self.always, self.share * self.tried):
            raise EvaluationError(
                f"{self.failed} of {self.tried} candidates were set aside, more than "
                f"{100 * self.share:g} %; the last: {error}",
                "mend the cause; what was scored is kept",
            )


def explore(
    searcher: Searcher,
    score: Callable[[Ints], Sequence[Score]],
    evaluations: int,
    batch: int = BATCH,
    patience: Patience | None = None,
) -> int:
    """Ask, score, tell, up to a number of evaluations; returns how many there were.

    Fewer where everything that fits has been scored or nothing new is found. A path without a
    score is set aside and never asked for again; `EvaluationError` when too many are.
    """
    patience = patience or Patience()
    done = 0
    while done < evaluations:
        asked = searcher.ask(min(batch, evaluations - done))
        if not len(asked):
            break
        scores = score(asked)
        good = [i for i, s in enumerate(scores) if not s.error]
        searcher.tell(asked[good], [scores[i].value for i in good], [scores[i].noise for i in good])
        searcher.rejections["failed"] += len(asked) - len(good)
        for s in scores:
            patience.note(s.error)
        done += len(asked)
    return done


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


def require_found(searcher: Searcher, region: Region) -> None:
    """Raise `InfeasibleError` when bounded tries have found nothing that meets all limits."""
    rejected = {c: n for c, n in searcher.rejections.items() if n and c.startswith("over_")}
    causes = ", ".join(f"{n} {c.replace('_', ' ')}" for c, n in sorted(rejected.items()))
    raise InfeasibleError(
        f"none of {searcher.proposals:,} proposals meets {' and '.join(map(str, region.limits))}"
        f" (rejected: {causes or 'none'})",
        "raise the limit that rejects most",
    )


def in_budget(region: Region, known: Known) -> Ints | None:
    """The known path with the highest score that meets all limits."""
    fits = region.fits(known.paths)
    if not fits.any():
        return None
    values = np.where(fits, known.scores, -np.inf)
    best: Ints = known.paths[int(np.argmax(values))]
    return best
