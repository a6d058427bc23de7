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
from nas.errors import RunError
from nas.problem.arguments import Bounds, read_budgets, read_limits, read_share, read_space
from nas.problem.costs import Cost, read_cost
from nas.problem.members import Checks, Texts, columns_of, value_text
from nas.problem.result import Answer, Exploration, Found
from nas.problem.scores import ScoreTable, make_scorer, read_score, score_paths
from nas.records import Journal, fingerprint, read_json, write_json
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.rules import Position
from nas.strategy.constraints import Region
from nas.strategy.gaussian_process import Surrogate
from nas.strategy.loop import BATCH, Patience, explore, no_score
from nas.strategy.quality import JUDGED_FROM, judge
from nas.strategy.searchers import Known, Searcher, load_propose
from nas.strategy.statistics import hypervolumes, pareto
from nas.trellis.graph import Floats, Graph, decode
from nas.versions import search_code
from nas.workers import open_pool
from nas.workers.ledger import Ledger, Record

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
    out: str | Path | None = None,
    resume: bool = False,
) -> Exploration:
    """Find the members of a space with the highest scores within a latency budget, or several.

    `latency` is a table (a `LatencyTable`; a mapping or DataFrame of the cost of each value of each
    position), an `Additive`, or any function of a member. `limits` are further ones, by name: a
    cost of the same kinds and its upper bound. `score` is a function of a member, or a DataFrame
    with a column for each field or position and one called `score`.

    `noise` is the standard deviation of a score as a measurement, where it is known; a score may
    also be a pair of the score and its own noise. Of noisy scores the highest is a lucky one: what
    is best by expectation is `Exploration.expected`.

    A member whose score raises or is not finite is set aside; more than `failed_share` of them end
    the search with an `EvaluationError`. In the folder `out` every score is kept
    (`candidates.jsonl`). `resume` goes on with the search there, to the result of one that was
    never interrupted; the settings must be the same (`RunError`), but `evaluations`, workers and
    the function of scores, which nobody can compare, may differ.
    """
    space, budgets, bounds = read_space(space), read_budgets(budget), read_limits(limits or {})
    folder = None if out is None else Path(out)
    evaluations = whole_number("evaluations", evaluations, 1)
    batch, seed = whole_number("batch", batch, 1), whole_number("seed", seed, 0)
    noise, timeout_s = real_number("noise", noise, 0), real_number("timeout_s", timeout_s, 1)
    workers, failed_share = (
        whole_number("workers", workers, 0),
        read_share("failed_share", failed_share),
    )
    positions = tuple(space.positions if isinstance(space, SearchSpace) else space.positions())
    graph = Graph.of(space) if isinstance(space, SearchSpace) else Graph.choices(space)
    rng, checks = np.random.default_rng(seed), Checks(space)
    read = partial(read_cost, space, positions, graph, permitted=checks, rng=rng)
    cost = read(latency)
    others = {name: read(own) for name, (own, _) in bounds.items()}
    further = checks.limits
    for name, (_, own) in bounds.items():
        further += others[name].limits(name, own)
    regions = [
        Region(graph, [*cost.limits("budget", Bounds(-math.inf, b)), *further], sampler)
        for b in budgets
    ]
    asked = Searcher(load_propose(searcher), positions, regions, rng)
    function = read_score(score, positions)
    identity = {
        "space": fingerprint([_written(p) for p in positions], _edges(graph)),
        "budget": budgets, "latency": cost.fingerprint,
        "limits": [[n, others[n].fingerprint, own.written] for n, (_, own) in bounds.items()],
        # A function may be mended between a search and its continuation.
        "score": function.fingerprint if isinstance(function, ScoreTable) else "",
        "seed": seed, "searcher": searcher, "sampler": sampler,
        "batch": batch, "noise": noise, "code": search_code(),
    }  # fmt: skip
    with ExitStack() as held:
        journal = None
        if folder is not None:
            journal = Journal(folder / "candidates.jsonl")
            held.enter_context(journal.locked())
            _refuse_other(folder, resume, identity)
        pool = open_pool(
            make_scorer,
            (function, noise),
            workers=workers,
            address=ray_address,
            timeout_s=timeout_s,
        )
        held.enter_context(pool)  # before anything is written: it may fail
        if folder is not None and not (folder / "settings.json").exists():
            write_json(folder / "settings.json", identity)
        ledger = Ledger(pool, journal)
        by_path = isinstance(function, ScoreTable)
        scored = partial(score_paths, space, Texts(positions), by_path, ledger)
        explore(asked, scored, evaluations, batch, Patience(failed_share))
    if not len(asked.known) and not ledger.records:
        raise no_score(asked, regions[0], ())
    return _exploration(space, asked, cost, ledger)


def _written(position: Position) -> list[Any]:
    """The name and the values of a position, the same in every process."""
    return [position.name, [[type(v).__name__, value_text(v)] for v in position.values]]


def _edges(graph: Graph) -> list[list[list[int]]]:
    return [[c.tolist() for c in (x.source, x.value, x.target)] for x in graph.levels]


def _refuse_other(folder: Path, resume: bool, identity: Record) -> None:
    """Raise `RunError` if a folder belongs to another search."""
    file = folder / "settings.json"
    if file.exists():
        if not resume:
            raise RunError(f"{folder} exists already", "pass resume=True, or choose another folder")
        before = read_json(file)
        if differing := [k for k in identity if before.get(k) != identity[k]]:
            raise RunError(
                f"{folder} was made with another {' and '.join(differing)}",
                "resume with the same, or choose another folder",
            )
    elif (folder / "candidates.jsonl").exists():
        raise RunError(f"{folder} has candidates of an unknown search", "choose another folder")


def _exploration(space: Any, asked: Searcher, cost: Cost, ledger: Ledger) -> Exploration:
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
