"""What a run says of itself: the content of `run.json`, with types.

The command line, the report, and whoever calls `nas.search` read the same `RunRecord`. Its fields
are the documented keys of `run.json` in their order (docs/runs.md). What stands in the first answer
stands beside the answers too, and the task adds keys of its own, such as `classes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from nas.errors import RunError
from nas.latency.fit import Agreement, Calibration
from nas.records import read_json
from nas.settings import Settings
from nas.strategy.quality import Quality
from nas.typed import MismatchError, decode, encode, mapping


def _percent(of: str, **bounds: float) -> Any:
    """A percentage whose key names the metric of the task, e.g. `search_top1_percent`."""
    return field(metadata={"key": f"{of}_{{}}_percent", **bounds})


def _score(of: str) -> Any:
    """A percentage that was scored: from 0 to 100."""
    return _percent(of, least=0, most=100)


def _by_class(of: str) -> Any:
    """Scores of classes, where the metric has such; None for a class that does not occur."""
    return field(default=(), metadata={"key": f"{of}_{{}}_by_class", "only_if_any": True})


@dataclass(frozen=True)
class MetricName:
    """The metric of a run: as keys name it, as a sentence does, and as a column is headed."""

    name: str = "top1"
    label: str = "top-1 accuracy"
    heading: str = "top-1"


@dataclass(frozen=True)
class OtherDevice:
    """A network on a further device: its budget there, its prediction, and what was measured.

    `measured_ms` is None where the device could not be reached; `verb` is that of `RunRecord`, and
    `measured_quantile_ms` that of a `Candidate`.
    """

    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    verb: str
    measured_quantile_ms: float | None = field(default=None, metadata={"only_if_any": True})


@dataclass(frozen=True)
class Candidate:
    """A network of a run, by name (`candidate`, or the baseline it is) and id.

    `architecture` holds its choices. Of the accuracies the first is that on the search split, the
    second the same with its noise taken out, the third that on the test split (None: not tested).
    `final_percent` is that on the samples of the finals (None: it was no finalist).
    `measured_quantile_ms` is the quantile of single inferences that the budget holds for, where it
    is not the median. `test_by_class` are the accuracies of the classes on the test split.
    `difference_error_points` is the standard error of the difference of a baseline's accuracy on
    the test split and the winner's, which saw the same samples (None: not known by sample).
    """

    name: str
    id: str
    architecture: dict[str, Any]
    predicted_ms: float
    measured_ms: float | None
    measured_p95_ms: float | None
    search_percent: float = _score("search")
    expected_percent: float = _percent("expected")
    test_percent: float | None = _score("test")
    other_devices: dict[str, OtherDevice] = field(
        default_factory=dict, metadata={"only_if_any": True}
    )
    measured_quantile_ms: float | None = field(default=None, metadata={"only_if_any": True})
    test_by_class: tuple[float | None, ...] = _by_class("test")
    final_percent: float | None = field(
        default=None,
        metadata={"key": "final_{}_percent", "least": 0, "most": 100, "only_if_any": True},
    )
    difference_error_points: float | None = field(default=None, metadata={"only_if_any": True})

    @property
    def tail_ms(self) -> float | None:
        """The quantile of single inferences to show: the one asked for, or the 95th percentile."""
        return self.measured_quantile_ms or self.measured_p95_ms


@dataclass(frozen=True, kw_only=True)
class Winner(Candidate):
    """The network that answers a budget, with what the table says of its latency.

    `upper_ms` is the upper 95 % confidence limit of what the budget holds for: the measured median,
    or the measured quantile; `chance_within_budget` is the share of the timed inferences that were
    within the budget (in earlier runs: what the table said of it). `test_error_points` is the
    standard error of the accuracy on the test split.
    """

    measured_ms: float
    measured_p95_ms: float
    test_percent: float = _score("test")
    upper_ms: float
    interval_ms: tuple[float, float]
    chance_within_budget: float
    test_error_points: float | None = field(default=None, metadata={"only_if_any": True})


@dataclass(frozen=True)
class Feasible:
    """The range of a space in predicted milliseconds, and how many architectures it has and fit."""

    fastest_ms: float
    slowest_ms: float
    architectures: int
    within_budget: int


@dataclass(frozen=True)
class Exported:
    """The folder of a winner in the run's directory, and how far each file is from the supernet.

    `differences` hold the largest difference of an output, by file.
    """

    folder: str = "winner"
    differences: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a run answers to one budget.

    `budgets` are milliseconds by device, the first device the one that is searched on; a prediction
    of at most `limit_ms` measures within the budget with the confidence asked for.
    `best_known_percent` is the best score within the budget before the run began, `random_draws`
    the number of networks of which the random baseline is the best (0: none, or not known), and
    `above_dense_error_points` is `difference_error_points` of the best dense network.
    """

    budget_ms: float
    budgets: dict[str, float]
    limit_ms: float
    feasible: Feasible
    best_known_percent: float | None
    winner: Winner
    baselines: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    quality: Quality
    exported: Exported
    random_draws: int = field(default=0, metadata={"only_if_any": True})
    above_dense_error_points: float | None = None

    def baseline(self, name: str) -> Candidate | None:
        """The baseline of this name; None where no such network fits."""
        return next((c for c in self.baselines if c.name == name), None)


