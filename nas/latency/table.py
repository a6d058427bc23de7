"""Latency tables: measured rows, calibrated predictions, and where they come from.

A table predicts `overhead + scale * sum(rows)`; overhead and scale are fitted on end-to-end runs of
random networks spread over the latency range, and the error is stated on *other* networks.
"""

from __future__ import annotations

import csv
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import platformdirs
import tomli_w
from numpy.typing import ArrayLike, NDArray

from nas.errors import TableError, UnknownNameError
from nas.progress import console
from nas.records import fingerprint, write_csv, write_text
from nas.runtimes import SOURCES, Runtime
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.tasks import load_task
from nas.trellis.graph import Graph
from nas.trellis.trellis import Trellis
from nas.versions import layer_code

SCHEMA = 2
PROTOCOL = 5  # raised when the way of measuring changes
UNUSABLE = ("failed", "fallback")


@dataclass(frozen=True)
class Row:
    """One layer's share of an inference, in the table's unit (milliseconds, nearly always).

    A row that could not be had has no numbers and a note that says why: `failed: ...`, or
    `fallback: OPERATOR, ...` where a part of it does not run on the device.
    """

    key: str
    median: float
    p20: float
    iqr: float
    cpu_median: float
    samples: int
    note: str = ""

    @classmethod
    def of(cls, key: str, samples: Iterable[Sequence[float]], note: str = "") -> Self:
        wall, cpu = _undisturbed(np.array(list(samples))).T
        p20, q1, median, q3 = np.percentile(wall, (20, 25, 50, 75)).round(5)
        return cls(
            key,
            float(median),
            float(p20),
            round(float(q3 - q1), 5),
            round(float(np.median(cpu)), 5),
            len(wall),
            note,
        )

    @classmethod
    def without_numbers(cls, key: str, note: str) -> Self:
        return cls(key, math.nan, math.nan, math.nan, math.nan, 0, note)

    @property
    def usable(self) -> bool:
        return not self.note.startswith(UNUSABLE)

    @property
    def kind(self) -> str:
        """The module of the layer."""
        return self.key.partition("(")[0]


