"""The search of a run: what is asked for, scored and told, within budgets or without pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nas.errors import EvaluationError, InfeasibleError
from nas.progress import bar, console
from nas.run.inputs import Inputs
from nas.run.limits import Goal, Limits
from nas.run.scores import best_rival
from nas.settings import Settings
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.strategy.constraints import Region
from nas.strategy.loop import Score, explore, no_score
from nas.strategy.searchers import Searcher, load_propose
from nas.trellis.graph import Ints, decode, encode
from nas.workers.ledger import Record

_FULL = 0.9  # share of a limit above which a network uses it
Baselines = dict[str, list[Architecture]]  # scored networks by the name of what they stand for


@dataclass(frozen=True)
class Wanted:
    """Budgets in ms by device, and how many times as long as its table says each device takes."""

    budgets: Mapping[str, float]
    slower: Mapping[str, float] = field(default_factory=dict)

    def region(self, limits: Limits) -> Region:
        """The architectures of a space that are predicted to fit; `InfeasibleError` for none."""
        return limits.region(self.budgets, self.slower)


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search has asked, and for each goal the scored networks that its answer is compared
    with."""

    searchers: tuple[Searcher, ...]
    baselines: tuple[Baselines, ...]


def search(inputs: Inputs, rng: np.random.Generator) -> Searched:
    """Score candidates and baselines; no new candidates where known scores answer every goal."""
    searchers = []
    answered = _answered(inputs, inputs.space, [goal.region for goal in inputs.goals])
    wanted = [Wanted(goal.budgets) for goal in inputs.goals]
    if answered:
        source = inputs.settings.source_run
        console.print(f"answered from {source}: no candidate is scored anew", style="dim")
    else:
        searchers.append(_search_all(inputs, wanted, rng))
        if not len(searchers[0].known):
            raise no_score(searchers[0], inputs.goals[0].region, inputs.scores.ledger.errors)
    resolutions = inputs.space.positions[0].values
    _score_all(inputs, "largest", [uniform(inputs.space, size, 0) for size in resolutions])
    if error := inputs.scores.error(inputs.space.largest):
        raise EvaluationError(
            f"the largest network, which all are compared with, has no score: {error}",
            "mend the cause; what was scored is kept",
        )
    _search_dense(inputs, wanted, rng, unless_answered=answered)
    baselines = [_baselines(inputs, goal, goal.region, new=not answered) for goal in inputs.goals]
    return Searched(tuple(searchers), tuple(baselines))


def search_on(
    inputs: Inputs, before: Searched, wanted: Mapping[int, Wanted], rng: np.random.Generator
) -> Searched:
    """Search on for some of the goals, by their numbers: candidates and all that they are
    compared with, as many as before."""
    searcher = _search_all(inputs, list(wanted.values()), rng)
    _search_dense(inputs, list(wanted.values()), rng)
    baselines = list(before.baselines)
    for i, own in wanted.items():
        region = own.region(inputs.limits)
        found = _baselines(inputs, inputs.goals[i], region, new=True)
        baselines[i] = {
            name: list(dict.fromkeys([*known, *found[name]]))
            for name, known in baselines[i].items()
        }
    return Searched((*before.searchers, searcher), tuple(baselines))


def _search_all(inputs: Inputs, wanted: Sequence[Wanted], rng: np.random.Generator) -> Searcher:
    """Search as many candidates as were asked for in the whole space."""
    regions = [own.region(inputs.limits) for own in wanted]
    return _evolve(inputs, inputs.space, regions, rng, "search")


def _answered(inputs: Inputs, space: SearchSpace, regions: Sequence[Region]) -> bool:
    """Whether the run that this one starts from answers the question for every region of a space.

    That is where it has as many scores that fit as were asked for, and one of a network that uses
    the budget, unless everything fits it.
    """
    known = [a for a in inputs.prior if a in space]
    if not inputs.settings.source_run or not known:
        return False
    paths = np.array([encode(space, a) for a in known])
    for region in regions:
        limit = region.limits[0]
        costs = limit.costs_of(paths)[region.fits(paths)]
        loose = limit.trellis is not None and limit.trellis.slowest <= limit.bound
        full = loose or bool((costs > _FULL * limit.bound).any())
        if len(costs) < inputs.settings.evaluations or not full:
            return False
    return True


def _search_dense(
    inputs: Inputs,
    wanted: Sequence[Wanted],
    rng: np.random.Generator,
    unless_answered: bool = False,
) -> None:
    """Search the networks that prune nothing, of all resolutions, widths and depths.

    It has what the search of the whole space has: as many evaluations, all known scores of its
    networks, and budgets that its networks fit. There is none where no network prunes, nor, with
    `unless_answered`, where known scores of dense networks answer every goal.
    """
    dense = dense_space(inputs.space)
    limits = Limits(inputs.settings, dense, inputs.tables)
    if limits.graph.count == inputs.limits.graph.count:
        return
    regions = []
    for own in wanted:
        with suppress(InfeasibleError):
            regions.append(own.region(limits))
    if regions and not (unless_answered and _answered(inputs, dense, regions)):
        _evolve(inputs, dense, regions, rng, "dense")


