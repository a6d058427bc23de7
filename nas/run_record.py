"""What a run says of itself: the content of `run.json`, with types.

The command line, the report, and whoever calls `nas.search` read the same `RunRecord`. Its fields
are the documented keys of `run.json` in their order (docs/runs.md). What stands in the first answer
stands beside the answers too, and the task adds keys of its own, such as `classes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from nas.errors import RunError
from nas.latency.fit import Calibration
from nas.records import read_json
from nas.settings import Settings
from nas.strategy.quality import Quality


def _percent(of: str) -> Any:
    """A percentage whose key names the metric of the task, e.g. `search_top1_percent`."""
    return field(metadata={"key": f"{of}_{{}}_percent"})


@dataclass(frozen=True)
class MetricName:
    """The metric of the task: as keys name it, as a sentence does, and as a column is headed."""

    name: str = "top1"
    label: str = "top-1 accuracy"
    heading: str = "top-1"


@dataclass(frozen=True)
class OtherDevice:
    """A network on a further device: its budget there, its prediction, and what was measured.

    `measured_ms` is None where the device could not be reached; `verb` is that of `RunRecord`.
    """

    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    verb: str


@dataclass(frozen=True)
class Candidate:
    """A network of a run, by name (`candidate`, or the baseline it is) and id.

    `architecture` holds its choices. Of the accuracies the first is that on the search split, the
    second the same with its noise taken out, the third that on the test split (None: not tested).
    """

    name: str
    id: str
    architecture: dict[str, Any]
    predicted_ms: float
    measured_ms: float | None
    measured_p95_ms: float | None
    search_percent: float = _percent("search")
    expected_percent: float = _percent("expected")
    test_percent: float | None = _percent("test")
    other_devices: dict[str, OtherDevice] = field(
        default_factory=dict, metadata={"only_if_any": True}
    )


@dataclass(frozen=True, kw_only=True)
class Winner(Candidate):
    """The network that answers a budget, with what the table says of its latency.

    `upper_ms` is the upper 95 % confidence limit of the measured median, `test_error_points` the
    standard error of the accuracy on the test split.
    """

    measured_ms: float
    measured_p95_ms: float
    test_percent: float = _percent("test")
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
    `best_known_percent` is the best score within the budget before the run began.
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
    """

    vitnas_version: str
    date: str
    device: str
    space: str
    data: str
    confidence: float = Settings.confidence
    supernet: SupernetName
    source_run: str = Settings.source_run
    evaluations: int
    search_images: int
    test_images: int
    searcher: str = Settings.searcher
    sampler: str = Settings.sampler
    batch: int = Settings.batch
    surrogate: bool = Settings.surrogate
    race_error: float = Settings.race_error
    max_params: float | None = Settings.max_params
    max_macs: float | None = Settings.max_macs
    fresh: bool = Settings.fresh
    seed: int = Settings.seed
    device_described: dict[str, Any]
    run_dir: str
    task: dict[str, Any]
    metric: MetricName = MetricName()
    set_aside: int = 0
    dropped: int = 0
    random_draws: int
    shipped_scores: int
    imported_scores: int = 0
    proposals: int
    rejections: dict[str, int]
    surrogate_rank_correlation: float | None
    hypervolume: tuple[float, ...] = ()
    verb: str = "measured"
    answers: tuple[Answer, ...]
    measured: tuple[Candidate, ...]
    table: Calibration
    table_manifest: dict[str, Any]
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        self.update(self.to_json())

    @property
    def by_budget(self) -> list[Answer]:
        """The answers, that of the lowest budget first."""
        return sorted(self.answers, key=lambda answer: answer.budget_ms)

    def to_json(self) -> dict[str, Any]:
        """The content of `run.json`, its keys in the documented order."""
        first, *_ = answers = _encode(self.answers, self.metric.name)
        found: dict[str, Any] = {}
        for key, value in _encode(self, self.metric.name).items():
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
            metric = _decode(MetricName, data.get("metric", {}), "metric", "").name
            answers = [_whole(answer, data) for answer in data.get("answers") or [data]]
            known = {f.name for f in (*fields(cls), *fields(Answer))} - {"task"}
            task = {key: value for key, value in data.items() if key not in known}
            found: Self = _decode(cls, {**data, "answers": answers, "task": task}, "", metric)
        except _MismatchError as error:
            raise RunError(
                f"{file}, written by vitnas {version}: {error}",
                f"search again, or read the run with vitnas {version}",
            ) from None
        return found

    @classmethod
    def read(cls, file: Path) -> Self:
        """The record in a file `run.json`."""
        data = read_json(file)
        return cls.from_json(data if isinstance(data, dict) else {}, file)


