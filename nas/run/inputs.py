"""What a run stands on, and its search: tables, limits, scores, and the searcher that is asked.

Everything that took time is kept in the run's directory, and a resumed run replays the same search
against these records, so that it ends as the undisturbed one would have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nas.data import Dataset, load_data
from nas.errors import RunError, TableError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import Scorer, Scoring, cargo, load_scorer
from nas.latency.library import find_table
from nas.latency.profiling import profile
from nas.latency.table import LatencyTable
from nas.layers.attention import explicit, fastest_in_windows, fused
from nas.progress import bar, console
from nas.records import Journal, fingerprint, read_json, write_json, write_text
from nas.run.limits import Limits
from nas.run.scores import Scores, best_rival
from nas.settings import Distribution, Settings
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.strategy.constraints import Region
from nas.strategy.loop import explore
from nas.strategy.searchers import Searcher, load_propose
from nas.training.supernet import load_supernet, supernet_folder
from nas.trellis.graph import Ints, decode, encode
from nas.versions import installed, layer_code, search_code
from nas.workers import Pool, open_pool
from nas.workers.ledger import Ledger, Record

Timed = Callable[[str], AbstractContextManager[None]]


class Job:
    """One run: opened by `opened`, which checks everything before anything is computed."""

    def __init__(
        self,
        settings: Settings,
        space: SearchSpace,
        folder: Path,
        distribution: Distribution,
        resume: bool,
        described: dict[str, dict[str, Any]],
    ) -> None:
        self.settings, self.folder = settings, folder
        self.distribution, self.resume, self.described = distribution, resume, described
        self.data: Dataset = load_data(settings.data)
        self.space = replace(space, task=self.data.task)
        self.source = (
            Path(settings.supernet) if settings.supernet else supernet_folder(space.name, self.data)
        )
        self.base = Path(settings.source_run) if settings.source_run else None
        self._held = ExitStack()  # the journal's lock, and workers

    # --- what it stands on ---

    def open(self, given: dict[str, Path], timed: Timed) -> None:
        """Tables, limits and weights; everything that may be wrong with a run is found here."""
        kept = self.resume and (self.folder / "imported.jsonl").exists()
        if self.base and not kept and not (self.base / "settings.json").exists():
            raise RunError(f"{self.base} is not a run", "give --from the directory of a run")
        with timed("table"):
            self.tables = {device: self._table(device, given) for device in self.settings.devices}
        self.table = self.tables[self.settings.device]
        self.limits = self.limits_of(self.space)
        self.feasible = [self.limits.feasible(wanted) for wanted in self.settings.budgets]
        self.regions = [self.limits.region(wanted) for wanted in self.settings.budgets]
        self.network, self.card = load_supernet(self.source, self.space.name, self.data)
        self.kernel = fastest_in_windows()
        self.imported = self._imported()
        shipped = [] if self.settings.fresh else self._shipped_scores()
        identity = self._checked(shipped)
        from nas.runtimes.host import keep_heap

        keep_heap()
        self.evaluator = Evaluator(
            self.network, self.data, self.data.search, self.settings.search_images,
            reuse=self.distribution.reuse_mb << 20,
        )  # fmt: skip
        pool = self._held.enter_context(self._pool())  # before anything is written: it may fail
        journal = Journal(self.folder / "candidates.jsonl")
        self._write_down(identity)
        self._held.enter_context(journal.locked())
        ledger = Ledger(pool, journal)
        self.scores = Scores(self.space, ledger, self.evaluator.images, shipped, self.imported)
        self.rng = np.random.default_rng(self.settings.seed)

    def close(self) -> None:
        self._held.close()

    def _pool(self) -> Pool:
        """Workers, each with the supernet and the search split; none are started before needed."""
        d, s = self.distribution, self.settings
        scoring = Scoring(
            self.space.name, self.space.task, self.evaluator.images,
            race_error=s.race_error, reuse_mb=d.reuse_mb, kernel=self.kernel,
            device="cuda" if d.gpus else "cpu",
        )  # fmt: skip
        if not d.workers and d.ray_address is None:
            return open_pool(lambda: Scorer(self.evaluator, s.race_error))
        console.print("starting workers (Ray, some seconds)", style="dim")
        return open_pool(
            load_scorer, (scoring, cargo(self.evaluator)), workers=d.workers,
            address=d.ray_address, gpus=d.gpus, timeout_s=d.timeout_s,
        )  # fmt: skip

    def _table(self, device: str, given: dict[str, Path]) -> LatencyTable:
        """The table of a device: of this run, given, kept or shipped, else measured now."""
        own, folder = self.folder / self._table_name(device), given.get(device)
        if folder is None and self.resume and (own / "manifest.toml").exists():
            folder = own
        if folder is None and self.base is not None:
            theirs = self.base / self._table_name(device)
            folder = theirs if (theirs / "manifest.toml").exists() else None
        if folder is None:
            table = profile(self.space, device)
        else:
            table = find_table(str(folder))
            if device in self.described:
                table.check(self.space, self.described[device])
            elif table.manifest["space"] != self.space.name:
                raise TableError(
                    f"the table {folder} is for the space {table.manifest['space']}, not "
                    f"{self.space.name}",
                    "give another --table",
                )
        if table.unit != "ms" or table.manifest["source"] == "emulated-time":
            raise TableError(
                f"a table of {table.manifest['source']} ({table.unit}) says nothing about a budget "
                "in time",
                "carry it to a device: vitnas profile --device DEVICE --from TABLE --rows 5",
            )
        return table

    def _table_name(self, device: str) -> str:
        if device == self.settings.device:
            return "table"
        return "table-" + "".join(c if c.isalnum() or c in "-." else "_" for c in device)

    def limits_of(self, space: SearchSpace) -> Limits:
        return Limits(self.settings, space, self.tables)

    def _identity(self) -> Record:
        weights = (self.source / "weights.safetensors").read_bytes()
        code = (layer_code(self.space.family), search_code(), installed("torch"))
        return {
            **self.settings.to_json(),
            "space_fingerprint": fingerprint(
                [[p.name, repr(p.values)] for p in self.space.positions]
            ),
            "data_fingerprint": self.data.fingerprint,
            "weights_fingerprint": fingerprint(weights),
            "table_fingerprint": {d: _predictions(table) for d, table in self.tables.items()},
            "code_fingerprint": fingerprint(*code),
        }

    def _checked(self, shipped: Sequence[Record]) -> Record:
        """What this run is; another run's directory is refused."""
        identity, file = self._identity(), self.folder / "settings.json"
        identity["scores_fingerprint"] = fingerprint([*shipped, *self.imported])
        if self.resume and file.exists():
            before = read_json(file)
            if differing := [k for k in identity if before.get(k) != identity[k]]:
                raise RunError(
                    f"{self.folder} was made with another {' and '.join(differing)}",
                    "resume with the same options, or start a new run without --resume",
                )
            # A timing: today's may differ.
            self.kernel = explicit if before["explicit_in_windows"] else fused
        self.network.use_in_windows(self.kernel)
        identity["explicit_in_windows"] = self.kernel is explicit
        return identity

    def _write_down(self, identity: Record) -> None:
        file = self.folder / "settings.json"
        if not file.exists():
            write_json(file, identity)  # from here on this is a run that can be resumed
        # A run stands by itself, whatever becomes of what it was started from.
        kept = self.folder / "imported.jsonl"
        if self.imported and not kept.exists():
            write_text(kept, "".join(json.dumps(record) + "\n" for record in self.imported))
        for device, table in self.tables.items():
            own = self.folder / self._table_name(device)
            if not (own / "manifest.toml").exists():
                table.save(own)

    def _imported(self) -> list[Record]:
        """Scores of the run that this one starts from; refused unless they would be the same."""
        if self.base is None:
            return []
        if self.resume and (kept := self.folder / "imported.jsonl").exists():
            return Journal(kept).read()
        before, identity = read_json(self.base / "settings.json"), self._identity()
        same = ("space", "data", "search_images", "space_fingerprint", "data_fingerprint",
                "weights_fingerprint")  # fmt: skip
        if differing := [k for k in same if before.get(k) != identity[k]]:
            raise RunError(
                f"{self.base} was made with another {' and '.join(differing)}",
                "give the same options, or search without --from",
            )
        found = [r for name in ("imported", "candidates") for r in
                 Journal(self.base / f"{name}.jsonl").read()]  # fmt: skip
        return sorted(found, key=lambda record: str(record["id"]))  # not in the order of workers

    def _shipped_scores(self) -> list[Record]:
        """The journal beside the weights, where it is of these weights, data and images."""
        if not (self.source / "scores.json").exists():
            return []
        head = read_json(self.source / "scores.json")
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
        return Journal(self.source / "scores.jsonl").read() if same else []

    # --- the search ---

    def predict_ms(self, architecture: Architecture, device: str = "") -> float:
        table = self.tables[device or self.settings.device]
        return table.predict(self.space, architecture)

    def prior(self, space: SearchSpace) -> list[Architecture]:
        """What was known of a space before this run: shipped scores and those of `--from`."""
        earlier = {r["id"] for r in self.imported}
        shipped = self.scores.shipped
        return [a for a in self.scores.known if a in space and (a in shipped or a.id in earlier)]

    def evolve(
        self, space: SearchSpace, regions: Sequence[Region], evaluations: int, origin: str
    ) -> Searcher:
        """Ask inside these regions of a space, score, tell; what is known of it takes part."""
        searcher = Searcher(
            load_propose(self.settings.searcher, **self._searcher_settings()),
            space.positions, regions, self.rng,
        )  # fmt: skip
        if known := [a for a in self.scores.known if a in space]:
            paths = np.array([encode(space, a) for a in known])
            noise = [self.scores.noise(a) for a in known]
            searcher.tell(paths, [self.scores.known[a] for a in known], noise)
        with bar(origin, evaluations, "candidates") as advance:
            explore(searcher, self._scored(space, origin, searcher, advance), evaluations,
                    self.settings.batch)  # fmt: skip
        return searcher

    def _searcher_settings(self) -> dict[str, Any]:
        s = self.settings
        if s.searcher != "evolution":
            return {}
        few = {"population": max(8, min(64, s.evaluations // 3))}
        return {"screened": 0, **few} if not s.surrogate else {}

    def _scored(self, space: SearchSpace, origin: str, searcher: Searcher, advance: Any) -> Any:
        """How the paths of this space are scored, and the bar told."""
        raced = [r for r in self.imported if "error" not in r]
        fits = searcher.regions[0].fits(searcher.known.paths)
        best = max(searcher.known.scores[fits], default=0.0)
        advance(0, f"best {best:.1f} %")

        def done(record: Record) -> None:
            nonlocal best
            if record.get("dropped") is False:
                best = max(best, record[self.scores.metric.key])
            advance(1, f"best {best:.1f} %")

        def score(paths: Ints) -> Any:
            architectures = [decode(space, path) for path in paths]
            rivals = {a: self._rival(a, raced) for a in architectures}
            scores = self.scores(architectures, origin, rivals.__getitem__, done)
            raced.extend(
                self.scores.ledger.records[a.id]
                for a in architectures
                if a.id in self.scores.ledger.records
            )
            return scores

        return score

    def _rival(self, architecture: Architecture, records: Sequence[Record]) -> str:
        """The outcomes of the best scored network that is no slower on any device."""
        if not self.settings.race_error:
            return ""
        own = [self.predict_ms(architecture, device) for device in self.tables]

        def no_slower(record: Record) -> bool:
            other = self.space.parse(record["architecture"])
            return all(self.predict_ms(other, d) <= ms for d, ms in zip(self.tables, own))

        return best_rival(records, self.scores.metric.key, no_slower)

    def fits(self, architecture: Architecture, region: Region) -> bool:
        return bool(region.fits(encode(self.space, architecture)[None])[0])


def _predictions(table: LatencyTable) -> str:
    """A fingerprint of what a table predicts of anything."""
    rows = {key: row.median for key, row in table.rows.items() if row.usable}
    return fingerprint(rows, asdict(table.calibration))


@contextmanager
def opened(job: Job, given: dict[str, Path], timed: Timed) -> Iterator[Job]:
    """The job, everything about it checked, until its workers are no longer needed."""
    try:
        job.open(given, timed)
        yield job
    finally:
        job.close()