def _undisturbed(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The samples (n, wall and processor time) during which the process was not held up.

    All of them if that is too few, or on a device whose processor time says nothing of it.
    """
    wall, cpu = samples.T
    kept = samples[wall <= _HELD_UP * cpu]
    return kept if len(kept) >= max(3, len(samples) / 4) else samples


_HELD_UP = 1.1


@dataclass(frozen=True)
class Reference:
    """One network run end to end, beside the sum of its rows."""

    architecture: str  # JSON
    use: str  # fit: the calibration was fitted on it; held-out: it was judged on it
    sum: float
    median: float
    p20: float
    iqr: float
    samples: int


@dataclass(frozen=True)
class Calibration:
    """`measured = overhead + scale * sum(rows)`, and the error of that on other networks.

    Where it earns it, the rows of a kind of layer have a `factor` of their own besides.
    """

    scale: float
    overhead: float
    fitted_on: int
    held_out: int
    mape_percent: float
    p95_percent: float
    bias_percent: float
    kendall_tau: float
    raw_mape_percent: float  # of the plain sum, before calibration
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fit(cls, sums: Sequence[float], measured: Sequence[float], fitted_on: int) -> Self:
        """Fit on the first `fitted_on` networks (least relative squares), judge on the others."""
        return cls.fit_kinds([{"": x} for x in sums], measured, fitted_on)

    @classmethod
    def fit_kinds(
        cls, sums: Sequence[Mapping[str, float]], measured: Sequence[float], fitted_on: int
    ) -> Self:
        """The same of sums by kind of layer; kinds get factors where that predicts better.

        Judged by leaving out one after the other of the networks that are fitted.
        """
        kinds = sorted({kind for own in sums for kind in own})
        parts = np.array([[own.get(kind, 0.0) for kind in kinds] for own in sums])
        y = np.array(measured)
        x = parts.sum(1)
        near, target = parts[:fitted_on], y[:fitted_on]
        best = min(_STIFFNESS, key=lambda stiff: _left_out(near, target, stiff))
        plain = _left_out(near, target, math.inf)
        if _left_out(near, target, best) > min(_EARNED * plain, plain - _WORTH):
            best = math.inf
        scale, overhead, factors = _solve(near, target, best)
        if scale <= 0:
            raise TableError(
                "whole networks did not take longer where their layers do: the machine is too busy",
                "measure again when it is quiet: vitnas profile --again",
            )
        predicted = (overhead + scale * parts @ factors)[fitted_on:]
        x, y = x[fitted_on:], y[fitted_on:]
        error = (predicted - y) / y * 100
        own = {} if best == math.inf else dict(zip(kinds, factors.round(4).tolist()))
        return cls(
            scale=round(float(scale), 6),
            overhead=round(float(overhead), 6),
            fitted_on=fitted_on,
            held_out=len(y),
            mape_percent=round(float(np.abs(error).mean()), 3),
            p95_percent=round(float(np.percentile(np.abs(error), 95)), 3),
            bias_percent=round(float(error.mean()), 3),
            kendall_tau=round(kendall_tau(predicted, y), 4),
            raw_mape_percent=round(float(np.abs((x - y) / y * 100).mean()), 3),
            factors=own,
        )


# How strongly the factors of kinds are held at 1: each deviation costs as an error of so many
# percent would, times this. Infinite: one scale for all.
_STIFFNESS = (0.03, 0.1, 0.3, 1.0, math.inf)
_EARNED, _WORTH = 0.9, 0.001  # factors must lower the left-out error to this share, by so much


def _solve(parts: Any, measured: Any, stiffness: float) -> tuple[float, float, Any]:
    """Scale, overhead and factors of kinds by least relative squares."""
    n, kinds = parts.shape
    ones = np.ones(n)
    a = np.stack([parts.sum(1), ones], 1) / measured[:, None]
    scale, overhead = np.linalg.lstsq(a, ones, rcond=None)[0]
    if stiffness == math.inf or kinds == 1:
        return float(scale), float(overhead), np.ones(kinds)
    # Unknown: overhead, and scale * (factor - 1) of each kind, held near 0 and scaled by its share.
    share = (parts / measured[:, None]).mean(0)
    a = np.concatenate([parts / measured[:, None], 1 / measured[:, None]], 1)
    rest = ones - scale * parts.sum(1) / measured - overhead / measured
    hold = np.diag([*(stiffness * np.maximum(share, 1e-6) ** 0.5), 0.0])
    change = np.linalg.lstsq(
        np.concatenate([a, hold]), np.concatenate([rest, np.zeros(kinds + 1)]), rcond=None
    )[0]
    return float(scale), float(overhead + change[-1]), 1 + change[:-1] / scale


def _left_out(parts: Any, measured: Any, stiffness: float) -> float:
    """Mean relative error on each network when fitted on the others."""
    errors = []
    for i in range(len(measured)):
        others = np.arange(len(measured)) != i
        scale, overhead, factors = _solve(parts[others], measured[others], stiffness)
        if (factors <= 0).any():
            return math.inf
        errors.append(abs(overhead + scale * parts[i] @ factors - measured[i]) / measured[i])
    return float(np.mean(errors))


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-a: the share of pairs in the same order minus those in the other."""
    x, y = np.asarray(a), np.asarray(b)
    i, j = np.triu_indices(len(x), 1)
    return float((np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])).mean())