def _whole(answer: Any, run: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with what version 0.1 did not record, or recorded once for a run."""
    answer = _mapping(answer, "answers")
    feasible, exported = (_mapping(answer.get(key, {}), key) for key in ("feasible", "exported"))
    every, fitting = feasible.get("architectures"), feasible.get("within_budget")
    counts = {"architectures": every, "within_budget": fitting}
    share = {"share_within_budget": fitting / every if every and fitting else 0.0}
    unknown = dict.fromkeys(("bound", "gap", "error", "gain_10_percent"))
    return {
        "budgets": {run.get("device", ""): answer.get("budget_ms")},
        "limit_ms": answer.get("budget_ms"),
        "best_known_percent": None,
        **answer,
        "exported": exported if "folder" in exported else {"differences": exported},
        "quality": answer.get("quality") or {**unknown, **counts, **share},
    }


# --- JSON of frozen dataclasses ---


class _MismatchError(Exception):
    """A value in a file that does not match the types."""


def _encode(value: Any, metric: str) -> Any:
    if is_dataclass(value):
        return {
            _key(f, metric): _encode(own, metric)
            for f in fields(value)
            if (own := getattr(value, f.name)) or not f.metadata.get("only_if_any")
        }
    if isinstance(value, dict):
        return {key: _encode(own, metric) for key, own in value.items()}
    return [_encode(own, metric) for own in value] if isinstance(value, tuple) else value


def _decode(kind: Any, data: Any, where: str, metric: str) -> Any:
    """A value of this type from its JSON form; `where` it stands is for the error."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        (own,) = (a for a in arguments if a is not NoneType)
        return None if data is None else _decode(own, data, where, metric)
    if is_dataclass(kind):
        return _decode_dataclass(kind, _mapping(data, where), where, metric)
    if origin is tuple:
        _require(isinstance(data, list), where, "a list", data)
        return tuple(_decode(arguments[0], x, f"{where}[{i}]", metric) for i, x in enumerate(data))
    if origin in (dict, Mapping):
        items = _mapping(data, where).items()
        return {key: _decode(arguments[1], x, f"{where}.{key}", metric) for key, x in items}
    if kind is float:
        real = isinstance(data, int | float) and not isinstance(data, bool)
        _require(real, where, "a number", data)
    elif kind is not Any:
        _require(type(data) is kind, where, f"of the type {kind.__name__}", data)
    return data


def _decode_dataclass(kind: Any, data: Mapping[str, Any], where: str, metric: str) -> Any:
    types, found = _types(kind), {}
    for f in fields(kind):
        key = _key(f, metric)
        place = f"{where}.{key}" if where else key
        if key in data:
            found[f.name] = _decode(types[f.name], data[key], place, metric)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise _MismatchError(f"the key {place} is missing")
    return kind(**found)


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _key(f: Field[Any], metric: str) -> str:
    return str(f.metadata.get("key", f.name)).format(metric)


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    _require(isinstance(data, dict), where, "an object", data)
    return data  # type: ignore[no-any-return]


def _require(holds: bool, where: str, what: str, data: Any) -> None:
    if not holds:
        raise _MismatchError(f"{where} must be {what}, got {data!r:.60}")
