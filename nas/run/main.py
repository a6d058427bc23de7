"""The main job: budget in, measured winner, baselines and report out.

A run is a directory. Everything that took time is kept in it (scores in `candidates.jsonl`, the
tables, the stopwatch's samples), and a resumed run replays the same search against these records,
so that it ends as the undisturbed one would have.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from nas.budget import Budget, alternatives
from nas.errors import EvaluationError, InfeasibleError, RunError, UnknownNameError
from nas.families import load_space
from nas.progress import console
from nas.records import write_csv, write_json
from nas.run.contest import Contest, Stopwatch, archive, can_answer, score_all, test
from nas.run.inputs import Job, opened
from nas.run.scores import rounded
from nas.run_record import Exported, MetricName, RunRecord, SupernetName
from nas.runtimes import VERBS, load_runtime
from nas.settings import Distribution, Settings
from nas.space.architecture import Architecture
from nas.strategy.constraints import Region
from nas.strategy.loop import nothing_fits
from nas.strategy.searchers import Searcher
from nas.strategy.statistics import hypervolumes


class Clock:
    """Seconds by part of the job."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(
            ("table", "search", "measure", "test", "export", "report"), 0.0
        )
        self._start = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start

    def rounded(self) -> dict[str, float]:
        total = time.monotonic() - self._start
        return {k: round(v, 2) for k, v in {**self.seconds, "total": total}.items()}


def search_networks(
    budget: str | float | Budget | Sequence[str | float | Budget],
    *,
    space: str = "swin:micro",
    device: str = "torch-cpu",
    supernet: str | Path = "",
    source_run: str | Path = "",
    out: str | Path | None = None,
    resume: bool = False,
    table: str | Path | Sequence[str | Path] = (),
    **settings: Any,
) -> RunRecord:
    """Search a space for the most accurate architecture within a latency budget, or several.

    `budget` is a time such as "20ms" (or milliseconds), one on another device such as
    "ethos-u85-256=8ms", or a list: several of one device are answered one by one, those of
    different devices hold together. Writes a run directory (`out`, by default a new one below
    `runs/`) and returns its record, which is a mapping with the keys of `run.json` too. Further
    settings are those of `Settings` and `Distribution` in `nas.settings`. `evaluations` counts the
    candidates that are scored besides the shipped scores, which `fresh` ignores. Raises
    `InfeasibleError` if nothing fits, and other `VitnasError`s.
    """
    wanted = [_budget(b) for b in ([budget] if isinstance(budget, str | float | int | Budget)
              else budget)]  # fmt: skip
    where = {k: settings.pop(k) for k in Distribution.__dataclass_fields__ if k in settings}
    if unknown := settings.keys() - Settings.__dataclass_fields__.keys():
        raise TypeError(f"search has no setting {', '.join(sorted(unknown))}")
    tables = _tables(table, device)
    canonical, described = {}, {}
    for name in dict.fromkeys(b.device or device for b in wanted):
        if name in tables and name not in (device,) and not _known(name):
            canonical[name] = name  # only a label for a table
            continue
        runtime = load_runtime(name)
        canonical[name] = runtime.device
        described[runtime.device] = runtime.describe()  # unusable: found before anything is loaded
    budgets = alternatives(
        [Budget(b.latency_ms, canonical[b.device or device]) for b in wanted], device
    )
    chosen = Settings(
        budgets=tuple(budgets), space=space, supernet=str(supernet), source_run=str(source_run),
        **settings,
    )  # fmt: skip
    the_space = load_space(space)
    folder = _run_folder(chosen, out, resume)
    job = Job(chosen, the_space, folder, Distribution(**where), resume, described)
    given = {canonical.get(name, name): path for name, path in tables.items()}
    clock = Clock()
    with opened(job, given, clock.part) as job:
        return _Run(job, clock).run()


def _budget(budget: str | float | Budget) -> Budget:
    if isinstance(budget, str):
        return Budget.parse(budget)
    return budget if isinstance(budget, Budget) else Budget(float(budget))


def _tables(given: str | Path | Sequence[str | Path], device: str) -> dict[str, Path]:
    """Folders by device: `FOLDER` is that of the device that is searched on."""
    found = {}
    for one in [given] if isinstance(given, str | Path) else given:
        name, _, folder = str(one).rpartition("=")
        if str(one):
            found[name or device] = Path(folder)
    return found


def _known(device: str) -> bool:
    try:
        load_runtime(device)
    except UnknownNameError:
        return False
    return True


