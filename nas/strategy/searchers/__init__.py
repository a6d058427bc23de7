"""Searchers behind ask and tell: what to try next, given what is known.

A searcher is one file with one function `propose(region, known, n, rng)`, or an object that is
called like it: candidates for one region, best first, of any number. Everything else is done here
once: the rejection step, counts by cause, several budgets in turn, never the same path twice. It
knows nothing of torch, files or workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np

from nas.errors import UnknownNameError
from nas.space.rules import Position
from nas.strategy.constraints import Region
from nas.strategy.statistics import spearman
from nas.trellis.graph import Floats, Ints

_TRIES = 20  # rounds of proposals before giving up on finding more
_MOST = 4096  # proposals of a round, where most are rejected


@dataclass(frozen=True, eq=False)
class Known:
    """Everything scored so far: paths (n, positions), scores (n,), and the variance of each score
    as a measurement (n,), 0 where it is exact or nobody knows."""

    positions: tuple[Position, ...]
    paths: Ints
    scores: Floats
    noise: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def within(self, region: Region) -> Known:
        fits = region.fits(self.paths)
        return Known(self.positions, self.paths[fits], self.scores[fits], self.noise[fits])

    def best(self, n: int) -> Ints:
        """The paths (up to n, positions) with the highest scores, highest first."""
        return self.paths[np.argsort(-self.scores, kind="stable")[:n]]


class Propose(Protocol):
    """Candidates (any number, positions) for one region, best first."""

    def __call__(self, region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints: ...


def searcher_names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__))


def load_propose(name: str, **settings: Any) -> Propose:
    """The searcher called `name`, with its settings where it has any."""
    if name not in searcher_names():
        raise UnknownNameError("searcher", name, searcher_names())
    module = import_module(f"nas.strategy.searchers.{name}")
    made: Propose = module.make(**settings)
    return made


class Searcher:
    """Ask for paths, tell their scores; every path asked for is new and meets all limits.

    With several regions (budgets) each ask serves them in turn; a score told counts for all of
    them. Proposals and rejections by cause are counted. The same seed and the same scores give the
    same questions.
    """

    def __init__(
        self,
        propose: Propose,
        positions: Sequence[Position],
        regions: Sequence[Region],
        rng: np.random.Generator,
    ) -> None:
        self.propose, self.positions, self.regions = propose, tuple(positions), tuple(regions)
        self.rng = rng
        self.proposals = 0
        self.rejections: Counter[str] = Counter({"duplicate": 0})
        for region in regions:
            self.rejections.update({limit.cause: 0 for limit in region.limits})
        self.unseen: list[tuple[float, float]] = []  # what was predicted of a score, and the score
        self._scores: dict[tuple[int, ...], tuple[float, float]] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._turn = 0

    @property
    def known(self) -> Known:
        n = len(self._scores)
        scores = np.array(list(self._scores.values()), dtype=float).reshape(n, 2)
        paths = np.array(list(self._scores), dtype=np.int64).reshape(n, len(self.positions))
        return Known(self.positions, paths, scores[:, 0], scores[:, 1])

    @property
    def rank_correlation(self) -> float:
        """Of the surrogate's predictions with scores that it had not seen; nan without one."""
        return spearman(*zip(*self.unseen)) if len(self.unseen) > 2 else float("nan")

    def tell(
        self, paths: Ints, scores: Sequence[float], noise: Sequence[float] | float = 0.0
    ) -> None:
        surrogate = getattr(self.propose, "surrogate", None)
        asked = [tuple(path) in self._seen for path in paths.tolist()]
        if surrogate is not None and any(asked):
            predicted = surrogate.predict(paths[asked])
            self.unseen += zip(predicted.tolist(), np.asarray(scores, float)[asked].tolist())
        variances = np.broadcast_to(noise, len(paths)).tolist()
        for path, score, variance in zip(paths.tolist(), scores, variances):
            self._scores[tuple(path)] = (float(score), variance)
            self._seen.add(tuple(path))

    def ask(self, n: int) -> Ints:
        """`n` new paths, distinct; fewer if none are left or none are found."""
        chosen: list[tuple[int, ...]] = []
        turns = [(self._turn + i) % len(self.regions) for i in range(n)]
        self._turn = (self._turn + n) % len(self.regions)
        known = self.known
        for r, region in enumerate(self.regions):
            self._fill(region, known, chosen, len(chosen) + turns.count(r))
        return np.array(chosen, dtype=np.int64).reshape(len(chosen), len(self.positions))

    def _fill(self, region: Region, known: Known, chosen: list[tuple[int, ...]], upto: int) -> None:
        for i in range(_TRIES):
            if len(chosen) >= upto or (i and self._exhausted(region)):
                return
            wanted = min((upto - len(chosen)) << i, max(_MOST, upto))
            stuck = i >= _TRIES // 2  # a searcher that repeats itself is helped by chance
            proposed = (
                region.anywhere(wanted, self.rng)
                if stuck
                else self.propose(region, known, wanted, self.rng)
            )
            self._accept(region, proposed, chosen, upto)

    def _exhausted(self, region: Region) -> bool:
        """Whether as many paths are known as the region proposes from, so that few can be left."""
        count = region.within.count if region.exact else region.graph.count
        if len(self._seen) < count:
            return False
        return int(region.fits(np.array(sorted(self._seen))).sum()) >= count

    def _accept(
        self, region: Region, paths: Ints, chosen: list[tuple[int, ...]], upto: int
    ) -> None:
        """The rejection step: every proposal's true costs, in order, until there are enough."""
        step = max(2 * (upto - len(chosen)), 8)
        for start in range(0, len(paths), step):
            chunk = paths[start : start + step]
            for path, cause in zip(map(tuple, chunk.tolist()), region.causes(chunk)):
                if len(chosen) >= upto:
                    return
                self.proposals += 1
                if path in self._seen or cause:
                    self.rejections[cause or "duplicate"] += 1
                else:
                    chosen.append(path)
                    self._seen.add(path)