@dataclass(frozen=True)
class SupernetName:
    """The supernet whose weights were inherited: its space, its data, and its fingerprint."""

    space: str
    data: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class RunRecord(dict[str, Any]):
    """A finished run. As a dict it is its own JSON form: `record["winner"]["measured_ms"]`.

    Defaults stand for what an early version did not record. `answers` are in the order of the
    budgets asked for. `task` holds the keys of the task, which `nas.tasks.load_task` reads.
    `reference_images` are the labelled training samples that a score of features compares with.
    `table` is the error on networks of its own campaign, `agreement` that on those `measured` now.
    """

    vitnas_version: str
    date: str
    device: str
    space: str
    data: str
    confidence: float = Settings.confidence
    quantile: float = Settings.quantile
    supernet: SupernetName
    source_run: str = Settings.source_run
    evaluations: int
    search_images: int
    final_images: int = field(default=0, metadata={"only_if_any": True})
    test_images: int
    searcher: str = Settings.searcher
    sampler: str = Settings.sampler
    batch: int = Settings.batch
    surrogate: bool = Settings.surrogate
    race_error: float = Settings.race_error
    max_params: float | None = Settings.max_params
    max_macs: float | None = Settings.max_macs
    min_params: float | None = field(default=Settings.min_params, metadata={"only_if_any": True})
    min_macs: float | None = field(default=Settings.min_macs, metadata={"only_if_any": True})
    fresh: bool = Settings.fresh
    seed: int = Settings.seed
    device_described: dict[str, Any]
    run_dir: str
    task: dict[str, Any]
    metric: MetricName = MetricName()
    reference_images: int | None = field(default=None, metadata={"only_if_any": True})
    set_aside: int = 0
    dropped: int = 0
    dense_evaluations: int | None = None
    random_draws: int
    shipped_scores: int
    imported_scores: int = 0
    dense_known: int | None = None
    proposals: int
    rejections: dict[str, int]
    surrogate_rank_correlation: float | None
    hypervolume: tuple[float, ...] = ()
    verb: str = "measured"
    answers: tuple[Answer, ...]
    measured: tuple[Candidate, ...]
    table: Calibration
    agreement: Agreement | None = field(default=None, metadata={"only_if_any": True})
    table_manifest: dict[str, Any]
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        self.update(self.to_json())

    @property
    def times(self) -> list[tuple[float, float]]:
        """What was predicted and what was measured of each network, in ms."""
        return [(c.predicted_ms, c.measured_ms) for c in self.measured if c.measured_ms is not None]

    @property
    def tail(self) -> str:
        """What `Candidate.tail_ms` is called, e.g. `p95`."""
        asked = self.quantile != Settings.quantile
        return f"p{100 * self.quantile:g}" if asked else "p95"

    @property
    def by_budget(self) -> list[Answer]:
        """The answers, that of the lowest budget first."""
        return sorted(self.answers, key=lambda answer: answer.budget_ms)

    def to_json(self) -> dict[str, Any]:
        """The content of `run.json`, its keys in the documented order."""
        first, *_ = answers = encode(self.answers, self.metric.name)
        found: dict[str, Any] = {}
        for key, value in encode(self, self.metric.name).items():
            if key == "device":
                found["budget_ms"] = first["budget_ms"]
                found |= {"device": value, "budgets": first["budgets"]}
            elif key == "task":
                found |= value
            elif key == "answers":
                found |= first | {"answers": answers}
            else:
                found[key] = value
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any], file: str | Path = "run.json") -> Self:
        """The record that `to_json`, or an earlier version, wrote; `RunError` if it is none."""
        version = data.get("vitnas_version", "of unknown version")
        try:
            metric = decode(MetricName, data.get("metric", {}), "metric", "").name
            recorded = data.get("answers") or [data]
            if not isinstance(recorded, list):
                raise MismatchError(f"answers must be a list, got {recorded!r:.60}")
            answers = [_whole(answer, data) for answer in recorded]
            known = {f.name for f in (*fields(cls), *fields(Answer))} - {"task"}
            task = {key: value for key, value in data.items() if key not in known}
            found: Self = decode(cls, {**data, "answers": answers, "task": task}, "", metric)
        except MismatchError as error:
            raise RunError(
                f"{file}, written by vitnas {version}: {error}",
                "restore it, search again, or read the run with the version that wrote it",
            ) from None
        return found

    @classmethod
    def read(cls, file: Path) -> Self:
        """The record in a file `run.json`."""
        data = read_json(file)
        if not isinstance(data, dict):
            raise RunError(f"{file} holds no object", "restore it from a copy, or search again")
        return cls.from_json(data, file)


