"""The directory of a run, read back: by the report, by export and quantization, and by `--from`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import RunError, UsageError, VitnasError
from nas.families import load_space
from nas.latency.fit import Agreement
from nas.latency.table import LatencyTable
from nas.records import Journal, read_json, read_text
from nas.report.wording import command, ladder
from nas.run_record import Candidate, FineTuning, RunRecord
from nas.settings import Settings
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.tasks import load_task
from nas.typed import MismatchError, mapping

if TYPE_CHECKING:
    from nas.data import Dataset
    from nas.network.network import Network


def is_run(folder: Path) -> bool:
    """Whether a folder is the directory of a run, finished or not."""
    return (folder / "settings.json").exists()


def read_settings(file: Path) -> Settings:
    """The settings in a file `settings.json`; `RunError` if they are none."""
    data = read_json(file)
    try:
        return Settings.from_json(mapping(data, "it"))
    except (MismatchError, UsageError) as error:
        why = error.message if isinstance(error, UsageError) else error
        raise RunError(f"{file}: {why}", "restore it from a copy, or search again") from None


def known_scores(folder: Path, metric: str) -> list[dict[str, Any]]:
    """Every record that a run, finished or not, has of a score, its own and imported ones, by id.

    By id because the order in its journal is that in which workers finished.
    """
    from nas.evaluation.score_task import ScoreRecord

    found = [
        record
        for name in ("imported", "candidates")
        for record in Journal(folder / f"{name}.jsonl").read(ScoreRecord, metric)
    ]
    return sorted(found, key=lambda record: str(record["id"]))


def _numbers(file: Path, *columns: str) -> NDArray[np.float64]:
    """Two or more columns of a CSV file of numbers (n, columns); `RunError` names a bad line."""
    lines = csv.DictReader(read_text(file).splitlines())
    found: list[list[float]] = []
    try:
        for cells in lines:
            found.append([float(cells[column]) for column in columns])
            if not np.isfinite(found[-1]).all():
                raise ValueError(f"{found[-1]} are no numbers")
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        why = {KeyError: f"it has no column {error}", TypeError: "it is cut off"}
        raise RunError(
            f"{file}, line {lines.line_num}: {why.get(type(error), error)}",
            "restore it from a copy, or write it again: vitnas search with --resume",
        ) from None
    return np.array(found).reshape(-1, len(columns))


@dataclass(frozen=True)
class Scored:
    """A candidate in the order of scoring; a dropped one lost its race, on a part of the images."""

    predicted_ms: float
    percent: float
    dropped: bool


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A finished run as its directory holds it.

    `cloud` (n, 2) is the predicted latency in ms and the search accuracy in percent of everything
    that was scored.
    """

    folder: Path
    record: RunRecord
    settings: Settings
    journal: list[dict[str, Any]]
    cloud: NDArray[np.float64]

    @classmethod
    def load(cls, folder: Path) -> SavedRun:
        """Read a run; `RunError` for a folder that is none, or one that is not finished."""
        if not (folder / "run.json").exists():
            known = sorted(str(p.parent) for p in folder.parent.glob("*/run.json"))[:3]
            fix = f"finished runs here: {', '.join(known)}" if known else "make one: vitnas search"
            if is_run(folder):
                fix = f"finish it: vitnas search with its options and --out {folder} --resume"
            elif (folder / "supernet.json").exists():
                fix = f"it is a supernet: vitnas search --supernet {folder} makes a run of it"
            elif (folder / "loss.jsonl").exists():
                fix = f"finish it: vitnas train with its options and --out {folder} --resume"
            raise RunError(f"{folder} is not a finished run", fix)
        from nas.evaluation.score_task import ScoreRecord

        record = RunRecord.read(folder / "run.json")
        return cls(
            folder,
            record,
            read_settings(folder / "settings.json"),
            Journal(folder / "candidates.jsonl").read(ScoreRecord, record.metric.name),
            _numbers(folder / "cloud.csv", "predicted_ms", f"search_{record.metric.name}_percent"),
        )

    @cached_property
    def space(self) -> SearchSpace:
        """The space that was searched, with its task."""
        try:
            return load_space(self.record.space, load_task(self.record.task))
        except VitnasError as error:
            raise RunError(f"{self.folder / 'run.json'}: {error.message}", error.fix) from None

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table of the device that was searched on."""
        return LatencyTable.load(self.folder / "table")

    @cached_property
    def agreement(self) -> Agreement:
        """How the table agrees with what this run measured, which early versions did not say."""
        return self.table.agreement(self.record.times, self.record.confidence)

    @cached_property
    def finetuned(self) -> FineTuning | None:
        """How networks of this run were trained further; None where they were not."""
        return FineTuning.read(self.folder / "finetuned.json", self.record.metric.name)

    @property
    def command(self) -> str:
        """The command line that makes the same run."""
        return command(self.settings)

    def command_from(self, budget_ms: float) -> str:
        """The command line of a run that answers another budget from the scores of this one."""
        budgets = {**self.record.by_budget[0].budgets, self.record.device: budget_ms}
        again = replace(
            self.settings,
            budgets=(budgets,),
            source_run=self.record.run_dir,
            evaluations=Settings.evaluations,
        )
        return command(again)

    @cached_property
    def archive(self) -> NDArray[np.float64]:
        """The best network known by latency (n, 2): predicted ms and expected accuracy in percent.

        It is empty for a run of an early version, which wrote no `archive.csv`.
        """
        if not (path := self.folder / "archive.csv").exists():
            return np.zeros((0, 2))
        return _numbers(path, "predicted_ms", f"expected_{self.record.metric.name}_percent")

    @cached_property
    def scored(self) -> list[Scored]:
        """The candidates of the search that have a score, in the order of scoring."""
        own = [r for r in self.journal if r["origin"] == "search" and "error" not in r]
        key = f"{self.record.metric.name}_percent"
        return [
            Scored(
                self.table.predict(self.space, self.space.parse(r["architecture"])),
                r[key],
                bool(r.get("dropped")),
            )
            for r in own
        ]

    def ladder(self) -> list[tuple[float, float]]:
        """Round budgets in ms, each with the expected accuracy of the best network known for it."""
        confidence, tail = self.record.confidence, self.table.tail(self.record.quantile)
        return ladder(self.archive.tolist(), lambda ms: self.table.limit(ms / tail, confidence))

    def architecture(self, candidate: Candidate) -> Architecture:
        """The architecture of a network of this run; `RunError` if the space has none such."""
        try:
            return self.space.parse(json.dumps(candidate.architecture))
        except UsageError as error:
            file = self.folder / "run.json"
            raise RunError(f"{file}, {candidate.name}: {error.message}", error.fix) from None

    def data(self) -> Dataset:
        """The data set of this run, with pictures normalised as its networks know them.

        `DataError` or `UsageError` where it can no longer be loaded, e.g. because it has moved.
        """
        from nas.data import load_data
        from nas.deployment import CARD, Card

        data, folder = load_data(self.record.data), self.folder / "winner"
        pictures = Card.read(folder).pictures if (folder / CARD).exists() else None
        return replace(data, mean=pictures.mean, std=pictures.std) if pictures else data

    def winner(self) -> Network:
        """The winner of the first budget with its weights; `WeightsError` if they are not its."""
        from nas.deployment import load_network

        architecture = self.architecture(self.record.answers[0].winner)
        return load_network(self.folder / "winner", self.space, architecture)
