"""Search over any space of a user's own: no model, no device, no torch.

The space is a `Space` over a dataclass; the latency is a table, a sum over the choices or any
function; the score is a function or a table of known scores. The strategy is the same that searches
networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.budget import real_number, whole_number
from nas.errors import InfeasibleError, UnknownNameError
from nas.problem.arguments import Bounds, read_budgets, read_limits, read_share, read_space
from nas.problem.costs import Cost, CostReader, Heard, Renewal
from nas.problem.folder import Folder
from nas.problem.members import Checks, Texts, columns_of, value_text
from nas.problem.result import Answer, Exploration, Found
from nas.problem.scores import ScoreRecord, ScoreTable, make_scorer, read_score, score_paths
from nas.progress import bar, console
from nas.records import fingerprint
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.rules import Position
from nas.strategy.constraints import SAMPLERS, Limit, Region
from nas.strategy.gaussian_process import Surrogate
from nas.strategy.loop import BATCH, Patience, explore, no_score
from nas.strategy.quality import JUDGED_FROM, judge
from nas.strategy.searchers import Known, Searcher, load_propose
from nas.strategy.statistics import hypervolumes, pareto
from nas.trellis.graph import Floats, Graph, decode
from nas.versions import search_code
from nas.workers import open_pool
from nas.workers.ledger import Ledger

if TYPE_CHECKING:
    from pandas import DataFrame

    from nas.budget import Budget


def search_space(
    space: Space[Any] | SearchSpace,
    budget: str | float | Budget | Sequence[str | float | Budget],
    latency: Any,
    score: Callable[[Any], float] | DataFrame,
    *,
    evaluations: int = 200,
    seed: int = 0,
    searcher: str = "evolution",
    sampler: str = "trellis",
    noise: float = 0.0,
    limits: Mapping[str, tuple[Any, Any]] | None = None,
    batch: int = BATCH,
    workers: int = 0,
    ray_address: str | None = None,
    timeout_s: float = 600,
    failed_share: float = Patience.share,
    latency_calls: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
) -> Exploration:
    """Find the members of a space with the highest scores within a latency budget, or several.

    `latency` is a table (a `LatencyTable`; a mapping or DataFrame of the cost of each value of each
    position), an `Additive`, or any function of a member. `limits` are further ones, by name: a
    cost of the same kinds, and its upper bound or a pair of its lower and its upper one. `score` is
    a function of a member, or a DataFrame with a column for each field or position and one called
    `score`.

    `noise` is the standard deviation of a score as a measurement, where it is known; a score may
    also be a pair of the score and its own noise. Of noisy scores the highest is a lucky one: what
    is best by expectation is `Exploration.expected`.

    A cost that is a function is asked about each member at most once, and about `latency_calls`
    members at most (1,000 and 100 for each evaluation, if not given); then the search ends.

    A member whose score raises or is not finite is set aside; more than `failed_share` of them end
    the search with an `EvaluationError`. In the folder `out` every score is kept
    (`candidates.jsonl`), and every cost that a function gave (`latencies.jsonl`). `resume` goes on
    with the search there, to the result of one that was never interrupted; the settings must be the
    same (`RunError`), but `evaluations`, workers and functions, which nobody can compare, may
    differ. What is kept is not asked for again.
    """
    space, budgets, bounds = read_space(space), read_budgets(budget), read_limits(limits or {})
    evaluations = whole_number("evaluations", evaluations, 1)
    batch, seed = whole_number("batch", batch, 1), whole_number("seed", seed, 0)
    noise, timeout_s = real_number("noise", noise, 0), real_number("timeout_s", timeout_s, 1)
    workers = whole_number("workers", workers, 0)
    patience = Patience(read_share("failed_share", failed_share))
    calls = 1000 + 100 * evaluations if latency_calls is None else latency_calls
    positions = tuple(space.positions if isinstance(space, SearchSpace) else space.positions())
    graph = Graph.of(space) if isinstance(space, SearchSpace) else Graph.choices(space)
    rng, checks = np.random.default_rng(seed), Checks(space)
    read = CostReader(space, positions, graph, checks, whole_number("latency_calls", calls, 1), rng)
    cost = read("budget", latency, [Bounds(-math.inf, b) for b in budgets])
    others = {name: read(name, given, [own]) for name, (given, own) in bounds.items()}
    function = read_score(score, positions)
    folder = Folder(None if out is None else Path(out), {
        "space": fingerprint([_written(p) for p in positions], _edges(graph)),
        "budget": budgets, "latency": cost.fingerprint,
        "limits": [[n, others[n].fingerprint, own.written] for n, (_, own) in bounds.items()],
        # A function may be mended between a search and its continuation.
        "score": function.fingerprint if isinstance(function, ScoreTable) else "",
        "seed": seed, "searcher": searcher, "sampler": sampler,
        "batch": batch, "noise": noise, "code": search_code("problem"),
    })  # fmt: skip

    def region(bound: float) -> Region:
        def made() -> list[Limit]:
            further = [
                limit for n, (_, own) in bounds.items() for limit in others[n].limits(n, own)
            ]
            return [*cost.limits("budget", Bounds(-math.inf, bound)), *checks.limits, *further]

        return Region(graph, made(), sampler, Renewal(read.asked, made))

    propose = load_propose(searcher)
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    with ExitStack() as held:
        held.enter_context(folder.opened(resume))
        pool = open_pool(
            make_scorer,
            (function, noise),
            workers=workers,
            address=ray_address,
            timeout_s=timeout_s,
        )
        held.enter_context(pool)  # before anything is written: it may fail
        advance = held.enter_context(bar("search", evaluations, "candidates", after_s=2.0))
        folder.hold(read.asked)
        for own in read.asked:
            own.box.heard = Heard(own.box.name, advance)
        asked = Searcher(propose, positions, [region(b) for b in budgets], rng)
        folder.begin()
        ledger = Ledger(pool, folder.candidates, ScoreRecord)
        by_path = isinstance(function, ScoreTable)
        scored = partial(score_paths, space, Texts(positions), by_path, ledger, advance)
        explore(asked, scored, evaluations, batch, patience, folder)
    for one in asked.regions:
        one.renew()  # so that the quality of answers is by all that is known
    for spent in (own.box for own in read.asked if own.box.spent):
        said = f"the cost of {spent.name} was asked for {spent.most:,} members, as many as allowed"
        if not len(asked.known):
            raise InfeasibleError(f"{said}, and none fits", "raise its bound, or latency_calls")
        console.print(f"{said}: the search ends with {len(asked.known)} scores", soft_wrap=True)
    if not len(asked.known) and not ledger.records:
        raise no_score(asked, asked.regions[0], ())
    counts = {own.box.name: len(own.box.known) for own in read.asked}
    return _exploration(space, asked, cost, ledger, counts)


def _written(position: Position) -> list[Any]:
    """The name and the values of a position, the same in every process."""
    return [position.name, [[type(v).__name__, value_text(v)] for v in position.values]]


def _edges(graph: Graph) -> list[list[list[int]]]:
    return [[c.tolist() for c in (x.source, x.value, x.target)] for x in graph.levels]


def _exploration(
    space: Any, asked: Searcher, cost: Cost, ledger: Ledger, calls: Mapping[str, int]
) -> Exploration:
    known = asked.known
    costs, scores = _within(asked, cost.costs_of(known.paths)).tolist(), known.scores.tolist()
    expected = [math.nan] * len(known)
    if len(known) >= JUDGED_FROM:
        surrogate = Surrogate.fit(known.positions, known.paths, known.scores, known.noise)
        expected = surrogate.predict(known.paths).tolist()
    found = tuple(
        Found(decode(space, path), c, s, e, tuple(path.tolist()))
        for path, c, s, e in zip(known.paths, costs, scores, expected)
    )
    bound = max(region.limits[0].bound for region in asked.regions)
    return Exploration(
        candidates=found,
        front=tuple(found[i] for i in pareto(costs, scores)),
        answers=tuple(_answer(region, known, found) for region in asked.regions),
        proposals=asked.proposals,
        rejections=dict(asked.rejections),
        set_aside={r["architecture"]: r["error"] for r in ledger.records.values() if "error" in r},
        hypervolume=tuple(hypervolumes(costs, scores, bound, min(scores, default=0.0))),
        rank_correlation=asked.rank_correlation,
        calls=calls,
        columns=columns_of(asked.positions),
    )


def _within(asked: Searcher, costs: Floats) -> Floats:
    """The costs, where those above a budget by a rounding error alone are that budget."""
    for limit in (region.limits[0] for region in asked.regions):
        costs = np.where(limit.keeps(costs) & (costs > limit.bound), limit.bound, costs)
    return costs


def _answer(region: Region, known: Known, found: Sequence[Found]) -> Answer:
    inside = np.flatnonzero(region.fits(known.paths)).tolist()
    best = max(inside, key=lambda i: found[i].score, default=None)
    judged = [i for i in inside if math.isfinite(found[i].expected_score)]
    expected = max(judged, key=lambda i: found[i].expected_score, default=best)
    quality = judge(region, known, None if best is None else known.paths[best])
    chosen, likely = (None if i is None else found[i] for i in (best, expected))
    return Answer(region.limits[0].bound, chosen, likely, quality)
