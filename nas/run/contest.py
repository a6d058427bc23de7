"""The contest within a budget: who may win, who wins as measured, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from nas.errors import InfeasibleError
from nas.progress import console
from nas.run.examination import Examination, Examined
from nas.run.inputs import Inputs
from nas.run.limits import Goal
from nas.run.scores import Candidate
from nas.run.search import Baselines, Wanted
from nas.run.stopwatch import Stopwatch
from nas.space.architecture import Architecture
from nas.strategy.statistics import pareto

_MEASURED = 5  # best candidates that are re-measured, besides the front
_FINALISTS = 3  # of the candidates, and of the networks of each baseline
_TRIES = 3  # to find one that measures within the budget, where the first ones did not
_MARGIN = 1.03  # by which each try aims lower


@dataclass(frozen=True, eq=False)
class Ranking:
    """The scored networks that fit, best expected accuracy first, and those they are compared with.

    `baselines` has for each kind its networks, best first.
    """

    candidates: list[Candidate]
    front: list[Candidate]
    largest: Candidate
    baselines: list[list[Candidate]]

    @property
    def to_measure(self) -> list[Candidate]:
        """The candidates that are measured in any case."""
        best = [candidate for group in self.baselines for candidate in group[:_FINALISTS]]
        return [self.largest, *self.candidates[:_MEASURED], *self.front, *best]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Who has won within a budget, the baselines that fit it, all measured, and the front."""

    winner: Candidate
    baselines: list[Candidate]
    front: list[Candidate]


def rank(
    inputs: Inputs, goal: Goal, baselines: Baselines, expected: Mapping[Architecture, float]
) -> Ranking:
    """Rank everything known that fits a goal by its expected accuracy in percent."""

    def candidates(name: str, architectures: Iterable[Architecture]) -> list[Candidate]:
        known = inputs.scores.known
        found = [
            Candidate(name, a, inputs.predict_ms(a), known[a], expected[a]) for a in architectures
        ]
        return sorted(found, key=lambda c: (-c.expected_percent, c.predicted_ms))

    fitting = [a for a in inputs.scores.full(inputs.space) if inputs.fits(a, goal.region)]
    ranked = candidates("candidate", fitting)
    points = [(c.predicted_ms, c.expected_percent) for c in ranked]
    front = [ranked[i] for i in pareto(*zip(*points))] if points else []
    (largest,) = candidates("largest dense", [inputs.space.largest])
    groups = [candidates(name, own) for name, own in baselines.items()]
    return Ranking(ranked, front, largest, groups)


@dataclass(frozen=True, eq=False)
class Finalists:
    """The networks within a budget, as measured, that are examined on further samples.

    `candidates` keep the budgets of all devices, `baselines` that of the device searched on.
    `ranking` is what they were taken from.
    """

    ranking: Ranking
    candidates: list[Candidate]
    baselines: list[list[Candidate]]


def shortlist(inputs: Inputs, goal: Goal, ranking: Ranking, watch: Stopwatch) -> Finalists | None:
    """The first that fit of all candidates and of each baseline; None where no candidate does."""
    candidates = list(islice(_fitting(inputs, goal, ranking.candidates, watch), _FINALISTS))
    if not candidates:
        return None
    groups = [
        list(islice(_fitting(inputs, goal, group, watch, here_alone=True), _FINALISTS))
        for group in ranking.baselines
    ]
    return Finalists(ranking, candidates, [group for group in groups if group])


def decide(
    inputs: Inputs, goal: Goal, finalists: Finalists, watch: Stopwatch, finals: Examination
) -> Outcome:
    """The best finalist that keeps the budgets of all devices wins.

    A network of a baseline is one of the space, and may win as well. The best of each baseline is
    chosen likewise; the largest network is one whether it fits or not.
    """
    candidates, baselines = finalists.candidates, finalists.baselines
    finals([c for group in (candidates, *baselines) for c in group])
    samples = inputs.scores.images, finals.images

    def best_first(group: Sequence[Candidate]) -> list[Candidate]:
        return sorted(group, key=lambda c: (-on_all(c, finals.found, *samples), c.predicted_ms))

    everyone = best_first([*candidates, *(c for group in baselines for c in group)])
    winner = next(c for c in everyone if watch.fits_elsewhere(c, goal.budgets))
    best = [best_first(group)[0] for group in baselines]
    return Outcome(winner, [finalists.ranking.largest, *best], finalists.ranking.front)


def on_all(
    candidate: Candidate, finals: Mapping[Architecture, Examined], searched: int, final: int
) -> float:
    """The accuracy in percent on all samples of the search split that were used.

    Of those that scored candidates that is the expected accuracy, so that luck in them counts
    little.
    """
    examined = finals.get(candidate.architecture)
    if examined is None:
        return candidate.expected_percent
    total = searched * candidate.expected_percent + final * examined.percent
    return total / (searched + final)


def _fitting(
    inputs: Inputs,
    goal: Goal,
    ranked: Sequence[Candidate],
    watch: Stopwatch,
    here_alone: bool = False,
) -> Iterator[Candidate]:
    """Those whose measured upper limit is within the budget, best first, timed as needed.

    Unless `here_alone` they keep the budgets of further devices as well.
    """
    left, budget_ms = list(ranked), goal.budget_ms
    while left:
        # On a day when the machine is slower than its table, skip what cannot fit.
        ratio = watch.ratio(inputs.settings.device)
        left = [c for c in left if watch.samples(c) or c.predicted_ms * ratio <= budget_ms]
        some, left = left[:_MEASURED], left[_MEASURED:]
        for candidate in some:
            samples = watch.samples(candidate) or watch(some)[candidate]
            if samples.upper_ms <= budget_ms and (
                here_alone or watch.fits_elsewhere(candidate, goal.budgets)
            ):
                yield candidate


def further_inside(inputs: Inputs, goal: Goal, watch: Stopwatch, tries: int) -> Wanted:
    """What to search for when all that was predicted to fit has measured above the budget.

    That is what fits with each device as slow as it is now, and a little more with each try.
    Raises `InfeasibleError` where that is nothing, or after the last try.
    """
    ratios = {device: watch.ratio(device) for device in goal.budgets}
    within = " and ".join(
        f"{ms:g} ms" if device == inputs.settings.device else f"{ms:g} ms on {device}"
        for device, ms in goal.budgets.items()
    )
    if tries <= _TRIES:
        slower = {device: max(1.0, ratio) * _MARGIN**tries for device, ratio in ratios.items()}
        wanted = Wanted(goal.budgets, slower)
        with suppress(InfeasibleError):
            region = wanted.region(inputs.limits)
            console.print(
                f"nothing of what was predicted within {within} measured so: "
                f"searching on within {region.limits[0].bound:.4g} ms (predicted)",
                style="yellow",
            )
            return wanted
    now = " and ".join(f"{device} {ratio:.2f}" for device, ratio in ratios.items())
    raise InfeasibleError(
        f"nothing of what was predicted within {within} measured so "
        f"(measured over predicted: {now})",
        "measure the table again when the machine is quiet (vitnas profile --again), "
        "or raise the budget",
    )
