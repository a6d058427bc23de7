"""The main job: budget in, measured winner, baselines and report out.

A run is a directory. Everything that took time is kept in it (scores in `candidates.jsonl`, the
table, the stopwatch's samples), and a resumed run replays the same search against these records,
so that it ends as the undisturbed one would have.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nas.budget import Budget
from nas.campaign import profile
from nas.candidates import SURROGATE_FROM, Candidate, Scores, rounded
from nas.data import Dataset, load_data
from nas.errors import InfeasibleError, RunError, TableError, UnknownNameError, UsageError
from nas.evaluate import Evaluator, resize
from nas.family import SearchSpace, load_space
from nas.graph import decode, encode
from nas.latency import LatencyTable
from nas.progress import bar, console
from nas.records import Journal, fingerprint, read_json, write_csv, write_json
from nas.runtimes import VERBS, load_runtime
from nas.searcher import Evolution, EvolutionSearcher, Surrogate, pareto
from nas.space import Architecture
from nas.supernet import load_supernet, supernet_folder
from nas.trellis import Trellis

SAMPLERS = ("trellis", "rejection")
_BATCH = 8  # candidates scored between two looks at the surrogate
_MEASURED = 5  # best candidates that are re-measured, besides the front
_ROUNDS = 10  # of three end-to-end samples of each


@dataclass(frozen=True)
class Settings:
    """What determines a run's result; a resumed run must have the same."""

    budget_ms: float
    space: str = "swin:micro"
    data: str = "scenes"
    device: str = "torch-cpu"
    confidence: float = 0.95  # that a prediction within the limit measures within the budget
    supernet: str = ""  # folder; empty for the shipped one
    evaluations: int = 8
    search_images: int = 400
    test_images: int = 500
    sampler: str = "trellis"
    fresh: bool = False
    seed: int = 0


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


def search(
    budget: str | float | Budget,
    *,
    space: str = "swin:micro",
    data: str = "scenes",
    device: str = "torch-cpu",
    confidence: float = 0.95,
    supernet: str | Path = "",
    out: str | Path | None = None,
    resume: bool = False,
    evaluations: int = 8,
    search_images: int = 400,
    test_images: int = 500,
    sampler: str = "trellis",
    fresh: bool = False,
    seed: int = 0,
    table: str | Path | None = None,
) -> dict[str, Any]:
    """Search a space for the most accurate architecture within a latency budget.

    `budget` is a time such as "20ms" (or milliseconds). Writes a run directory (`out`, by default
    a new one below `runs/`) and returns what its `run.json` holds; the keys are documented in the
    README. `evaluations` counts the candidates that are scored besides the shipped scores, which
    `fresh` ignores. Raises `InfeasibleError` if nothing fits, and other `VitnasError`s.
    """
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    elif not isinstance(budget, Budget):
        budget = Budget(float(budget))
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if not 0.5 <= confidence < 1:
        raise UsageError(f"a confidence is at least 0.5 and below 1, got {confidence}")
    runtime = load_runtime(device)
    described = runtime.describe()  # an unusable device must not cost the loading of a supernet
    settings = Settings(
        budget_ms=budget.latency_ms,
        space=space,
        data=data,
        device=runtime.device,
        confidence=confidence,
        supernet=str(supernet),
        evaluations=evaluations,
        search_images=search_images,
        test_images=test_images,
        sampler=sampler,
        fresh=fresh,
        seed=seed,
    )
    the_space = load_space(space)
    folder = _run_folder(settings, out, resume)
    return _Job(
        settings, the_space, described, folder, resume, Path(table) if table else None
    ).run()


def _run_folder(settings: Settings, out: str | Path | None, resume: bool) -> Path:
    """The directory of this run: the one named, or a new one, or the last unfinished one."""
    if out is not None:
        folder = Path(out)
        known = (folder / "settings.json").exists()
        if folder.exists() and not known and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} exists and is not a run", "choose another --out")
        if known and not resume:
            raise RunError(f"{folder} exists already", "add --resume, or choose another --out")
        return folder
    name = f"{settings.space.replace(':', '-')}-{Budget(settings.budget_ms)}"
    runs = [p.parent for p in Path("runs").glob(f"{name}*/settings.json")]
    unfinished = [run for run in runs if not (run / "run.json").exists()]
    if resume and unfinished:
        return max(unfinished, key=lambda run: (run / "settings.json").stat().st_mtime)
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


