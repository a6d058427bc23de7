"""What a run writes of its result: the record, and the tables of front, archive and cloud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from nas import run_record
from nas.records import write_csv
from nas.run.contest import Outcome
from nas.run.examination import Examination
from nas.run.inputs import Inputs
from nas.run.limits import Goal
from nas.run.scores import Candidate
from nas.run.search import Searched, dense_space
from nas.run.stopwatch import Stopwatch, asked_ms
from nas.run_record import Answer, Exported, MetricName, RunRecord, SupernetName, Winner
from nas.runtimes import VERBS
from nas.settings import Settings
from nas.space.architecture import Architecture
from nas.strategy.quality import Quality, judge
from nas.strategy.searchers import Known
from nas.strategy.statistics import hypervolumes
from nas.trellis.graph import encode


@dataclass(frozen=True, eq=False)
class Seen:
    """What a run has seen of networks besides their scores: times, finals, and tests."""

    watch: Stopwatch
    finals: Examination
    tests: Examination


def make_record(
    inputs: Inputs,
    searched: Searched,
    outcomes: Sequence[Outcome],
    seen: Seen,
    exported: Mapping[Architecture, Exported],
    seconds: dict[str, float],
) -> RunRecord:
    """The record of a run whose winners were tested and exported."""
    task, table, card = inputs.space.task, inputs.table, inputs.card
    metric = inputs.scores.metric
    own = inputs.scores.own("search")
    rejections: Counter[str] = Counter()
    for searcher in searched.searchers:
        rejections.update(searcher.rejections)  # a sum would leave out what is 0
    dense = dense_space(inputs.space)
    baselines = {c for outcome in outcomes for c in outcome.baselines}
    answers = tuple(
        _answer(inputs, goal, outcome, seen, exported, len(found["best of random draws"]))
        for goal, outcome, found in zip(inputs.goals, outcomes, searched.baselines)
    )
    settings = {f.name: getattr(inputs.settings, f.name) for f in fields(Settings)}
    settings |= {  # a split may have fewer than were asked for
        "search_images": inputs.evaluator.images,
        "final_images": seen.finals.images,
        "test_images": seen.tests.images,
        "reference_images": metric.references or None,
    }
    asked = settings.keys() & {f.name for f in fields(RunRecord)} - {"supernet", "evaluations"}
    record = RunRecord(
        **{name: settings[name] for name in asked},
        vitnas_version=version("vitnas"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=inputs.settings.device,
        supernet=SupernetName(card["space"], card["data"], card["fingerprint"]),
        evaluations=len(own),
        device_described=table.manifest["device"],
        run_dir=str(inputs.folder),
        task=task.describe(),
        metric=MetricName(metric.name, metric.label, metric.heading or metric.name),
        set_aside=sum("error" in r for r in own),
        dropped=sum(bool(r.get("dropped")) for r in own),
        dense_evaluations=sum(
            r["origin"] == "dense" for r in inputs.scores.ledger.records.values()
        ),
        dense_known=sum(a in dense for a in inputs.prior),
        random_draws=answers[0].random_draws,
        shipped_scores=len(inputs.scores.shipped),
        imported_scores=len(inputs.imported),
        proposals=sum(searcher.proposals for searcher in searched.searchers),
        rejections=dict(rejections),
        surrogate_rank_correlation=_rank_correlation(searched),
        hypervolume=_hypervolume(inputs, own),
        verb=VERBS[table.measured_source],
        answers=answers,
        measured=tuple(
            run_record.Candidate(**_written(c, seen, tested=c in baselines))
            for c in seen.watch.first.values()
        ),
        table=table.calibration,
        table_manifest={k: v for k, v in table.manifest.items() if k != "calibration"},
        seconds=seconds,
    )
    return replace(record, agreement=table.agreement(record.times, record.confidence))


def _answer(
    inputs: Inputs,
    goal: Goal,
    outcome: Outcome,
    seen: Seen,
    exported: Mapping[Architecture, Exported],
    random_draws: int,
) -> Answer:
    scores, tested = inputs.scores, seen.tests.found
    won = tested[outcome.winner.architecture]
    errors = {
        c: None if error is None else round(error, 4)
        for c in outcome.baselines
        for error in [won.difference_error_points(tested[c.architecture])]
    }
    fitting = [scores.known[a] for a in inputs.prior if inputs.fits(a, goal.region)]
    return Answer(
        goal.budget_ms,
        goal.budgets,
        round(goal.limit_ms, 4),
        goal.feasible,
        max(fitting, default=None),
        _winner(inputs, goal, outcome, seen),
        tuple(
            run_record.Candidate(**_written(c, seen), difference_error_points=error)
            for c, error in errors.items()
        ),
        tuple(run_record.Candidate(**_written(c, seen, tested=False)) for c in outcome.front),
        Quality(**_quality(inputs, goal, outcome.winner).summary()),
        exported[outcome.winner.architecture],
        random_draws,
        next((error for c, error in errors.items() if c.name == "best dense"), None),
    )


def _winner(inputs: Inputs, goal: Goal, outcome: Outcome, seen: Seen) -> Winner:
    winner, table = outcome.winner, inputs.table
    samples = seen.watch.samples(winner)
    assert samples is not None  # it won as measured
    low, high = table.interval(winner.predicted_ms, inputs.settings.confidence)
    return Winner(
        **{**_written(winner, seen), "name": "winner"},
        upper_ms=round(samples.upper_ms, 4),
        interval_ms=(round(low, 4), round(high, 4)),
        chance_within_budget=round(samples.share_within(goal.budget_ms), 4),
        test_error_points=round(seen.tests.found[winner.architecture].error_points, 4),
    )


def _written(candidate: Candidate, seen: Seen, tested: bool = True) -> dict[str, Any]:
    """The fields of a candidate as a run records it, rounded; its test only where `tested`."""
    samples = seen.watch.samples(candidate)
    final = seen.finals.found.get(candidate.architecture)
    test = seen.tests.found.get(candidate.architecture) if tested else None
    return {
        "name": candidate.name,
        "id": candidate.architecture.id,
        "architecture": asdict(candidate.architecture),
        "predicted_ms": round(candidate.predicted_ms, 4),
        "measured_ms": None if samples is None else round(samples.median_ms, 4),
        "measured_p95_ms": None if samples is None else round(samples.p95_ms, 4),
        "search_percent": round(candidate.search_percent, 3),
        "expected_percent": round(candidate.expected_percent, 3),
        "final_percent": None if final is None else round(final.percent, 4),
        "test_percent": None if test is None else round(test.percent, 4),
        "measured_quantile_ms": None if samples is None else asked_ms(samples),
        "other_devices": seen.watch.others.get(candidate, {}),
        "test_by_class": () if test is None else test.by_class,
    }


def _quality(inputs: Inputs, goal: Goal, winner: Candidate) -> Quality:
    """How good a winner is by everything known of the space, scores with their noise."""
    space, scores = inputs.space, inputs.scores
    known = [a for a in scores.known if a in space]
    paths = np.array([encode(space, a) for a in known])
    values = np.array([scores.known[a] for a in known])
    noise = np.array([scores.noise(a) for a in known])
    known_paths = Known(space.positions, paths, values, noise)
    return judge(goal.region, known_paths, encode(space, winner.architecture))


def _rank_correlation(searched: Searched) -> float | None:
    """Of what the first searcher predicted with the scores; None where it predicted nothing."""
    found = searched.searchers[0].rank_correlation if searched.searchers else float("nan")
    return round(found, 4) if found == found else None


def _hypervolume(inputs: Inputs, own: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Of everything known before, then after each candidate of this run."""
    space, prior = inputs.space, inputs.prior
    new = [space.parse(r["architecture"]) for r in own if r.get("dropped") is False]
    everything = [*prior, *new]
    costs = [inputs.predict_ms(a) for a in everything]
    scores = [inputs.scores.known[a] for a in everything]
    limit = max(goal.limit_ms for goal in inputs.goals)
    volumes = hypervolumes(costs, scores, limit, space.task.chance_percent)
    return tuple(round(v, 5) for v in volumes[max(0, len(prior) - 1) :])


