"""Search over any space of a user's own: no model, no device, no torch.

The space is a `Space` over a dataclass, the latency a table, a sum over the choices or any
function, the score a function or a table of known scores. Everything else is the engine that also
searches networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.budget import Budget
from nas.errors import RunError, UsageError
from nas.records import Journal, fingerprint, read_json, write_json
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.rules import Position
from nas.strategy.constraints import Limit, Region
from nas.strategy.loop import Patience, Quality, Score, explore, in_budget, judge, require_found
from nas.strategy.searchers import Searcher, load_propose
from nas.strategy.statistics import hypervolumes, pareto
from nas.strategy.surrogate import one_thread
from nas.trellis.graph import Graph, Ints, decode
from nas.trellis.trellis import Floats, Trellis
from nas.versions import search_code
from nas.workers import open_pool
from nas.workers.ledger import Ledger, Record, Task

if TYPE_CHECKING:
    from pandas import DataFrame

_DRAWS = 400  # calls of a black-box cost, at most, to estimate it as a sum over the choices


@dataclass(frozen=True)
class Additive:
    """A cost that is a sum over the choices: `function(name, value)` gives that of one.

    Names are those of `space.positions()`, e.g. `blocks[2]`; a value is what stands there. Where
    a `Repeat` has ended nothing is added.
    """

    function: Callable[[str, Any], float]
    fixed: float = 0.0


@dataclass(frozen=True)
class Found:
    """A member of the space with its cost and its score."""

    architecture: Any
    latency: float
    score: float


@dataclass(frozen=True)
class Answer:
    """The best that was found within one budget, and what is known of how good it is."""

    budget: float
    best: Found | None
    quality: Quality


@dataclass(frozen=True)
class Exploration:
    """What a search has found: every candidate in the order in which it was asked for, the front
    of latency and score, an answer for each budget, and counts."""

    candidates: tuple[Found, ...]
    front: tuple[Found, ...]
    answers: tuple[Answer, ...]
    proposals: int
    rejections: Mapping[str, int]
    set_aside: Mapping[str, str]  # reasons, by JSON of the architecture
    hypervolume: tuple[float, ...]  # by number of candidates, as a share
    rank_correlation: float  # of the surrogate's predictions with scores it had not seen

    @property
    def best(self) -> Found | None:
        """The answer for the first budget."""
        return self.answers[0].best

    def frame(self) -> DataFrame:
        """The candidates as a table: a column for each choice, `latency` and `score`."""
        import pandas as pd

        rows = [{**_flat(c.architecture), "latency": c.latency, "score": c.score}
                for c in self.candidates]  # fmt: skip
        return pd.DataFrame(rows)


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
    graph = _graph(space, latency)
    budgets = [_number(b) for b in (budget if isinstance(budget, Sequence) and not
               isinstance(budget, str) else [budget])]  # fmt: skip
    _check(budgets, evaluations, batch, limits or {})
    rng = np.random.default_rng(seed)
    cost = _Costs(space, positions, graph, latency, rng)
    others = {
        name: (_Costs(space, positions, graph, other, rng), bound)
        for name, (other, bound) in (limits or {}).items()
    }
    further = [own.limit(name, bound) for name, (own, bound) in others.items()]
    regions = [Region(graph, [cost.limit("budget", b), *further], sampler) for b in budgets]
    asked = Searcher(load_propose(searcher), positions, regions, rng)
    work = _Work(score)
    identity = {
        "space": fingerprint([[p.name, repr(p.values)] for p in positions], _edges(graph)),
        "budget": budgets, "latency": cost.fingerprint,
        "limits": [[name, own.fingerprint, bound] for name, (own, bound) in others.items()],
        "score": work.fingerprint, "seed": seed, "searcher": searcher, "sampler": sampler,
        "batch": batch, "code": search_code(),
    }  # fmt: skip
    with ExitStack() as held:
        _refuse_other(out, resume, identity)
        pool = open_pool(_made, (work,), workers=workers, address=ray_address, timeout_s=timeout_s)
        held.enter_context(pool)
        journal = _journal(out, identity)
        if journal is not None:
            held.enter_context(journal.locked())
        ledger = Ledger(pool, journal)
        scored = partial(_scored, space, ledger)
        explore(asked, scored, evaluations, batch, Patience(failed_share))
    if not len(asked.known) and not ledger.records:
        require_found(asked, regions[0])
    return _exploration(space, asked, cost, ledger)


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


def _graph(space: Space[Any] | SearchSpace, latency: Any) -> Graph:
    if isinstance(space, SearchSpace):
        manifest = getattr(latency, "manifest", {})
        return Graph.of(space, int(manifest.get("classes", 2)))
    return Graph.choices(space)


def _edges(graph: Graph) -> list[list[list[int]]]:
    return [[c.tolist() for c in (x.source, x.value, x.target)] for x in graph.levels]


class _Costs:
    """A cost of any kind as a limit: exact where it is additive, estimated where it is not."""

    def __init__(
        self,
        space: Space[Any] | SearchSpace,
        positions: Sequence[Position],
        graph: Graph,
        cost: Any,
        rng: np.random.Generator,
    ) -> None:
        self.space, self.cost, self.reach = space, cost, 0.0
        self.exact = True
        self._known: dict[tuple[int, ...], float] = {}
        self._drawn: list[tuple[float, float]] = []  # true and estimated, where it is not exact
        try:
            self._solve(graph, positions, rng)
        except ValueError as error:  # of the trellis
            raise UsageError(
                f"the latency of a choice cannot be used: {error}", "mend the table or the function"
            ) from None

    def _solve(self, graph: Graph, positions: Sequence[Position], rng: np.random.Generator) -> None:
        cost = self.cost
        if hasattr(cost, "calibration"):  # a latency table
            self.trellis = Trellis(graph, cost.cost, fixed=cost.calibration.overhead)
        elif isinstance(cost, Additive):
            self.trellis = Trellis(graph, lambda item: float(cost.function(*item)), cost.fixed)
        elif (table := _table(cost)) is not None:
            _require_all(table, positions)
            self.trellis = Trellis(graph, lambda item: table.get(item[0], {}).get(item[1], 0.0))
        elif callable(cost):
            self.exact = False
            self.trellis, self.reach = self._estimate(graph, positions, rng)
        else:
            raise UsageError(
                f"a latency cannot be a {type(cost).__name__}",
                "give a table, a mapping, nas.Additive(function) or a function",
            )

    @property
    def fingerprint(self) -> str:
        return fingerprint([costs.tolist() for costs in self.trellis.costs], self.trellis.fixed)

    def limit(self, name: str, bound: float) -> Limit:
        if self.exact:
            return Limit.additive(name, bound, self.trellis)
        # What truly fits must be within reach, however wrong the estimate.
        fitting = [estimate for true, estimate in self._drawn if true <= bound]
        reach = max([bound + self.reach, *fitting])
        return Limit(name, bound, self.costs_of, self.trellis, reach)

    def costs_of(self, paths: Ints) -> Floats:
        if self.exact:
            return self.trellis.costs_of(paths)
        return np.array([self._call(tuple(path)) for path in paths.tolist()], dtype=float)

    def _call(self, path: tuple[int, ...]) -> float:
        if path not in self._known:
            member = decode(self.space, np.array(path))
            try:
                value = float(self.cost(member))
            except Exception as error:
                raise UsageError(
                    f"the latency of {member} raised {type(error).__name__}: {error}",
                    "mend the function",
                ) from error
            if not math.isfinite(value):
                raise UsageError(f"the latency of {member} is {value}", "mend the function")
            self._known[path] = value
        return self._known[path]

    @one_thread()
    def _estimate(
        self, graph: Graph, positions: Sequence[Position], rng: np.random.Generator
    ) -> tuple[Trellis, float]:
        """The function as a sum over the choices, by least squares on random members, and how far
        nine of ten of these lie from it."""
        if isinstance(self.space, SearchSpace):
            raise UsageError("a family's latency is a sum over its layers", "give its LatencyTable")
        whole = Trellis(graph, lambda _: 0.0).within(0.0, ticks=1)
        values = [len(p.values) for p in positions]
        paths = whole.sample(min(_DRAWS, 4 * sum(values)), rng)
        costs = self.costs_of(paths)
        blocks = [np.eye(n)[paths[:, i]] for i, n in enumerate(values)]
        x = np.concatenate(blocks, axis=1)
        mean = costs.mean()
        weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (costs - mean))
        tables = np.split(weights, np.cumsum(values)[:-1])
        low = [t.min() for t in tables]
        costs_of = {p.name: dict(enumerate(t - m)) for p, t, m in zip(positions, tables, low)}
        where = {p.name: {v: k for k, v in enumerate(p.values)} for p in positions}
        fixed = float(mean + sum(low))
        trellis = Trellis(graph, lambda item: costs_of[item[0]][where[item[0]][item[1]]], fixed)
        estimates = trellis.costs_of(paths)
        self._drawn = list(zip(costs.tolist(), estimates.tolist()))
        return trellis, float(np.quantile(np.abs(estimates - costs), 0.9))


def _table(cost: Any) -> dict[str, dict[Any, float]] | None:
    """A mapping or DataFrame (columns: position, value, cost) as what each value costs."""
    if isinstance(cost, Mapping):
        return {name: dict(values) for name, values in cost.items()}
    if hasattr(cost, "itertuples"):
        found: dict[str, dict[Any, float]] = {}
        for name, value, ms in cost.iloc[:, :3].itertuples(index=False):
            found.setdefault(str(name), {})[value] = float(ms)
        return found
    return None


def _require_all(table: Mapping[str, Mapping[Any, float]], positions: Sequence[Position]) -> None:
    for position in positions:
        for value in position.values:
            if value is not None and value not in table.get(position.name, {}):
                raise UsageError(
                    f"the latency table has nothing for {position.name} = {value}",
                    "every value of every position needs a cost",
                )


class _Work:
    """A user's score, as a worker calls it."""

    def __init__(self, score: Any) -> None:
        self.score = score
        self.known: dict[str, float] | None = None
        if not callable(score):
            if "score" not in getattr(score, "columns", ()):
                raise UsageError(
                    f"a score cannot be {type(score).__name__} without a column called score",
                    "give a function, or a DataFrame with a column for each choice and score",
                )
            columns = [c for c in score.columns if c not in ("score", "latency")]
            self.columns = columns
            self.known = {
                _cells(dict(zip(columns, row[:-1]))): float(row[-1])
                for row in score[[*columns, "score"]].itertuples(index=False)
            }

    @property
    def fingerprint(self) -> str:
        """Of a table of scores; a function may be mended between a run and its continuation."""
        return "" if self.known is None else fingerprint(self.known)

    def __call__(self, architecture: Any) -> Record:
        if self.known is None:
            value = float(self.score(architecture))
        else:
            flat = _flat(architecture)
            key = _cells({c: flat.get(c) for c in self.columns})
            if key not in self.known:
                raise KeyError(f"the table of scores has no row {key}")
            value = self.known[key]
        if not math.isfinite(value):
            raise ValueError(f"the score is {value}")
        return {"score": value}