def _run_folder(settings: Settings, out: str | Path | None, resume: bool) -> Path:
    """The directory of this run: the one named, or a new one, or the last unfinished one."""
    if out is not None:
        folder = Path(out)
        known = (folder / "settings.json").exists()
        if folder.exists() and not known and not _empty(folder):
            raise RunError(f"{folder} exists and is not a run", "choose another --out")
        if known and not resume:
            raise RunError(f"{folder} exists already", "add --resume, or choose another --out")
        return folder
    times = "-".join(str(Budget(b[settings.device])) for b in settings.budgets)
    name = f"{settings.space.replace(':', '-')}-{times}"
    runs = [p.parent for p in Path("runs").glob(f"{name}*/settings.json")]
    unfinished = [run for run in runs if not (run / "report.html").exists()]  # the last step
    if resume and unfinished:
        return max(unfinished, key=lambda run: (run / "settings.json").stat().st_mtime)
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def _empty(folder: Path) -> bool:
    """Whether nothing is in a folder but what a run that was killed at its start leaves there."""
    return folder.is_dir() and all(p.name.startswith(".settings.json.") for p in folder.iterdir())


class _Run:
    """The parts of a run, in order."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.job, self.settings, self.folder, self.clock = job, job.settings, job.folder, clock
        self.contests = [Contest(job, i) for i in range(len(self.settings.budgets))]
        self.searchers: list[Searcher] = []

    def run(self) -> RunRecord:
        clock = self.clock
        self._greet()
        with clock.part("search"):
            self._search()
        with clock.part("measure"):
            watch = Stopwatch(self.job)
            watch([c for contest in self.contests for c in contest.to_measure()])
        for contest in self.contests:
            self._decide(contest, watch)
        with clock.part("test"):
            test(self.job, [c for one in self.contests for c in (one.winner, *one.baselines)])
        with clock.part("export"):
            self._export_winners()
        record = self._record(watch)
        self._write(record)
        from nas.report.report import write_report

        with clock.part("report"):
            write_report([self.folder])
        record = replace(record, seconds=clock.rounded())
        write_json(self.folder / "run.json", record.to_json())
        return record

    def _search(self) -> None:
        """Candidates and baselines scored, and ranked by expected accuracy."""
        job = self.job
        at_hand = job.base is not None and all(can_answer(job, r) for r in job.regions)
        if at_hand:
            console.print(f"answered from {job.base}: nothing new is scored", style="dim")
        else:
            searcher = self._evolve(job.regions)
            if not len(searcher.known):
                raise nothing_fits(searcher, job.regions[0])
        score_all(job, "largest", [job.space.largest])
        if error := job.scores.ledger.records.get(job.space.largest.id, {}).get("error"):
            raise EvaluationError(
                f"the largest network, which all are compared with, has no score: {error}",
                "mend the cause; what was scored is kept",
            )
        if not at_hand:
            self._search_dense()
        for contest in self.contests:
            contest.score(new=not at_hand)
        self._rank()

    def _evolve(self, regions: Sequence[Region]) -> Searcher:
        job = self.job
        self.searchers.append(job.evolve(job.space, regions, self.settings.evaluations, "search"))
        return self.searchers[-1]

    def _search_dense(self) -> None:
        """The baseline of dense networks has a search of its own, for the budgets that they fit."""
        job, regions = self.job, []
        dense = job.space.restrict("sparsity", 0)
        limits = job.limits_of(dense)
        for wanted in self.settings.budgets:
            with suppress(InfeasibleError):
                regions.append(limits.region(wanted))
        if regions:
            job.evolve(dense, regions, max(1, self.settings.evaluations // 2), "dense")

    def _rank(self) -> None:
        self.expected = self.job.scores.expected(self.job.space)
        for contest in self.contests:
            contest.rank(self.expected)

    def _decide(self, contest: Contest, watch: Stopwatch) -> None:
        """The winner of one budget; searches on while nothing that is known measures within it."""
        for tries in count(1):
            with self.clock.part("measure"):
                if contest.decide(watch):
                    return
            with self.clock.part("search"):
                self._evolve([contest.further_inside(watch, tries)])
                self._rank()

    def _greet(self) -> None:
        f, t, table = self.job.feasible[0], self.job.table.calibration, self.job.table
        fitting = ", ".join(
            f"{c.feasible.within_budget:,} within {c.budget_ms:g} ms" for c in self.contests
        )
        console.print(
            f"[bold]{self.job.space.name}[/] on {table.manifest['device']['processor']}: "
            f"{f.architectures:,} architectures, {f.fastest_ms:.1f} to "
            f"{f.slowest_ms:.1f} ms; {fitting}\n"
            f"table: {len(table.rows)} rows, error on {t.held_out} other networks "
            f"{t.mape_percent:.1f} % (p95 {t.p95_percent:.1f} %); "
            f"{len(self.job.scores.known) + len(self.job.scores.ledger.written):,} scores known"
        )

    def _export_winners(self) -> None:
        """That of the first budget into `winner/`, others into `winner-BUDGET/`."""
        written: dict[Architecture, Contest] = {}
        for contest in self.contests:
            first = written.setdefault(contest.winner.architecture, contest)
            if first is contest:
                name = f"winner-{Budget(contest.budget_ms)}" if len(written) > 1 else "winner"
                contest.exported = Exported(name, self._export(contest, name))
            contest.exported = first.exported

    def _export(self, contest: Contest, name: str) -> dict[str, float]:
        import torch

        from nas.export import export_network, onnx_installed

        job, architecture = self.job, contest.winner.architecture
        parts = job.space.parts
        first = job.data.first(job.data.test, 1, job.space.largest.resolution)
        images = parts.resized(first[parts.takes], architecture.resolution).contiguous()
        plain = job.evaluator.subnet(architecture)
        with torch.no_grad():
            expected = plain(images)
        formats = ["safetensors", "pt2", *(["onnx"] if onnx_installed() else [])]
        return export_network(plain, images, expected, self.folder / name, formats)

    def _record(self, watch: Stopwatch) -> RunRecord:
        job, table, s = self.job, self.job.table, self.settings
        own = [r for r in job.scores.ledger.records.values() if r["origin"] == "search"]
        rejections: Counter[str] = Counter()
        for searcher in self.searchers:
            rejections.update(searcher.rejections)  # a sum would leave out what is 0
        metric = job.space.task.metric
        return RunRecord(
            vitnas_version=version("vitnas"),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            device=s.device,
            space=s.space,
            data=s.data,
            confidence=s.confidence,
            supernet=SupernetName(*(job.card[k] for k in ("space", "data", "fingerprint"))),
            source_run=s.source_run,
            evaluations=len(own),
            search_images=s.search_images,
            test_images=s.test_images,
            searcher=s.searcher,
            sampler=s.sampler,
            batch=s.batch,
            surrogate=s.surrogate,
            race_error=s.race_error,
            max_params=s.max_params,
            max_macs=s.max_macs,
            fresh=s.fresh,
            seed=s.seed,
            device_described=table.manifest["device"],
            run_dir=str(self.folder),
            task=job.data.task.describe(),
            metric=MetricName(metric.name, metric.label, metric.heading or metric.name),
            set_aside=sum("error" in r for r in own),
            dropped=sum(bool(r.get("dropped")) for r in own),
            random_draws=len(self.contests[0].groups["best of random draws"]),
            shipped_scores=len(job.scores.shipped),
            imported_scores=len(job.imported),
            proposals=sum(searcher.proposals for searcher in self.searchers),
            rejections=dict(rejections),
            surrogate_rank_correlation=self._rank_correlation(),
            hypervolume=tuple(self._hypervolume(own)),
            verb=VERBS[table.measured_source],
            answers=tuple(contest.answer() for contest in self.contests),
            measured=tuple(c.summary() for c in watch.measured.values()),
            table=table.calibration,
            table_manifest={k: v for k, v in table.manifest.items() if k != "calibration"},
            seconds=self.clock.rounded(),
        )

    def _rank_correlation(self) -> float | None:
        found = self.searchers[0].rank_correlation if self.searchers else float("nan")
        return rounded(found) if found == found else None

    def _hypervolume(self, own: list[dict[str, Any]]) -> list[float]:
        """Of everything known before, then after each candidate of this run."""
        job = self.job
        prior = [a for a in job.prior(job.space) if a not in job.scores.seen]
        new = [job.space.parse(r["architecture"]) for r in own if r.get("dropped") is False]
        everything = [*prior, *new]
        costs = [job.predict_ms(a) for a in everything]
        scores = [job.scores.known[a] for a in everything]
        limit = max(c.limit_ms for c in self.contests)
        volumes = hypervolumes(costs, scores, limit, job.space.task.chance_percent)
        return [round(v, 5) for v in volumes[max(0, len(prior) - 1) :]]

    def _write(self, record: RunRecord) -> None:
        job = self.job
        search = f"search_{record.metric.name}_percent"
        flat = ("id", "predicted_ms", "measured_ms", "measured_p95_ms", search)
        front = record["front"]
        write_csv(self.folder / "front.csv", [{key: c[key] for key in flat} for c in front])
        write_csv(self.folder / "archive.csv", archive(job, self.expected))
        cloud = [
            {"predicted_ms": round(job.predict_ms(a), 4), search: round(score, 4)}
            for a, score in job.scores.known.items()
        ]
        write_csv(self.folder / "cloud.csv", cloud)
        write_json(self.folder / "run.json", record.to_json())
