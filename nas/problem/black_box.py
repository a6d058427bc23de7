"""Costs that a function of a member gives: its calls are kept, counted, bounded, and learned from.

A function says nothing of members that it was not asked about. So the calls are also fitted by a
sum over the choices, from which members are proposed; the function itself then decides. The sum
is fitted anew whenever there are twice as many calls as it was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from typing import Any

import numpy as np

from nas.errors import RunError, UsageError
from nas.problem.members import member_id
from nas.progress import console
from nas.records import Journal
from nas.space.domains import Space
from nas.space.rules import Position
from nas.strategy.threads import one_thread
from nas.trellis.graph import Floats, Graph, Ints, decode
from nas.trellis.trellis import Trellis, whole

_DRAWS = 400  # random members, at most, that the first estimate is fitted to
_MANY = 32  # members that are known to fit, whose estimates say where others are
_NEAR = 24  # calls, at least, from which the error near a bound is taken
_FLUSH_S = 1.0  # how long calls may be unwritten


class BlackBox:
    """A function of a member as costs of paths: each member is asked about once, or never again.

    `known` holds the costs in the order in which they were asked for, at most `most` of them; all
    others are nan from then on, and it is `spent`. Those that the journal of an interrupted search
    holds are not asked for again, so that a noisy cost stays what it was. `heard` is told how many
    there are.
    """

    def __init__(
        self, name: str, space: Space[Any], function: Callable[[Any], float], most: int
    ) -> None:
        self.name, self.most = name, most
        self._space, self._function = space, function
        self.known: dict[tuple[int, ...], float] = {}
        self.spent = False
        self.heard: Callable[[int], None] = lambda _: None
        self._written: dict[tuple[int, ...], float] = {}
        self._journal: Journal | None = None
        self._unwritten: list[dict[str, Any]] = []
        self._flushed = monotonic()

    def __call__(self, paths: Ints) -> Floats:
        """The costs (n,) of paths (n, positions)."""
        try:
            return np.array([self._cost(tuple(path)) for path in paths.tolist()], dtype=float)
        finally:
            self._flush()

    def asked(self, paths: Ints) -> Floats:
        """The costs (n,) of the paths (n, positions) that were asked for, nan for others."""
        return np.array([self.known.get(tuple(path), math.nan) for path in paths.tolist()])

    def keep_in(self, journal: Journal, written: Sequence[Mapping[str, Any]]) -> None:
        """Write calls into a journal from now on, and take its `written` ones for known.

        Raises `RunError` where the function gives quite other costs than these.
        """
        for record in written:
            path, cost = self._path(record.get("id")), record.get("cost")
            if record.get("limit") != self.name or not path:
                continue
            if isinstance(cost, float) and math.isfinite(cost):
                self._written[path] = cost
        self._compare(list(self._written.items())[:5])
        self._journal = journal

    def restore(self, calls: int) -> None:
        """Take the first so many written calls for those that were asked for."""
        self.known = dict(islice(self._written.items(), calls))

    def _path(self, given: Any) -> tuple[int, ...]:
        """The path of an id; empty where it is that of no member."""
        sizes = [len(position.values) for position in self._space.choices]
        parts = str(given).split("-")
        if len(parts) != len(sizes) or not all(p.isdecimal() and len(p) < 9 for p in parts):
            return ()
        path = tuple(map(int, parts))
        return path if all(i < n for i, n in zip(path, sizes)) else ()

    def _cost(self, path: tuple[int, ...]) -> float:
        if path not in self.known:
            if len(self.known) >= self.most:
                self.spent = True
                return math.nan
            if path not in self._written:
                self._written[path] = self._asked(path)
                self._note(path)
            self.known[path] = self._written[path]
            self.heard(len(self.known))
        return self.known[path]

    def _asked(self, path: tuple[int, ...]) -> float:
        member = decode(self._space, np.array(path))
        try:
            value = float(self._function(member))
        except Exception as error:
            raise UsageError(
                f"the latency of {member!r:.150} raised {type(error).__name__}: {error}",
                "mend the function",
            ) from error
        if not math.isfinite(value):
            raise UsageError(f"the latency of {member!r:.150} is {value}", "mend the function")
        return value

    def _note(self, path: tuple[int, ...]) -> None:
        self._unwritten.append(
            {"limit": self.name, "id": member_id(path), "cost": self._written[path]}
        )
        if monotonic() - self._flushed > _FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        """Write down what has been asked since."""
        if self._journal is not None and self._unwritten:
            self._journal.extend(self._unwritten)
            self._unwritten = []
        self._flushed = monotonic()

    def _compare(self, some: Sequence[tuple[tuple[int, ...], float]]) -> None:
        """Ask again about a few members: whether this is the function that was asked before."""
        pairs = [(known, self._asked(path)) for path, known in some]
        apart = [abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs]
        if not apart or not any(apart):
            return
        off = 100 * float(np.median(apart))
        known, new = pairs[int(np.argmax(apart))]
        if off > 50:
            raise RunError(
                f"the search was made with another cost of {self.name}: it now gives {new:.6g} "
                f"where {known:.6g} is recorded",
                "resume with the same function, or choose another folder",
            )
        console.print(
            f"the cost of {self.name} is off by {off:.2g} % from what is recorded: "
            "what is recorded is kept",
            style="dim",
            soft_wrap=True,
        )


@dataclass(frozen=True)
class Estimate:
    """A sum over the choices that was fitted to the costs of calls, or to their logarithms.

    `pairs` holds these, and what the trellis estimates of them (calls, 2).
    """

    trellis: Trellis
    pairs: Floats
    logarithmic: bool = False

    @property
    def count(self) -> int:
        """The number of calls that it was fitted to."""
        return len(self.pairs)

    @property
    def error(self) -> float:
        """How far nine of ten estimates are off, at most."""
        return _error(self.pairs)

    def scaled(self, bound: float) -> float:
        """The bound of a cost, in the unit of the estimates."""
        return math.log(bound) if self.logarithmic else bound

    def reach(self, bound: float) -> float:
        """The highest estimate at which what costs at most `bound` is looked for.

        What is known to fit is within it, however wrong its estimate; where much is known, nearly
        all of it. Where nothing is known to fit, it is where the cheapest are.
        """
        (costs, estimates), bound = self.pairs.T, self.scaled(bound)
        fitting = estimates[costs <= bound]
        near = np.argsort(np.abs(costs - bound), kind="stable")[: max(_NEAR, len(costs) // 4)]
        found = bound + _error(self.pairs[near])
        if len(fitting) >= _MANY:  # these tell more than errors do; a few estimates are far off
            return min(max(found, float(fitting.max())), float(np.quantile(fitting, 0.95)))
        if len(fitting):
            return max(found, float(fitting.max()))
        cheapest = np.argsort(costs, kind="stable")[: max(8, len(costs) // 50)]
        return min(found, float(estimates[cheapest].max()))


def _error(pairs: Floats) -> float:
    return float(np.quantile(np.abs(pairs[:, 1] - pairs[:, 0]), 0.9))


def first_paths(
    graph: Graph,
    positions: Sequence[Position],
    permitted: Callable[[Ints], Floats],
    most: int,
    rng: np.random.Generator,
) -> Ints:
    """Random members (some, positions) to ask first; none of which `permitted` is above 0."""
    n = min(_DRAWS, 4 * sum(len(p.values) for p in positions), max(most // 2, 1))
    paths = whole(graph).sample(n, rng)
    paths = paths[permitted(paths) <= 0]
    if not len(paths):
        raise UsageError(
            f"the space refuses all of {n} members drawn at random",
            "loosen its checks, or give a latency that is a table or an Additive",
        )
    return paths


@one_thread()
def fit_sum(
    graph: Graph, positions: Sequence[Position], paths: Ints, costs: Floats, highest: float
) -> Estimate:
    """The estimate of costs (n,) of paths (n, positions) by least squares.

    Of costs that are far from a sum a few very high ones spoil it. So they may be fitted by their
    logarithms, or such that those above `highest` (the highest bound, or the middle cost) count as
    that: whichever tells best what fits. `highest` is infinite where there are lower bounds.
    """
    found = [_fitted(graph, positions, paths, costs, costs)]
    if math.isfinite(highest):
        cap = max(highest, float(np.median(costs)))
        if (costs > cap).any():
            found.append(_fitted(graph, positions, paths, costs, np.minimum(costs, cap)))
        if (costs > 0).all():
            logs = np.log(costs)
            found.append(replace(_fitted(graph, positions, paths, logs, logs), logarithmic=True))
    return min(found, key=lambda own: _passed(own, highest))


def _passed(estimate: Estimate, bound: float) -> float:
    """The share of the calls that would be tried to find nine of ten that fit, or are cheapest."""
    if not math.isfinite(bound):
        return 0.0
    costs, estimates = estimate.pairs.T
    fitting = int((costs <= estimate.scaled(bound)).sum())
    wanted = np.sort(costs)[: max(fitting, min(10, len(costs)))][-1]
    return float((estimates <= np.quantile(estimates[costs <= wanted], 0.9)).mean())


def _fitted(
    graph: Graph, positions: Sequence[Position], paths: Ints, costs: Floats, wanted: Floats
) -> Estimate:
    values = [len(p.values) for p in positions]
    x = np.concatenate([np.eye(n)[paths[:, i]] for i, n in enumerate(values)], axis=1)
    mean = wanted.mean()
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (wanted - mean))
    tables = np.split(weights, np.cumsum(values)[:-1])
    low = [t.min() for t in tables]
    each = {p.name: dict(enumerate(t - m)) for p, t, m in zip(positions, tables, low)}
    index = {p.name: {v: k for k, v in enumerate(p.values)} for p in positions}
    fixed = float(mean + sum(low))
    trellis = Trellis(graph, lambda item: each[item[0]][index[item[0]][item[1]]], fixed)
    return Estimate(trellis, np.stack([costs, trellis.costs_of(paths)], axis=1))
