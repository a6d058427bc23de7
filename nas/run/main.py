"""The main job: budget in, measured winner, baselines and report out.

A run is a directory. Everything that took time is kept in it (scores in `candidates.jsonl`, the
tables, the stopwatch's samples), and a resumed run replays the same search against these records,
so that it ends as the undisturbed one would have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from nas.budget import Budget, positive_number, readable_ms
from nas.latency.table import LatencyTable
from nas.progress import console
from nas.records import write_json
from nas.run.contest import Outcome, decide, further_inside, rank, shortlist
from nas.run.examination import Examination, finals, test
from nas.run.inputs import Inputs, opened
from nas.run.record import Seen, make_record, write_tables
from nas.run.request import Request, claimed_folder, read_budgets
from nas.run.search import Searched, search, search_on
from nas.run.stopwatch import Stopwatch
from nas.run_record import Exported, RunRecord
from nas.settings import DEVICE, Distribution, Settings
from nas.space.architecture import Architecture


def search_networks(
    budget: str | float | Budget | Sequence[str | float | Budget],
    *,
    space: str = Settings.space,
    device: str = DEVICE,
    data: str = Settings.data,
    confidence: float = Settings.confidence,
    quantile: float = Settings.quantile,
    max_params: float | str | None = Settings.max_params,
    max_macs: float | str | None = Settings.max_macs,
    min_params: float | str | None = Settings.min_params,
    min_macs: float | str | None = Settings.min_macs,
    supernet: str | Path = Settings.supernet,
    table: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    resume: bool = False,
    source_run: str | Path = Settings.source_run,
    fresh: bool = Settings.fresh,
    evaluations: int = Settings.evaluations,
    search_images: int = Settings.search_images,
    final_images: int = Settings.final_images,
    test_images: int = Settings.test_images,
    score: str = Settings.score,
    reference_images: int = Settings.reference_images,
    searcher: str = Settings.searcher,
    sampler: str = Settings.sampler,
    batch: int = Settings.batch,
    surrogate: bool = Settings.surrogate,
    race_error: float = Settings.race_error,
    seed: int = Settings.seed,
    workers: int = Distribution.workers,
    ray_address: str | None = Distribution.ray_address,
    gpus: float = Distribution.gpus,
    timeout_s: float = Distribution.timeout_s,
    reuse_mb: int = Distribution.reuse_mb,
) -> RunRecord:
    """Search a space for the most accurate architecture within a latency budget, or several.

    `budget` is a time such as "20ms" (or milliseconds), one on another device such as
    "ethos-u85-256=8ms", or a list: several of one device are answered one by one, those of
    different devices hold together. Writes a run directory (`out`, by default a new one below
    `runs/`) and returns its record, which is a mapping with the keys of `run.json` too. `table` is
    the folder of a table, or `DEVICE=FOLDER`, or several. The other keywords are explained in
    `nas.settings`; `evaluations` counts the candidates that are scored besides the shipped scores,
    which `fresh` ignores. Raises `InfeasibleError` if nothing fits, and other `VitnasError`s.
    """
    asked = read_budgets(budget, device, table, quantile)
    settings = Settings(
        budgets=asked.budgets,
        space=space,
        data=data,
        confidence=confidence,
        quantile=quantile,
        max_params=_count("max_params", max_params),
        max_macs=_count("max_macs", max_macs),
        min_params=_count("min_params", min_params),
        min_macs=_count("min_macs", min_macs),
        supernet=str(supernet),
        source_run=str(source_run),
        fresh=fresh,
        evaluations=evaluations,
        search_images=search_images,
        final_images=final_images,
        test_images=test_images,
        score=score,
        reference_images=reference_images,
        searcher=searcher,
        sampler=sampler,
        batch=batch,
        surrogate=surrogate,
        race_error=race_error,
        seed=seed,
    )
    distribution = Distribution(
        workers=workers,
        ray_address=ray_address,
        gpus=gpus,
        timeout_s=timeout_s,
        reuse_mb=reuse_mb,
    )
    with claimed_folder(settings, out, resume) as folder:
        return run(Request(settings, folder, distribution, resume, asked.described, asked.given))


def _count(name: str, given: float | str | None) -> float | None:
    return None if given is None else positive_number(name, given)


def run(request: Request) -> RunRecord:
    """Do all parts of a run, one after the other, and write its directory."""
    clock = Clock()
    with opened(request, clock.part) as inputs:
        watch, final, tests = Stopwatch(inputs), finals(inputs), test(inputs)
        _greet(inputs, final)
        rng = np.random.default_rng(inputs.settings.seed)
        with clock.part("search"):
            searched = search(inputs, rng)
        searched, expected, outcomes = _settle(inputs, searched, watch, final, rng, clock)
        with clock.part("test"):
            tests([c for o in outcomes for c in (o.winner, *o.baselines)])
        with clock.part("export"):
            exported = _export_winners(inputs, outcomes)
        seen = Seen(watch, final, tests)
        record = make_record(inputs, searched, outcomes, seen, exported, clock.rounded())
        write_tables(inputs, record, expected)
    write_json(request.folder / "run.json", record.to_json())
    with clock.part("report"):
        from nas.report.report import write_report

        write_report([request.folder])
    record = replace(record, seconds=clock.rounded())
    write_json(request.folder / "run.json", record.to_json())
    return record


def _settle(
    inputs: Inputs,
    searched: Searched,
    watch: Stopwatch,
    final: Examination,
    rng: np.random.Generator,
    clock: Clock,
) -> tuple[Searched, dict[Architecture, float], list[Outcome]]:
    """Rank and measure until every goal has a winner, and search on where none fits as measured.

    Returns all that was searched, the expected accuracies by which was ranked, and the outcomes.
    """
    for tries in count(1):
        with clock.part("search"):
            expected = inputs.scores.expected(inputs.space)
            rankings = [
                rank(inputs, goal, baselines, expected)
                for goal, baselines in zip(inputs.goals, searched.baselines)
            ]
        with clock.part("measure"):
            watch([c for ranking in rankings for c in ranking.to_measure])
            lists = [
                shortlist(inputs, goal, ranking, watch)
                for goal, ranking in zip(inputs.goals, rankings)
            ]
        found = [finalists for finalists in lists if finalists is not None]
        if len(found) == len(lists):
            break
        with clock.part("search"):
            wanted = {
                i: further_inside(inputs, inputs.goals[i], watch, tries)
                for i, finalists in enumerate(lists)
                if finalists is None
            }
            searched = search_on(inputs, searched, wanted, rng)
    with clock.part("final"):
        outcomes = [
            decide(inputs, goal, finalists, watch, final)
            for goal, finalists in zip(inputs.goals, found)
        ]
    return searched, expected, outcomes


def _greet(inputs: Inputs, final: Examination) -> None:
    table, feasible = inputs.table, inputs.goals[0].feasible
    fitting = ", ".join(
        f"{goal.feasible.within_budget:,} within {goal.budget_ms:g} ms" for goal in inputs.goals
    )
    if (quantile := inputs.settings.quantile) != Settings.quantile:
        fitting += f" for {100 * quantile:g} % of inferences"
    scores, error, asked = inputs.scores, table.calibration, inputs.settings.final_images
    console.print(
        f"{inputs.space.name} on {table.manifest['device']['processor']}: "
        f"{feasible.architectures:,} architectures, {readable_ms(feasible.fastest_ms, 1)} to "
        f"{readable_ms(feasible.slowest_ms, 1)} ms; {fitting}\n"
        f"table: {len(table.rows)} rows, error on {error.held_out} other networks "
        f"{error.mape_percent:.1f} % (p95 {error.p95_percent:.1f} %); "
        f"{len(scores.known) + len(scores.ledger.written):,} scores known"
    )
    if final.images < asked:
        console.print(
            f"finals: {final.images} of {asked} samples, as the search split has "
            f"{inputs.data.search.size:,}, of which {scores.images:,} score candidates"
        )
    if references := scores.metric.references:
        console.print(
            f"score: {scores.metric.label}; labels used: {references:,} of the train split, "
            f"{scores.images + final.images:,} of the search split"
        )
    for device, table in inputs.tables.items():
        if said := _doubts(table, f"vitnas profile --device {device} --space {inputs.space.name}"):
            console.print(f"{device}: {said}", style="yellow")


def _doubts(table: LatencyTable, again: str) -> str:
    """What a user should know of how a table was measured; "" if that went well.

    `again` is the command that measures more rounds.
    """
    after = f"more rounds lower it ({again})" if table.wanting else ""
    busy = "the machine was busy while its table was measured" if table.busy else ""
    if busy:
        busy += f" ({table.manifest['held_up_percent']:.0f} % of the samples were held up)"
    return "; ".join(filter(None, (busy, after and f"noise keeps its error up: {after}")))


def _export_winners(inputs: Inputs, outcomes: Sequence[Outcome]) -> Mapping[Architecture, Exported]:
    """The winner of the first goal as files in `winner/`, others in `winner-BUDGET/`."""
    exported: dict[Architecture, Exported] = {}
    for goal, outcome in zip(inputs.goals, outcomes):
        winner = outcome.winner.architecture
        if winner not in exported:
            name = f"winner-{Budget(goal.budget_ms)}" if exported else "winner"
            differences = _export(inputs, winner, inputs.folder / name)
            inputs.scores.metric.keep(inputs.supernet.inherit(winner), inputs.folder / name)
            exported[winner] = Exported(name, differences)
    return exported


def _export(inputs: Inputs, architecture: Architecture, folder: Path) -> dict[str, float]:
    """Write a network as it was measured; the largest difference of an output, by file."""
    from nas.export import export_measured

    described = inputs.described[inputs.settings.device]
    subnet = inputs.evaluator.subnet(architecture)
    return export_measured(subnet, inputs.data, described, folder)


class Clock:
    """Measures the seconds that each part of a run takes."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(
            ("table", "search", "measure", "final", "test", "export", "report"), 0.0
        )
        self._start = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The context whose seconds are added to those of a part."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start

    def rounded(self) -> dict[str, float]:
        """The seconds of each part until now, and in all."""
        total = time.monotonic() - self._start
        return {k: round(v, 2) for k, v in {**self.seconds, "total": total}.items()}