def write_tables(inputs: Inputs, record: RunRecord, expected: Mapping[Architecture, float]) -> None:
    """Write `front.csv`, `archive.csv` and `cloud.csv`; `expected` accuracies are in percent."""
    metric, folder = record.metric.name, inputs.folder
    search = f"search_{metric}_percent"
    front = record["front"]
    flat = ("id", "predicted_ms", "measured_ms", "measured_p95_ms", search)
    write_csv(folder / "front.csv", [{key: c[key] for key in flat} for c in front])
    write_csv(
        folder / "archive.csv",
        [
            {
                "up_to_ms": round(up_to_ms, 4),
                "id": a.id,
                "predicted_ms": round(inputs.predict_ms(a), 4),
                f"expected_{metric}_percent": round(expected[a], 3),
                search: round(inputs.scores.known[a], 3),
            }
            for up_to_ms, a in _archive(inputs, expected)
        ],
    )
    cloud = [
        {"predicted_ms": round(inputs.predict_ms(a), 4), search: round(score, 4)}
        for a, score in inputs.scores.known.items()
    ]
    write_csv(folder / "cloud.csv", cloud)


def _archive(
    inputs: Inputs, expected: Mapping[Architecture, float]
) -> list[tuple[float, Architecture]]:
    """The best known network by latency bucket, each bucket 5 % wide: an answer to any budget."""
    best: dict[int, tuple[float, float, Architecture]] = {}
    for a in inputs.scores.full(inputs.space):
        ms = inputs.predict_ms(a)
        if np.isfinite(ms):
            bucket = int(np.ceil(np.log(ms) / np.log(1.05)))
            known = best.get(bucket, (-np.inf, 0.0, a))
            best[bucket] = max(known, (expected[a], -ms, a), key=lambda x: x[:2])
    return [(float(1.05**bucket), a) for bucket, (_, _, a) in sorted(best.items())]