@dataclass(frozen=True)
class LatencyTable:
    """Rows of one device and runtime, with the manifest that says where they come from."""

    rows: dict[str, Row]
    manifest: dict[str, Any]
    references: tuple[Reference, ...] = ()

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration(**self.manifest["calibration"])

    @property
    def unit(self) -> str:
        return str(self.manifest["unit"])

    @property
    def current(self) -> bool:
        """Whether it is of the layers as they are now."""
        family = str(self.manifest["space"]).partition(":")[0]
        return bool(self.manifest["layer_code"] == layer_code(family))

    @property
    def measured_source(self) -> str:
        """Where numbers of its device come from, be the table carried over from another or not."""
        return str(self.manifest.get("measured_source", self.manifest["source"]))

    def row(self, layer: Layer) -> Row:
        """The row of a layer; `TableError` if there is none."""
        row = self.rows.get(layer.key)
        if row is None:
            space, device = self.manifest["space"], self.manifest["device"]["name"]
            raise TableError(
                f"the table of {device} has no row {layer.key}",
                f"measure it: vitnas profile --device {device} --space {space} --classes N",
            )
        return row

    def cost(self, layer: Layer) -> float:
        """What a layer adds to a prediction: its row, calibrated; infinite if it cannot run."""
        row, c = self.row(layer), self.calibration
        return c.scale * c.factors.get(row.kind, 1.0) * row.median if row.usable else math.inf

    def predict(self, space: SearchSpace, architecture: Architecture) -> float:
        """What a network takes, in the table's unit; infinite where a layer of it cannot run."""
        layers = space.layers(architecture)
        return self.calibration.overhead + sum(map(self.cost, layers))

    @property
    def _sigma(self) -> float:
        """The relative spread of predictions: p95 of |error| taken as 1.96 standard deviations."""
        return max(self.calibration.p95_percent, 0.1) / 196

    def interval(self, predicted: float, confidence: float) -> tuple[float, float]:
        """Between what a network of this prediction measures, with this confidence."""
        center = predicted / (1 + self.calibration.bias_percent / 100)
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * self._sigma
        return center * (1 - reach), center * (1 + reach)

    def chance_within(self, predicted: float, budget: float) -> float:
        """The chance that a network of this prediction measures within the budget."""
        center = predicted / (1 + self.calibration.bias_percent / 100)
        return NormalDist(center, self._sigma * center).cdf(budget)

    def limit(self, budget: float, confidence: float) -> float:
        """The largest prediction whose interval of this confidence ends within the budget."""
        center = budget / (1 + NormalDist().inv_cdf((1 + confidence) / 2) * self._sigma)
        return center * (1 + self.calibration.bias_percent / 100)

    def trellis(self, space: SearchSpace) -> Trellis:
        """The trellis of what runs on the device, in calibrated milliseconds."""
        graph = Graph.of(space)
        unusable = {key for key, row in self.rows.items() if not row.usable}
        return Trellis(graph.without(unusable), self.cost, fixed=self.calibration.overhead)

    def sums(self, layers: Iterable[Layer]) -> dict[str, float]:
        """The plain sum of rows by kind of layer."""
        total: dict[str, float] = defaultdict(float)
        for layer in layers:
            row = self.row(layer)
            total[row.kind] += row.median
        return dict(total)

    def save(self, folder: Path) -> None:
        names = {name: f"{name}_{self.unit}" for name in ("median", "p20", "iqr", "cpu_median")}
        rows = [asdict(self.rows[key]) for key in sorted(self.rows)]
        write_csv(folder / "rows.csv", [_renamed(row, names) for row in rows])
        if self.references:
            runs = [_renamed(asdict(run), names | {"sum": f"sum_{self.unit}"}) for run in
                    self.references]  # fmt: skip
            write_csv(folder / "networks.csv", runs)
        write_text(folder / "manifest.toml", tomli_w.dumps(self.manifest))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a table; `TableError` names the line of a file that is no table."""
        try:
            manifest = _read_manifest(folder / "manifest.toml")
            unit = manifest["unit"]
            rows = _read(folder / "rows.csv", unit, _row)
            networks = folder / "networks.csv"
            references = _read(networks, unit, _reference) if networks.exists() else []
        except OSError as error:
            raise TableError(
                f"no latency table in {folder} ({error.strerror})", "measure one: vitnas profile"
            ) from None
        found: dict[str, Row] = {}
        for line, row in enumerate(rows, 2):
            if row.key in found:
                raise _damaged(folder / "rows.csv", f"line {line}: {row.key} is there twice")
            found[row.key] = row
        return cls(found, manifest, tuple(references))

    def check(self, space: SearchSpace, described: dict[str, Any]) -> None:
        """Refuse a table of another machine, runtime, layer code or space, or with bad rows."""
        wanted = {**described, "layer_code": layer_code(space.family)}
        found = {**self.manifest["device"], "layer_code": self.manifest["layer_code"]}
        wanted, found = ({k: v for k, v in d.items() if k != "name"} for d in (wanted, found))
        measure = f"vitnas profile --device {described['name']} --space {space.name}"
        if differing := [k for k in wanted if found.get(k) != wanted[k]]:
            shown = ", ".join(f"{k} {found.get(k)!r} is not {wanted[k]!r}" for k in differing[:2])
            raise TableError(
                f"this table is of another machine or version: {shown}", f"measure one: {measure}"
            )
        if self.manifest["space"] != space.name:
            raise TableError(
                f"this table is for the space {self.manifest['space']}, not {space.name}",
                f"measure one: {measure}",
            )
        if bad := [row for row in self.rows.values() if row.usable and not row.median > 0]:
            raise TableError(
                f"the row {bad[0].key} has a median of {bad[0].median:g}",
                "see what else is wrong with the table: vitnas audit FOLDER",
            )


def _renamed(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    cells = {names.get(k, k): v for k, v in record.items()}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()}


def _damaged(path: Path, why: str) -> TableError:
    return TableError(
        f"the latency table {path} is damaged ({why})",
        "restore it, or delete its folder and measure it again: vitnas profile",
    )


_KEYS = {
    "space": str, "source": str, "unit": str, "date": str, "layer_code": str,
    "device": dict, "calibration": dict,
}  # fmt: skip


def _read_manifest(path: Path) -> dict[str, Any]:
    text = path.read_text(errors="replace")
    try:
        manifest: dict[str, Any] = tomllib.loads(text)
        schema = manifest.get("schema", 1)
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            raise TableError(
                f"the latency table {path} has the schema {schema}, this version reads {SCHEMA}",
                "upgrade vitnas" if newer else "measure it again: vitnas profile",
            )
        for key, kind in _KEYS.items():
            if not isinstance(manifest.get(key), kind):
                raise ValueError(f"{key} is missing or not a {kind.__name__}")
        if manifest["source"] not in SOURCES:
            raise ValueError(f"unknown source {manifest['source']!r}")
        for key in ("name", "processor", "runtime"):
            if not isinstance(manifest["device"].get(key), str):
                raise ValueError(f"device.{key} is missing or no text")
        numbers = Calibration(**manifest["calibration"])
        _check_calibration(numbers, manifest["source"] == "external")
        if not math.isfinite(numbers.scale * numbers.overhead) or numbers.scale <= 0:
            raise ValueError("the calibration is not a positive scale and an overhead")
        return manifest
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None


def _check_calibration(numbers: Calibration, unknown: bool) -> None:
    """Every entry a finite number; errors may be unknown where no network was ever run."""
    for name, value in asdict(numbers).items():
        values = value.values() if isinstance(value, dict) else [value]
        for number in values:
            if not isinstance(number, int | float) or not (unknown or math.isfinite(number)):
                raise ValueError(f"calibration.{name} is {number!r}")


def _read(path: Path, unit: str, parse: Any) -> list[Any]:
    found = []
    with path.open(newline="", errors="replace") as file:
        for line, cells in enumerate(csv.DictReader(file), 2):
            try:
                cells = {str(k).removesuffix(f"_{unit}"): v for k, v in cells.items()}
                found.append(parse(cells))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                why = f"no column {error}" if isinstance(error, KeyError) else str(error)
                if isinstance(error, TypeError | AttributeError):
                    why = "it is cut off"
                raise _damaged(path, f"line {line}: {why}") from None
    return found


def _row(cells: dict[str, str]) -> Row:
    note = cells["note"]
    if not Row("", 0, 0, 0, 0, 0, note).usable:
        return Row.without_numbers(cells["key"], note)
    median, p20, iqr, cpu = (_number(cells[k]) for k in ("median", "p20", "iqr", "cpu_median"))
    return Row(cells["key"], median, p20, iqr, cpu, int(cells["samples"]), note)


def _reference(cells: dict[str, str]) -> Reference:
    total, median, p20, iqr = (_number(cells[name]) for name in ("sum", "median", "p20", "iqr"))
    samples = int(cells["samples"])
    return Reference(cells["architecture"], cells["use"], total, median, p20, iqr, samples)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of milliseconds")
    return value


def cache_folder() -> Path:
    return Path(platformdirs.user_cache_dir("vitnas")) / "tables"


def shipped_folder() -> Path:
    import latency_tables

    return Path(next(iter(latency_tables.__path__)))


def table_folder(space: SearchSpace, runtime: Runtime) -> Path:
    """Where the table of a device for a space is kept: below the user's cache directory."""
    code = layer_code(space.family)
    identity = fingerprint(
        runtime.describe(), code, runtime.lowering, PROTOCOL, space.task.to_json()
    )
    device = "".join(c if c.isalnum() or c in "-." else "_" for c in runtime.device)
    return cache_folder() / device / f"{space.name.replace(':', '-')}-{identity}"


