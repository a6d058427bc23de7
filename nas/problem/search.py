"""Search over any space of a user's own: no model, no device, no torch.

The space is a `Space` over a dataclass, the latency a table, a sum over the choices or any
function, the score a function or a table of known scores. Everything else is the engine that also
searches networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.budget import Budget
from nas.errors import RunError, UsageError
from nas.problem.costs import Costs
from nas.problem.result import Exploration, exploration
from nas.problem.scores import Work, made, scored
from nas.records import Journal, fingerprint, read_json, write_json
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.strategy.constraints import Region
from nas.strategy.loop import Patience, explore, require_found
from nas.strategy.searchers import Searcher, load_propose
from nas.trellis.graph import Graph
from nas.versions import search_code
from nas.workers import open_pool
from nas.workers.ledger import Ledger, Record

if TYPE_CHECKING:
    from pandas import DataFrame


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
    limits: Mapping[str, tuple[Any, float]] | None = None,
    batch: int = 8,
    workers: int = 0,
    ray_address: str | None = None,
    timeout_s: float = 600,
    failed_share: float = 0.25,
    out: str | Path | None = None,
    resume: bool = False,
) -> Exploration:
    """The members of a space with the highest scores within one latency budget, or several.

    `latency` is a table (a `LatencyTable`; a mapping or DataFrame of what each value of each
    position costs), `Additive`, or any function of a member; `limits` are further ones, by name,
    each a cost of the same kinds and its upper bound. `score` is a function of a member, or a
    DataFrame with a column for each field or position and one called `score`. A score that raises
    or is not finite sets its candidate aside; more than `failed_share` of them end the search with
    an `EvaluationError`. With `out` every score is kept in `candidates.jsonl` there, and `resume`
    goes on to the result of the undisturbed search: with the same settings, but for `evaluations`
    and where they are done, and a score that is the same function, as far as anybody can tell.
    """
    positions = tuple(space.positions if isinstance(space, SearchSpace) else space.positions())
    graph = _graph(space)
    budgets = [_number(b) for b in (budget if isinstance(budget, Sequence) and not
               isinstance(budget, str) else [budget])]  # fmt: skip
    _check(budgets, evaluations, batch, limits or {})
    rng = np.random.default_rng(seed)
    cost = Costs(space, positions, graph, latency, rng)
    others = {
        name: (Costs(space, positions, graph, other, rng), bound)
        for name, (other, bound) in (limits or {}).items()
    }
    further = [own.limit(name, bound) for name, (own, bound) in others.items()]
    regions = [Region(graph, [cost.limit("budget", b), *further], sampler) for b in budgets]
    asked = Searcher(load_propose(searcher), positions, regions, rng)
    work = Work(score)
    identity = {
        "space": fingerprint([[p.name, repr(p.values)] for p in positions], _edges(graph)),
        "budget": budgets, "latency": cost.fingerprint,
        "limits": [[name, own.fingerprint, bound] for name, (own, bound) in others.items()],
        "score": work.fingerprint, "seed": seed, "searcher": searcher, "sampler": sampler,
        "batch": batch, "code": search_code(),
    }  # fmt: skip
    with ExitStack() as held:
        _refuse_other(out, resume, identity)
        pool = open_pool(made, (work,), workers=workers, address=ray_address, timeout_s=timeout_s)
        held.enter_context(pool)
        journal = _journal(out, identity)
        if journal is not None:
            held.enter_context(journal.locked())
        ledger = Ledger(pool, journal)
        scoring = partial(scored, space, ledger)
        explore(asked, scoring, evaluations, batch, Patience(failed_share))
    if not len(asked.known) and not ledger.records:
        require_found(asked, regions[0])
    return exploration(space, asked, cost, ledger)


def _number(budget: str | float | Budget) -> float:
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    return budget.latency_ms if isinstance(budget, Budget) else float(budget)


def _check(
    budgets: Sequence[float], evaluations: int, batch: int, limits: Mapping[str, tuple[Any, float]]
) -> None:
    if not budgets:
        raise UsageError("a search needs a budget", "e.g. budget=20.0")
    bounds = {"budget": min(budgets, key=lambda b: b if math.isfinite(b) else -math.inf)}
    for name, (_, bound) in limits.items():
        if name == "budget":
            raise UsageError("a further limit cannot be called budget", "give it another name")
        bounds[name] = bound
    for name, bound in bounds.items():
        if not isinstance(bound, int | float) or not (math.isfinite(bound) and bound > 0):
            raise UsageError(f"the limit {name} must be a positive number, got {bound!r}", "e.g. 5")
    if evaluations < 1 or batch < 1:
        raise UsageError(
            f"evaluations and batch are at least 1, got {evaluations} and {batch}", "e.g. 200 and 8"
        )


def _graph(space: Space[Any] | SearchSpace) -> Graph:
    if isinstance(space, SearchSpace):
        return Graph.of(space)
    return Graph.choices(space)


def _edges(graph: Graph) -> list[list[list[int]]]:
    return [[c.tolist() for c in (x.source, x.value, x.target)] for x in graph.levels]


def _refuse_other(out: str | Path | None, resume: bool, identity: Record) -> None:
    """Raise `RunError` if a folder belongs to another search."""
    if out is None:
        return
    folder = Path(out)
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


def _journal(out: str | Path | None, identity: Record) -> Journal | None:
    """The journal of a folder, which is marked as that of this search."""
    if out is None:
        return None
    file = Path(out) / "settings.json"
    if not file.exists():
        write_json(file, identity)
    return Journal(Path(out) / "candidates.jsonl")
