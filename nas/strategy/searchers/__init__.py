"""Searchers: which paths to try next, given the scores known.

A searcher is one file here with a function `make(**settings)` that returns its `Propose`. All the
rest is written once, in `Searcher`: the rejection step, counts of rejections by cause, turns of
several budgets, and that no path is asked for twice. Nothing here knows of torch, files or workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np

from nas.errors import UnknownNameError
from nas.space.rules import Position
from nas.strategy.constraints import Region
from nas.strategy.statistics import spearman
from nas.trellis.graph import Floats, Ints

_TRIES = 20  # rounds of proposals after which no more are looked for
_MOST = 4096  # proposals of one round, where most are rejected


@dataclass(frozen=True, eq=False)
class Known:
    """All paths scored so far (n, positions), their scores (n,), and the noise of these (n,).

    The noise of a score is its variance as a measurement: 0 where it is exact or unknown.
    """

    positions: tuple[Position, ...]
    paths: Ints
    scores: Floats
    noise: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def within(self, region: Region) -> Known:
        """The part of it that keeps all limits of a region."""
        fits = region.fits(self.paths)
        return Known(self.positions, self.paths[fits], self.scores[fits], self.noise[fits])

    def among_best(self, n: int) -> Known:
        """The part of it with the `n` highest scores, in the same order."""
        if len(self) <= n:
            return self
        chosen = np.sort(np.argsort(-self.scores, kind="stable")[:n])
        return Known(self.positions, self.paths[chosen], self.scores[chosen], self.noise[chosen])

    def best(self, n: int) -> Ints:
        """The paths (up to n, positions) with the highest scores, highest first."""
        return self.paths[np.argsort(-self.scores, kind="stable")[:n]]


class Propose(Protocol):
    """A search algorithm: candidates for one region, given all that is known.

    One that predicts scores shows by what in an attribute `surrogate`, so that `Searcher` can
    compare its predictions with the scores that come. One that keeps a state gives it as JSON by
    `state()`, and takes it by `restore(state, known)`.
    """

    def __call__(self, region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
        """Candidates (any number, positions), best first; the first `n` new ones that fit count."""


def searcher_names() -> list[str]:
    """The names of all searchers, which are those of the files here."""
    return sorted(module.name for module in iter_modules(__path__))


def load_propose(name: str, **settings: Any) -> Propose:
    """The algorithm of the searcher called `name`; `UnknownNameError` if there is none."""
    if name not in searcher_names():
        raise UnknownNameError("searcher", name, searcher_names())
    module = import_module(f"nas.strategy.searchers.{name}")
    made: Propose = module.make(**settings)
    return made


class Searcher:
    """A search by ask and tell: every path that `ask` returns is new and keeps all limits.

    With several regions (one for each budget) the paths of an ask are for each in turn; a score
    told counts for all of them. `proposals` counts the paths looked at, `rejections` those not
    asked for, by cause; `unseen` holds for each score the surrogate's prediction before it came,
    and the score. The same seed and the same scores give the same paths.
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
        self.unseen: list[tuple[float, float]] = []
        self._scores: dict[tuple[int, ...], tuple[float, float]] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._known: Known | None = None  # as of the last time that somebody asked
        self._turn = 0

    @property
    def known(self) -> Known:
        """All scores told so far, in the order in which they were told."""
        before = self._known
        if before is None or len(before) < len(self._scores):
            done = 0 if before is None else len(before)
            new = list(islice(self._scores.items(), done, None))
            paths = np.array([path for path, _ in new], dtype=np.int64)
            scores = np.array([own for _, own in new], dtype=float).reshape(-1, 2)
            columns = [paths.reshape(-1, len(self.positions)), scores[:, 0], scores[:, 1]]
            if before is not None:
                old = (before.paths, before.scores, before.noise)
                columns = [np.concatenate(pair) for pair in zip(old, columns)]
            self._known = before = Known(self.positions, *columns)
        return before

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of the surrogate's predictions with scores not seen; nan without those."""
        return spearman(*zip(*self.unseen)) if len(self.unseen) > 2 else float("nan")

    def tell(
        self, paths: Ints, scores: Sequence[float], noise: Sequence[float] | float = 0.0
    ) -> None:
        """Learn the scores (n,) of paths (n, positions), asked for or not, and their variances."""
        surrogate = getattr(self.propose, "surrogate", None)
        asked = [tuple(path) in self._seen for path in paths.tolist()]
        if surrogate is not None and any(asked):
            predicted = surrogate.predict(paths[asked])
            self.unseen += zip(predicted.tolist(), np.asarray(scores, float)[asked].tolist())
        variances = np.broadcast_to(noise, len(paths)).tolist()
        for path, score, variance in zip(paths.tolist(), scores, variances):
            if tuple(path) in self._scores:
                self._known = None  # a score that changes
            self._scores[tuple(path)] = (float(score), variance)
            self._seen.add(tuple(path))

    def state(self) -> dict[str, Any]:
        """All that the next `ask` depends on besides the scores told, as JSON."""
        own = getattr(self.propose, "state", dict)
        return {
            "rng": self.rng.bit_generator.state,
            "turn": self._turn,
            "proposals": self.proposals,
            "rejections": dict(self.rejections),
            "propose": own(),
        }

    def replay(
        self,
        paths: Ints,
        scores: Mapping[int, tuple[float, float]],
        predicted: Sequence[float],
    ) -> None:
        """Learn what was asked for and told once, without asking for it again.

        `scores` holds the score and the noise of some of the paths (n, positions) by their index,
        `predicted` what the surrogate had predicted of these, where there was one.
        """
        told = [tuple(path) for path in paths.tolist()]
        self._seen.update(told)
        self._scores.update({told[i]: own for i, own in scores.items()})
        self.unseen += zip(predicted, (score for score, _ in scores.values()))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` after all that was replayed."""
        self.rng.bit_generator.state = state["rng"]
        self._turn, self.proposals = state["turn"], state["proposals"]
        self.rejections = Counter(state["rejections"])
        if hasattr(self.propose, "restore"):
            self.propose.restore(state["propose"], self.known)

    def ask(self, n: int, keep: int | None = None) -> Ints:
        """`n` distinct new paths (n, positions); fewer where no more are left or found.

        Only `keep` of them, if that is given, as if the others had not been proposed: so a search
        whose last batch is not whole has asked for nothing that a longer one does not ask for.
        """
        chosen: list[tuple[int, ...]] = []
        turns = [(self._turn + i) % len(self.regions) for i in range(n)]
        self._turn = (self._turn + n) % len(self.regions)
        known = self.known
        regions: list[int] = []  # of each that is chosen
        for r, region in enumerate(self.regions):
            self._fill(region, known, chosen, len(chosen) + turns.count(r))
            regions += [r] * (len(chosen) - len(regions))
        if keep is not None:
            chosen = self._kept(chosen, regions, keep)
        return np.array(chosen, dtype=np.int64).reshape(len(chosen), len(self.positions))

    def _kept(
        self, chosen: list[tuple[int, ...]], regions: list[int], keep: int
    ) -> list[tuple[int, ...]]:
        """The first `keep` of the paths, of each region in turn; the others are forgotten."""
        turn = [regions[:i].count(r) for i, r in enumerate(regions)]
        first = sorted(range(len(chosen)), key=lambda i: (turn[i], i))[:keep]
        for i in set(range(len(chosen))) - set(first):
            self._seen.discard(chosen[i])
            self.proposals -= 1
        return [chosen[i] for i in sorted(first)]

    def _fill(self, region: Region, known: Known, chosen: list[tuple[int, ...]], upto: int) -> None:
        """Choose new paths of one region until `upto` are chosen, or after many tries."""
        before = len(chosen)
        for i in range(_TRIES):
            if len(chosen) >= upto or (i and self._exhausted(region)):
                return
            region.renew()
            wanted = min((upto - len(chosen)) << i, max(_MOST, upto))
            misled = not region.exact and i % 2 == 1 and len(chosen) == before
            if i < _TRIES // 2 and not misled:
                proposed = self.propose(region, known, wanted, self.rng)
            else:  # the searcher repeats itself, or trusts a wrong estimate: random draws instead
                proposed = region.anywhere(wanted, self.rng)
            self._accept(region, proposed, chosen, upto)

    def _exhausted(self, region: Region) -> bool:
        """Whether every path that the region can propose is known already."""
        count = region.within.count if region.exact else region.graph.count
        if len(self._seen) < count:
            return False
        if region.exact and len(self._seen) < (count := region.within.most):
            return False
        return int(region.fits(np.array(sorted(self._seen))).sum()) >= count

    def _accept(
        self, region: Region, paths: Ints, chosen: list[tuple[int, ...]], upto: int
    ) -> None:
        """The rejection step: choose new paths that keep all limits, in order, until `upto`."""
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