def known_table(space: SearchSpace, runtime: Runtime) -> LatencyTable | None:
    """The table of this device if it has been measured here, or ships."""
    folder = table_folder(space, runtime)
    if (folder / "manifest.toml").exists():
        return LatencyTable.load(folder)
    described = runtime.describe()
    for manifest in sorted(
        shipped_folder().glob(f"*/{space.name.replace(':', '-')}/manifest.toml")
    ):
        table = LatencyTable.load(manifest.parent)
        try:
            table.check(space, described)
        except TableError:
            continue
        if load_task(table.manifest) == space.task:
            return table
    return None


def find_table(name: str) -> LatencyTable:
    """The table in a folder, or the one that `vitnas list tables` shows as DEVICE/SPACE."""
    if (Path(name) / "manifest.toml").exists():
        return LatencyTable.load(Path(name))
    tables = sorted((t for _, t in saved_tables()), key=lambda t: (t.current, t.manifest["date"]))
    known = {f"{t.manifest['device']['name']}/{t.manifest['space']}": t for t in tables}
    if name in known:
        return known[name]
    raise UnknownNameError("table", name, known, "(or give its folder)")


def saved_tables() -> Iterator[tuple[Path, LatencyTable]]:
    """Every finished table: those that ship, then those in the cache."""
    for root in (shipped_folder(), cache_folder()):
        for manifest in sorted(root.glob("*/*/manifest.toml")):
            try:
                yield manifest.parent, LatencyTable.load(manifest.parent)
            except TableError as error:
                console.print(f"left out: {error}", style="yellow", markup=False)