class _Job:
    """One run, part by part."""

    def __init__(
        self,
        settings: Settings,
        space: SearchSpace,
        described: dict[str, Any],
        folder: Path,
        resume: bool,
        table: Path | None,
    ) -> None:
        self.settings, self.space, self.folder = settings, space, folder
        self.clock = Clock()
        self.data: Dataset = load_data(settings.data)
        self.classes = len(self.data.classes)
        source = (
            Path(settings.supernet) if settings.supernet else supernet_folder(space.name, self.data)
        )
        self.table = self._open_table(table, resume, described)
        self.trellis: Trellis = self.table.trellis(space, self.classes)
        self.feasible = self._feasible()
        self.network, self.card = load_supernet(source, space.name, self.data)
        self._check_settings(resume)
        shipped = [] if settings.fresh else self._shipped_scores(source)
        from nas.runtimes.torch_cpu import keep_heap

        keep_heap()
        evaluator = Evaluator(self.network, self.data, self.data.search, settings.search_images)
        self.scores = Scores(evaluator, Journal(folder / "candidates.jsonl"), shipped)
        self.rng = np.random.default_rng(settings.seed)
        self.measured: dict[Architecture, Candidate] = {}

    # --- what it stands on ---

    def _open_table(
        self, given: Path | None, resume: bool, described: dict[str, Any]
    ) -> LatencyTable:
        own = self.folder / "table"
        with self.clock.part("table"):
            if resume and (own / "manifest.toml").exists():
                given = own
            if given is None:
                table = profile(self.space, self.classes, self.settings.device)
            else:
                table = LatencyTable.load(given)
                table.check(self.space, described)
        if table.unit != "ms" or table.manifest["source"] == "emulated-time":
            raise TableError(
                f"a table of {table.manifest['source']} ({table.unit}) says nothing about a budget "
                "in time",
                "carry it to a device: vitnas profile --device DEVICE --from TABLE --rows 5",
            )
        return table

    def _feasible(self) -> dict[str, Any]:
        budget = self.settings.budget_ms
        fastest, slowest = self.trellis.fastest, self.trellis.slowest
        if fastest > budget:
            raise InfeasibleError(
                f"no architecture of {self.space.name} fits {budget:g} ms on this machine: "
                f"the smallest possible takes {fastest:.2f} ms (predicted)",
                f"raise the budget: --budget {ceil(fastest * 11) / 10:g}ms",
            )
        return {
            "fastest_ms": round(fastest, 4),
            "slowest_ms": round(slowest, 4),
            "architectures": self.trellis.graph.count,
            "within_budget": (
                self.trellis.graph.count
                if budget >= slowest
                else self.trellis.within(budget, ticks=8192).count
            ),
        }

    def _check_settings(self, resume: bool) -> None:
        identity = {
            **asdict(self.settings),
            "data_fingerprint": self.data.fingerprint,
            "weights_fingerprint": self.card["fingerprint"],
            "table_fingerprint": fingerprint(
                {key: row.median for key, row in self.table.rows.items() if row.usable}
            ),
        }
        file = self.folder / "settings.json"
        if resume and file.exists():
            before = read_json(file)
            if differing := [k for k in identity if before.get(k) != identity[k]]:
                raise RunError(
                    f"{self.folder} was made with another {' and '.join(differing)}",
                    "resume with the same options, or start a new run without --resume",
                )
        else:
            self.table.save(self.folder / "table")
            write_json(file, identity)  # from here on this is a run that can be resumed

    def _shipped_scores(self, source: Path) -> list[dict[str, Any]]:
        """The journal beside the weights, where it is of these weights, data and images."""
        if not (source / "scores.json").exists():
            return []
        head = read_json(source / "scores.json")
        same = (
            head["weights_fingerprint"] == self.card["fingerprint"]
            and head["data_fingerprint"] == self.data.fingerprint
            and head["search_images"] == self.settings.search_images
        )
        if not same:
            console.print(
                f"the shipped scores are of {head['search_images']} images of the search split, "
                "or of other weights or data: they are not used"
            )
        return Journal(source / "scores.jsonl").read() if same else []

    # --- the search ---

    def predict_ms(self, architecture: Architecture) -> float:
        return self.table.predict(self.space, architecture, self.classes)

    @property
    def limit_ms(self) -> float:
        """What a prediction may be, to measure within the budget with the confidence asked for."""
        limit = self.table.limit(self.settings.budget_ms, self.settings.confidence)
        return limit if self.trellis.fastest <= limit else self.settings.budget_ms

    def evolve(
        self, space: SearchSpace, evaluations: int, origin: str
    ) -> tuple[EvolutionSearcher, Surrogate | None]:
        """Ask, score, tell; all scores known of this space within the budget take part."""
        trellis = self.table.trellis(space, self.classes)
        known = self.scores.fitting(space)
        paths = [encode(space, a) for a in known]
        values = list(known.values())
        surrogate = None
        population = min(64, max(_BATCH, len(values), evaluations // 3))
        searcher = EvolutionSearcher(
            trellis,
            self.limit_ms,
            self.rng,
            sampler=self.settings.sampler,
            settings=Evolution(population=population, parents=max(2, population // 4)),
        )
        if paths:
            searcher.tell(np.array(paths), values)
        best = max((v for a, v in known.items() if self.fits(a)), default=0.0)
        with bar(origin, evaluations, "candidates") as advance:
            advance(0, f"best {best:.1f} %")
            done = 0
            while done < evaluations:
                if len(values) >= SURROGATE_FROM:
                    surrogate = Surrogate(space.positions).fit(np.array(paths), np.array(values))
                    searcher.surrogate = surrogate
                asked = searcher.ask(min(_BATCH, evaluations - done))
                if not len(asked):
                    break  # everything that fits has been scored, or none was found
                for path in asked:
                    architecture = decode(space, path)
                    (score,) = self.scores([architecture], origin)
                    searcher.tell(path[None], [score])
                    paths.append(path)
                    values.append(score)
                    best = max(best, score)
                    done += 1
                    advance(1, f"best {best:.1f} %")
        return searcher, surrogate

    def candidates(self, name: str, architectures: Iterable[Architecture]) -> list[Candidate]:
        """Candidates of scored architectures, best expected accuracy first, then the faster one."""
        found = [
            Candidate(name, a, self.predict_ms(a), self.scores.known[a], self.expected[a])
            for a in architectures
        ]
        return sorted(found, key=lambda c: (-c.expected_top1_percent, c.predicted_ms))

    def fits(self, architecture: Architecture) -> bool:
        return self.predict_ms(architecture) <= self.limit_ms

    # --- the baselines ---

    def _uniform(self) -> list[Architecture]:
        """For each resolution the largest network with one sparsity everywhere that fits."""
        chosen: list[Architecture] = []
        for resolution in self.space.positions[0].values:
            for sparsity in sparsities(self.space):
                a = uniform(self.space, resolution, sparsity)
                if sparsity and self.fits(a):
                    chosen.append(a)
                    break
        return self._scored("uniform", chosen)

    def _dense(self) -> list[Architecture]:
        """Every scored dense network that fits, after a search of half the length among them."""
        space = self.space.restrict("sparsity", 0)
        try:
            self.evolve(space, max(1, self.settings.evaluations // 2), "dense")
        except InfeasibleError:
            return []
        return [a for a in self.scores.known if a in space and self.fits(a)]

    def _random(self) -> list[Architecture]:
        """As many random draws as there were scores to search with: the shipped draws that fit,
        and uniform draws from inside the budget up to the number of evaluations."""
        chosen = [a for a in self.scores.drawn if self.fits(a)]
        if (missing := self.settings.evaluations - len(chosen)) > 0:
            within = self.trellis.within(self.limit_ms)
            paths = within.sample(missing, np.random.default_rng(self.settings.seed + 1))
            chosen += [decode(self.space, path) for path in paths]
        return self._scored("random", chosen)

    def _scored(self, name: str, architectures: list[Architecture]) -> list[Architecture]:
        if new := [a for a in architectures if a not in self.scores.known]:
            with bar(name, len(new), "networks") as advance:
                for a in new:
                    self.scores([a], name)
                    advance(1)
        return architectures

    # --- the job ---

    def run(self) -> dict[str, Any]:
        settings, clock = self.settings, self.clock
        self._greet()
        with clock.part("search"):
            searcher, surrogate = self.evolve(self.space, settings.evaluations, "search")
            named = {
                "largest dense": self._scored("largest", [self.space.largest]),
                "best uniform sparsity": self._uniform(),
                "best dense": self._dense(),
                "best of random draws": self._random(),
            }
            self.expected = self.scores.expected(self.space)
            (largest,), *groups = (self.candidates(name, own) for name, own in named.items())
            fitting = [a for a in self.scores.known if a in self.space and self.fits(a)]
            ranked = self.candidates("candidate", fitting)
            costs, accuracies = zip(*((c.predicted_ms, c.expected_top1_percent) for c in ranked))
            front = [ranked[i] for i in pareto(costs, accuracies)]
        with clock.part("measure"):
            self._measure([largest, *ranked[:_MEASURED], *front, *(g[0] for g in groups if g)])
            winner = self._first_that_fits(ranked)
            if winner is None:
                raise InfeasibleError(
                    f"every candidate predicted within {settings.budget_ms:g} ms measured above it",
                    "measure the table again when the machine is quiet (vitnas profile --again), "
                    "or raise the budget",
                )
            winner = replace(winner, name="winner")
            best = [self._first_that_fits(group) for group in groups]
            chosen = [largest, *(c for c in best if c)]
        with clock.part("test"):
            self._test([winner, *chosen])
        with clock.part("export"):
            differences = self._export(winner)
        result = {
            "vitnas_version": version("vitnas"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **asdict(settings),
            "device_described": self.table.manifest["device"],
            "run_dir": str(self.folder),
            "classes": list(self.data.classes),
            "evaluations": len(searcher.scores) - len(self.scores.fitting(self.space)),
            "random_draws": len(named["best of random draws"]),
            "shipped_scores": len(self.scores.shipped),
            "proposals": searcher.proposals,
            "rejections": dict(searcher.rejections),
            "best_known_percent": self._best_shipped(),
            "surrogate_rank_correlation": rounded(surrogate.rank_correlation)
            if surrogate
            else None,
            "feasible": self.feasible,
            "limit_ms": round(self.limit_ms, 4),
            "verb": VERBS[self.table.measured_source],
            "winner": {
                **winner.summary(),
                "upper_ms": round(winner.upper_ms, 4),
                "interval_ms": [
                    round(ms, 4)
                    for ms in self.table.interval(winner.predicted_ms, settings.confidence)
                ],
                "chance_within_budget": round(
                    self.table.chance_within(winner.predicted_ms, settings.budget_ms), 4
                ),
            },
            "baselines": [c.summary() for c in chosen],
            "front": [c.summary() for c in front],
            "measured": [c.summary() for c in self.measured.values()],
            "table": asdict(self.table.calibration),
            "table_manifest": {k: v for k, v in self.table.manifest.items() if k != "calibration"},
            "supernet": {k: self.card[k] for k in ("space", "data", "fingerprint")},
            "exported": differences,
        }
        self._write(result)
        from nas.report import write_report

        with clock.part("report"):
            write_report([self.folder])
        result["seconds"] = clock.rounded()
        write_json(self.folder / "run.json", result)
        return result

    def _best_shipped(self) -> float | None:
        return max((s for a, s in self.scores.shipped.items() if self.fits(a)), default=None)

    def _greet(self) -> None:
        f, t = self.feasible, self.table.calibration
        console.print(
            f"[bold]{self.space.name}[/] on {self.table.manifest['device']['processor']}: "
            f"{f['architectures']:,} architectures, {f['fastest_ms']:.1f} to "
            f"{f['slowest_ms']:.1f} ms; {f['within_budget']:,} "
            f"within {self.settings.budget_ms:g} ms\n"
            f"table: {len(self.table.rows)} rows, error on {t.held_out} other networks "
            f"{t.mape_percent:.1f} % (p95 {t.p95_percent:.1f} %); "
            f"{len(self.scores.shipped):,} scores known"
        )

    def _measure(self, wanted: Sequence[Candidate]) -> None:
        """Fill `samples_ms` of these candidates, all in turn in one fresh process."""
        from nas.stopwatch import measure_fresh

        journal = Journal(self.folder / "measured.jsonl")
        samples = {r["id"]: r["samples_ms"] for r in journal.read()}
        missing = list(dict.fromkeys(c.architecture for c in wanted))
        missing = [a for a in missing if a.id not in samples]
        if missing:
            with bar("measure", _ROUNDS, "rounds") as advance:
                new = measure_fresh(
                    self.settings.device, self.space, missing, self.classes, _ROUNDS,
                    advance=advance,
                )  # fmt: skip
            for a, own in zip(missing, new):
                samples[a.id] = [round(x, 4) for x in own.samples]
                journal.append(
                    {"id": a.id, "architecture": a.to_json(), "samples_ms": samples[a.id]}
                )
        for candidate in wanted:
            candidate.samples_ms = samples[candidate.architecture.id]
            self.measured.setdefault(candidate.architecture, candidate)

    def _first_that_fits(self, ranked: Sequence[Candidate]) -> Candidate | None:
        """The best score whose measured upper limit is within the budget; measures on as needed."""
        budget = self.settings.budget_ms
        left = list(ranked)
        while left:
            # On a day when the machine is slower than its table, skip what cannot fit.
            ratio = median((c.measured_ms or 0) / c.predicted_ms for c in self.measured.values())
            left = [c for c in left if c.samples_ms or c.predicted_ms * ratio <= budget]
            some, left = left[:_MEASURED], left[_MEASURED:]
            for candidate in some:
                if not candidate.samples_ms:
                    self._measure(some)
                if candidate.upper_ms <= budget:
                    return candidate
        return None

    def _test(self, finalists: Sequence[Candidate]) -> None:
        """Accuracy on the test split, once, for what is reported."""
        journal = Journal(self.folder / "test.jsonl")
        known = {r["id"]: r["top1_percent"] for r in journal.read()}
        recorded = self.card.get("largest_test", {})
        if recorded.get("images") == self.settings.test_images:
            known.setdefault(self.space.largest.id, recorded["top1_percent"])
        evaluator = Evaluator(self.network, self.data, self.data.test, self.settings.test_images)
        with bar("test", len(finalists), "networks") as advance:
            for c in finalists:
                if c.architecture.id not in known:
                    known[c.architecture.id] = evaluator.top1_percent(c.architecture)
                    journal.append(
                        {
                            "id": c.architecture.id,
                            "top1_percent": known[c.architecture.id],
                            "images": evaluator.images,
                        }
                    )
                c.test_top1_percent = known[c.architecture.id]
                advance(1, f"{c.name} {c.test_top1_percent:.1f} %")

    def _export(self, winner: Candidate) -> dict[str, float]:
        import torch

        from nas.export import export_network, onnx_installed

        pixels, _ = self.data.test.batch([0], self.space.largest.resolution)
        images = resize(self.data.tensor(pixels), winner.architecture.resolution).contiguous()
        plain = self.scores.evaluator.subnet(winner.architecture)
        with torch.no_grad():
            expected = plain(images)
        formats = ["safetensors", "pt2", *(["onnx"] if onnx_installed() else [])]
        return export_network(plain, images, expected, self.folder / "winner", formats)

    def _write(self, result: dict[str, Any]) -> None:
        flat = ("id", "predicted_ms", "measured_ms", "measured_p95_ms", "search_top1_percent")
        write_csv(self.folder / "front.csv", [{k: c[k] for k in flat} for c in result["front"]])
        cloud = [
            {"predicted_ms": round(self.predict_ms(a), 4), "search_top1_percent": round(score, 4)}
            for a, score in self.scores.known.items()
        ]
        write_csv(self.folder / "cloud.csv", cloud)
        result["seconds"] = self.clock.rounded()
        write_json(self.folder / "run.json", result)


def sparsities(space: SearchSpace) -> list[int]:
    """The sparsities in percent that blocks of a space may have, densest first."""
    values = (value for position in space.positions for value in position.values)
    return sorted({value.sparsity for value in values if hasattr(value, "sparsity")})


def uniform(space: SearchSpace, resolution: int, sparsity: int) -> Architecture:
    """The largest architecture at a resolution with one sparsity in every block that can prune."""
    return space.restrict("resolution", resolution).restrict("sparsity", sparsity).largest
