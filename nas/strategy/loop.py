"""The loop of a search: a searcher is asked for paths, these are scored, and it is told the scores.

Paths are asked for in batches of a fixed size, and told in the order in which they were asked for.
So the result depends neither on the number of workers nor on the order in which they finish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nas.errors import EvaluationError, InfeasibleError, VitnasError
from nas.strategy.constraints import Region
from nas.strategy.searchers import Searcher
from nas.trellis.graph import Ints

BATCH = 8


@dataclass(frozen=True)
class Score:
    """The score of a path and the variance of that score as a measurement, or why it has none."""

    value: float = math.nan
    noise: float = 0.0
    error: str = ""


@dataclass
class Patience:
    """The number of candidates of a run that may fail: a share of those tried, and always a few."""

    share: float = 0.25
    always: int = 4
    tried: int = 0
    failed: int = 0

    def note(self, error: str) -> None:
        """Count one candidate, failed if it has an error; `EvaluationError` if too many have."""
        self.tried += 1
        self.failed += bool(error)
        if error and self.failed > max(self.always, self.share * self.tried):
            raise EvaluationError(
                f"{self.failed} of {self.tried} candidates were set aside, more than "
                f"{100 * self.share:g} %; the last: {error}",
                "mend the cause; what was scored is kept",
            )


class Memory(Protocol):
    """Where the batches of a search are kept, as JSON, so that another process can go on."""

    @property
    def batches(self) -> Sequence[Mapping[str, Any]]:
        """The batches that were kept, in order."""

    def keep(self, batch: Mapping[str, Any]) -> None:
        """Keep a batch."""

    def restored(self, batch: Mapping[str, Any]) -> None:
        """Hear which batch was the last that did not have to be asked for again."""


def explore(
    searcher: Searcher,
    score: Callable[[Ints], Sequence[Score]],
    evaluations: int,
    batch: int = BATCH,
    patience: Patience | None = None,
    memory: Memory | None = None,
) -> int:
    """Ask a searcher for up to so many paths, have them scored, and tell it; returns their number.

    What is asked for does not depend on their number: more of them begin with the same paths. There
    are fewer where everything that fits has been scored, or nothing new is found. A path
    whose score has an error is set aside and never asked for again; `EvaluationError` when
    `patience` ends, or in the end where no path has a score and not all were allowed to fail.

    What `memory` holds is not asked for again: only scores that it lacks are.
    """
    patience = patience or Patience()
    done = 0 if memory is None else _replayed(searcher, score, evaluations, patience, memory)
    scores: Sequence[Score] = ()
    while done < evaluations:
        asked = searcher.ask(batch, keep=evaluations - done)
        if not len(asked):
            break
        scores = score(asked)
        good = [i for i, s in enumerate(scores) if not s.error]
        unseen = len(searcher.unseen)
        searcher.tell(asked[good], [scores[i].value for i in good], [scores[i].noise for i in good])
        searcher.rejections["failed"] += len(asked) - len(good)
        for s in scores:
            patience.note(s.error)
        done += len(asked)
        if memory is not None and len(asked) == batch:
            predicted = [p for p, _ in searcher.unseen[unseen:]]
            told = {"paths": asked.tolist(), "good": good, "predicted": predicted}
            memory.keep({"start": done - batch, **told, "state": searcher.state()})
    if done and not len(searcher.known) and patience.share < 1:
        last = f"; the last: {scores[-1].error}" if scores else ""
        raise EvaluationError(
            f"none of {done} candidates has a score{last}",
            "mend the cause; what was scored is kept",
        )
    return done


def _replayed(
    searcher: Searcher,
    score: Callable[[Ints], Sequence[Score]],
    evaluations: int,
    patience: Patience,
    memory: Memory,
) -> int:
    """Tell a searcher the batches in memory; returns how many paths these are.

    It ends before a batch that was lost, or of which other paths fail now than did then.
    """
    done, last = 0, None
    for batch in memory.batches:
        paths = np.array(batch["paths"], dtype=np.int64)
        if batch["start"] != done or done + len(paths) > evaluations:
            break
        scores = score(paths)
        if [i for i, s in enumerate(scores) if not s.error] != batch["good"]:
            break
        own = {i: (scores[i].value, scores[i].noise) for i in batch["good"]}
        searcher.replay(paths, own, batch["predicted"])
        for s in scores:
            patience.note(s.error)
        done, last = done + len(paths), batch
    if last is not None:
        searcher.restore(last["state"])
        memory.restored(last)
    return done


def no_score(searcher: Searcher, region: Region, errors: Sequence[str]) -> VitnasError:
    """The error of a search without any score: why candidates failed, or what rejects proposals."""
    if errors:
        return EvaluationError(
            f"none of {len(errors)} candidates could be scored; the last: {errors[-1]}",
            "mend the cause, then go on with the same search",
        )
    limits = {limit.cause for own in searcher.regions for limit in own.limits}
    rejected = {c: n for c, n in searcher.rejections.items() if n and c in limits}
    causes = ", ".join(f"{n} {c.replace('_', ' ')}" for c, n in sorted(rejected.items()))
    return InfeasibleError(
        f"none of {searcher.proposals:,} proposals meets {' and '.join(map(str, region.limits))}"
        f" (rejected: {causes or 'none'})",
        "raise the limit that rejects most",
    )