def _evolve(
    inputs: Inputs,
    space: SearchSpace,
    regions: Sequence[Region],
    rng: np.random.Generator,
    origin: str,
) -> Searcher:
    """Ask inside regions of a space, score, tell; what is known of the space takes part."""
    scores, settings, evaluations = inputs.scores, inputs.settings, inputs.settings.evaluations
    propose = load_propose(settings.searcher, **_searcher_settings(settings))
    searcher = Searcher(propose, space.positions, regions, rng)
    if known := [a for a in scores.known if a in space]:
        paths = np.array([encode(space, a) for a in known])
        noise = [scores.noise(a) for a in known]
        searcher.tell(paths, [scores.known[a] for a in known], noise)
    with bar(origin, evaluations, "candidates") as advance:
        score = _scored(inputs, space, origin, searcher, advance)
        done = explore(searcher, score, evaluations, settings.batch)
    if failed := searcher.rejections["failed"]:
        console.print(
            f"{failed} of {done} candidates were set aside; the last: {scores.ledger.errors[-1]}",
            style="yellow", markup=False,
        )  # fmt: skip
    return searcher


def _searcher_settings(settings: Settings) -> dict[str, Any]:
    if settings.searcher != "evolution":
        return {}
    few = {"population": max(8, min(64, settings.evaluations // 3))}
    return {"screened": 0, **few} if not settings.surrogate else {}


def _scored(
    inputs: Inputs, space: SearchSpace, origin: str, searcher: Searcher, advance: Any
) -> Callable[[Ints], list[Score]]:
    """How paths of a space are scored, each in a race with the best of it that is no slower."""
    scores, key = inputs.scores, inputs.scores.metric.key
    raced = [
        record
        for record in inputs.imported
        if "error" not in record and inputs.space.parse(record["architecture"]) in space
    ]
    fits = searcher.regions[0].fits(searcher.known.paths)
    best = max(searcher.known.scores[fits], default=0.0)
    advance(0, f"best {best:.1f} %")

    def done(record: Record) -> None:
        nonlocal best
        if record.get("dropped") is False:
            best = max(best, record[key])
        advance(1, f"best {best:.1f} %")

    def score(paths: Ints) -> list[Score]:
        architectures = [decode(space, path) for path in paths]
        rivals = {a: _rival(inputs, a, raced) for a in architectures}
        found = scores(architectures, origin, rivals.__getitem__, done)
        records = scores.ledger.records
        raced.extend(records[a.id] for a in architectures if a.id in records)
        return found

    return score


def _rival(inputs: Inputs, architecture: Architecture, records: Sequence[Record]) -> str:
    """The outcomes of the best scored network that is no slower on any device."""
    if not inputs.settings.race_error:
        return ""
    own = {device: inputs.predict_ms(architecture, device) for device in inputs.tables}

    def no_slower(record: Record) -> bool:
        other = inputs.space.parse(record["architecture"])
        return all(inputs.predict_ms(other, device) <= ms for device, ms in own.items())

    return best_rival(records, inputs.scores.metric.key, no_slower)


def _baselines(inputs: Inputs, goal: Goal, region: Region, new: bool) -> Baselines:
    """What the answer to a goal is compared with, scored now where `new` scores are wanted.

    `region` is that of the goal, or further inside.
    """
    dense = inputs.scores.full(dense_space(inputs.space))
    return {
        "best uniform sparsity": _known(inputs, "uniform", _uniform(inputs, region), new),
        "best dense": [a for a in dense if inputs.fits(a, goal.region)],
        "best of random draws": _known(inputs, "random", _random(inputs, region, new), new),
    }


def _uniform(inputs: Inputs, region: Region) -> list[Architecture]:
    """For each resolution the largest network with one sparsity everywhere that fits."""
    chosen = []
    for resolution in inputs.space.positions[0].values:
        for sparsity in sparsities(inputs.space):
            a = uniform(inputs.space, resolution, sparsity)
            if sparsity and inputs.fits(a, region):
                chosen.append(a)
                break
    return chosen


def _random(inputs: Inputs, region: Region, new: bool) -> list[Architecture]:
    """As many random draws as there were scores to search with: the shipped draws that fit,
    and uniform draws from inside the budget up to the number of evaluations. Those of the run that
    this one starts from are added, as far as they fit."""
    settings = inputs.settings
    chosen = [a for a in inputs.scores.drawn if inputs.fits(a, region)]
    if new and (missing := settings.evaluations - len(chosen)) > 0:
        paths = region.within.sample(missing, np.random.default_rng(settings.seed + 1))
        chosen += [decode(inputs.space, path) for path in paths[region.fits(paths)]]
    before = (r for r in inputs.imported if r.get("origin") == "random" and "error" not in r)
    drawn = [inputs.space.parse(record["architecture"]) for record in before]
    return list(dict.fromkeys([*chosen, *(a for a in drawn if inputs.fits(a, region))]))


def _known(inputs: Inputs, name: str, wanted: list[Architecture], new: bool) -> list[Architecture]:
    """Those that have a score of all images."""
    if new:
        _score_all(inputs, name, wanted)
    known, seen = inputs.scores.known, inputs.scores.seen
    return [a for a in wanted if a in known and a not in seen]


def _score_all(inputs: Inputs, name: str, architectures: Sequence[Architecture]) -> None:
    """Score networks that are not candidates of the search, if they are not known."""
    if new := [a for a in dict.fromkeys(architectures) if a not in inputs.scores.known]:
        with bar(name, len(new), "networks") as advance:
            inputs.scores(new, name, done=lambda _: advance(1))


def dense_space(space: SearchSpace) -> SearchSpace:
    """The networks of a space that prune nothing."""
    return space.restrict("sparsity", 0)


def sparsities(space: SearchSpace) -> list[int]:
    """The sparsities in percent that blocks of a space may have, densest first."""
    values = (value for position in space.positions for value in position.values)
    return sorted({value.sparsity for value in values if hasattr(value, "sparsity")})


def uniform(space: SearchSpace, resolution: int, sparsity: int) -> Architecture:
    """The largest architecture at a resolution with one sparsity in every block that can prune."""
    return space.restrict("resolution", resolution).restrict("sparsity", sparsity).largest