def _whole(answer: Any, run: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with what version 0.1 did not record, or recorded once for a run."""
    answer = mapping(answer, "answers")
    feasible, exported = (mapping(answer.get(key, {}), key) for key in ("feasible", "exported"))
    every, fitting = (feasible.get(key) for key in ("architectures", "within_budget"))
    counts = {"architectures": every, "within_budget": fitting}
    share = {"share_within_budget": 0.0}
    if isinstance(every, int) and isinstance(fitting, int) and 0 <= fitting <= every and every:
        share = {"share_within_budget": fitting / every}
    is_first = answer.get("budget_ms") == run.get("budget_ms")  # whose draws alone were counted
    unknown = dict.fromkeys(("bound", "gap", "error", "gain_10_percent"))
    return {
        "budgets": {str(run.get("device", "")): answer.get("budget_ms")},
        "limit_ms": answer.get("budget_ms"),
        "best_known_percent": None,
        "random_draws": run.get("random_draws", 0) if is_first else 0,
        **answer,
        "exported": exported if "folder" in exported else {"differences": exported},
        "quality": answer.get("quality") or {**unknown, **counts, **share},
    }


@dataclass(frozen=True)
class FineTuned:
    """A network of a run after its own training: accuracies as inherited, and now.

    `folder` is where it was exported to in the run's directory, empty for a baseline;
    `measured_ms` the median on the device of the run, None where that could not be measured;
    `test_by_class` is that of a `Candidate`.
    """

    budget_ms: float
    name: str
    id: str
    folder: str
    measured_ms: float | None
    inherited_search_percent: float = _score("inherited_search")
    inherited_test_percent: float | None = _score("inherited_test")
    search_percent: float = _score("search")
    test_percent: float = _score("test")
    test_error_points: float | None = None
    test_by_class: tuple[float | None, ...] = _by_class("test")


@dataclass(frozen=True)
class FineTuning:
    """The content of `finetuned.json`: how networks of a run were trained further, and the result.

    `images` is the number of training images of each network.
    """

    images: int
    learning_rate: float
    seed: int
    seconds: float
    networks: tuple[FineTuned, ...]

    def to_json(self, metric: str) -> dict[str, Any]:
        """The content of the file, for the metric of this name."""
        found: dict[str, Any] = encode(self, metric)
        return found

    @classmethod
    def read(cls, file: Path, metric: str) -> Self | None:
        """What a file holds, None where there is none; `RunError` if it is damaged."""
        if not file.exists():
            return None
        try:
            return decode(cls, read_json(file), "it", metric)
        except MismatchError as error:
            raise RunError(f"{file}: {error}", "remove it, and fine-tune again") from None