def _made(work: _Work) -> _Work:
    return work


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The fields of a member by name, as in `blocks[2].heads`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        parts = [_flat(v, f"{name}.{k}".lstrip(".")) for k, v in value.items()]
    elif isinstance(value, tuple | list):
        parts = [_flat(v, f"{name}[{i}]") for i, v in enumerate(value)]
    else:
        return {name: value}
    return {k: v for part in parts for k, v in part.items()}


def _cells(row: Mapping[str, Any]) -> str:
    """A row as text; empty cells, and whole numbers that became floats by them, as they were."""
    plain = {k: _plain(v) for k, v in sorted(row.items())}
    for name, value in plain.items():
        if isinstance(value, float):
            plain[name] = None if math.isnan(value) else int(value) if value % 1 == 0 else value
    return json.dumps(plain, default=str)


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item() if hasattr(value, "item") else value


def _json(architecture: Any) -> str:
    return json.dumps(
        asdict(architecture),
        separators=(",", ":"),
        default=lambda v: getattr(v, "item", v.__str__)(),
    )


def _scored(space: Any, ledger: Ledger, paths: Ints) -> list[Score]:
    tasks = []
    for path in paths:
        member = decode(space, path)
        text = _json(member)
        name = sha256(text.encode()).hexdigest()[:12]
        tasks.append(Task(name, member, {"architecture": text}))
    records = ledger.score(tasks)
    return [Score(r.get("score", math.nan), error=r.get("error", "")) for r in records]


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


def _exploration(space: Any, asked: Searcher, cost: _Costs, ledger: Ledger) -> Exploration:
    known = asked.known
    costs = cost.costs_of(known.paths)
    found = [
        Found(decode(space, path), float(c), float(s))
        for path, c, s in zip(known.paths, costs, known.scores)
    ]
    answers = []
    for region in asked.regions:
        best = in_budget(region, known)
        at = None if best is None else int(np.flatnonzero((known.paths == best).all(1))[0])
        answers.append(
            Answer(
                region.limits[0].bound,
                None if at is None else found[at],
                judge(region, known, best),
            )
        )
    bound = max(region.limits[0].bound for region in asked.regions)
    scores = known.scores.tolist()
    return Exploration(
        candidates=tuple(found),
        front=tuple(found[i] for i in pareto(costs.tolist(), scores)),
        answers=tuple(answers),
        proposals=asked.proposals,
        rejections=dict(asked.rejections),
        set_aside={r["architecture"]: r["error"] for r in ledger.records.values() if "error" in r},
        hypervolume=tuple(hypervolumes(costs.tolist(), scores, bound, min(scores, default=0.0))),
        rank_correlation=asked.rank_correlation,
    )
