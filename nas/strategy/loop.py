"""The loop: ask a searcher, have its paths scored, tell it.

Paths are asked for in batches of a fixed size and told in the order in which they were asked for.
So the number of workers, and the order in which they finish, change nothing of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nas.errors import EvaluationError, InfeasibleError
from nas.strategy.constraints import Region
from nas.strategy.searchers import Searcher
from nas.trellis.graph import Ints

BATCH = 8


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


def require_found(searcher: Searcher, region: Region) -> None:
    """Raise `InfeasibleError` when bounded tries have found nothing that meets all limits."""
    rejected = {c: n for c, n in searcher.rejections.items() if n and c.startswith("over_")}
    causes = ", ".join(f"{n} {c.replace('_', ' ')}" for c, n in sorted(rejected.items()))
    raise InfeasibleError(
        f"none of {searcher.proposals:,} proposals meets {' and '.join(map(str, region.limits))}"
        f" (rejected: {causes or 'none'})",
        "raise the limit that rejects most",
    )
