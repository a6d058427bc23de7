"""Latency tables: measured rows, calibrated predictions, and where they come from.

A table predicts `overhead + scale * sum(rows)`; overhead and scale are fitted on end-to-end runs of
random networks spread over the latency range, and the error is stated on *other* networks.
"""

from __future__ import annotations

import csv
import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
import tomli_w
from numpy.typing import ArrayLike

from nas.errors import InfeasibleError, TableError, UnknownNameError
from nas.family import Layer, SearchSpace
from nas.progress import bar
from nas.records import Journal, fingerprint, write_csv, write_text
from nas.space import Architecture
from nas.trellis import Graph, Trellis, decode

if TYPE_CHECKING:
    import torch

    from nas.elastic import Network

ROUNDS = 8
_HELD_WEIGHTS = 500_000_000  # parameters of networks that stay built between rounds: 2 GB
FIT, HELD_OUT = 12, 24  # networks for the calibration, and for its error
PROTOCOL = 3  # raised when the way of measuring changes


@dataclass(frozen=True)
class Row:
    """One measured layer, in milliseconds of one inference."""

    key: str
    median_ms: float
    p20_ms: float
    iqr_ms: float
    cpu_median_ms: float
    samples: int

    @classmethod
    def of(cls, key: str, samples: Iterable[Sequence[float]]) -> Row:
        wall, cpu = np.array(list(samples)).T
        p20, q1, median, q3 = np.percentile(wall, (20, 25, 50, 75)).round(5)
        return cls(
            key,
            float(median),
            float(p20),
            round(float(q3 - q1), 5),
            round(float(np.median(cpu)), 5),
            len(wall),
        )


@dataclass(frozen=True)
class Calibration:
    """`measured = overhead_ms + scale * sum(rows)`, and the error of that on other networks."""

    scale: float
    overhead_ms: float
    fitted_on: int
    held_out: int
    mape_percent: float
    p95_percent: float
    bias_percent: float
    kendall_tau: float
    raw_mape_percent: float  # of the plain sum, before calibration

    @classmethod
    def fit(
        cls, sums_ms: Sequence[float], measured_ms: Sequence[float], fitted_on: int
    ) -> Calibration:
        """Fit on the first `fitted_on` networks (least relative squares), judge on the others."""
        x, y = np.array(sums_ms), np.array(measured_ms)
        a = np.stack([x, np.ones_like(x)], 1)[:fitted_on] / y[:fitted_on, None]
        scale, overhead = np.linalg.lstsq(a, np.ones(fitted_on), rcond=None)[0]
        if scale <= 0:
            raise TableError(
                "whole networks did not take longer where their layers do: the machine is too busy",
                "measure again when it is quiet: vitnas profile --again",
            )
        x, y = x[fitted_on:], y[fitted_on:]
        error = (overhead + scale * x - y) / y * 100
        return cls(
            scale=round(float(scale), 6),
            overhead_ms=round(float(overhead), 6),
            fitted_on=fitted_on,
            held_out=len(y),
            mape_percent=round(float(np.abs(error).mean()), 3),
            p95_percent=round(float(np.percentile(np.abs(error), 95)), 3),
            bias_percent=round(float(error.mean()), 3),
            kendall_tau=round(kendall_tau(overhead + scale * x, y), 4),
            raw_mape_percent=round(float(np.abs((x - y) / y * 100).mean()), 3),
        )


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

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration(**self.manifest["calibration"])

    def row_ms(self, layer: Layer) -> float:
        """The measured milliseconds of a layer; `TableError` if it was not measured."""
        row = self.rows.get(layer.key)
        if row is None:
            raise TableError(
                f"the table of {self.manifest['device']['name']} has no row {layer.key}",
                f"measure it: vitnas profile --space {self.manifest['space']} --classes N",
            )
        return row.median_ms

    def cost_ms(self, layer: Layer) -> float:
        """What a layer adds to a prediction: its row, calibrated."""
        return self.calibration.scale * self.row_ms(layer)

    def predict_ms(self, space: SearchSpace, architecture: Architecture, classes: int) -> float:
        layers = space.layers(architecture, classes)
        return self.calibration.overhead_ms + sum(map(self.cost_ms, layers))

    @property
    def _sigma(self) -> float:
        """The relative spread of predictions: p95 of |error| taken as 1.96 standard deviations."""
        return max(self.calibration.p95_percent, 0.1) / 196

    def chance_within(self, predicted_ms: float, budget_ms: float) -> float:
        """The chance that a network of this prediction measures within the budget."""
        center = predicted_ms / (1 + self.calibration.bias_percent / 100)
        return NormalDist(center, self._sigma * center).cdf(budget_ms)

    def limit_ms(self, budget_ms: float, confidence: float) -> float:
        """The largest prediction that measures within the budget with this confidence."""
        center = budget_ms / (1 + NormalDist().inv_cdf(confidence) * self._sigma)
        return center * (1 + self.calibration.bias_percent / 100)

    def trellis(self, space: SearchSpace, classes: int) -> Trellis:
        """The trellis of a space in calibrated milliseconds."""
        graph = Graph.of(space, classes)
        return Trellis(graph, self.cost_ms, fixed=self.calibration.overhead_ms)

    def save(self, folder: Path) -> None:
        write_csv(folder / "rows.csv", [asdict(self.rows[key]) for key in sorted(self.rows)])
        write_text(folder / "manifest.toml", tomli_w.dumps(self.manifest))

    @classmethod
    def load(cls, folder: Path) -> LatencyTable:
        import tomllib

        try:
            manifest = tomllib.loads((folder / "manifest.toml").read_text())
            with (folder / "rows.csv").open(newline="") as file:
                kinds = (str, float, float, float, float, int)
                rows = [
                    Row(*(k(v) for k, v in zip(kinds, r.values()))) for r in csv.DictReader(file)
                ]
            Calibration(**manifest["calibration"])
            return cls({row.key: row for row in rows}, manifest)
        except OSError as error:
            raise TableError(
                f"no latency table in {folder} ({error.strerror})", "measure one: vitnas profile"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(
                f"the latency table in {folder} is damaged ({error})",
                "delete the folder and measure it again: vitnas profile",
            ) from None

    def check(self, space: SearchSpace, device: dict[str, Any]) -> None:
        """Refuse a table of another machine, runtime, layer code or space."""
        wanted = {**device, "layer_code": layer_code(space)}
        found = {**self.manifest["device"], "layer_code": self.manifest["layer_code"]}
        if differing := [k for k in wanted if found.get(k) != wanted[k]]:
            shown = ", ".join(f"{k} {found.get(k)!r} is not {wanted[k]!r}" for k in differing[:2])
            raise TableError(
                f"this table is of another machine or version: {shown}",
                f"measure this one: vitnas profile --space {space.name}",
            )
        if self.manifest["space"] != space.name:
            raise TableError(
                f"this table is for the space {self.manifest['space']}, not {space.name}",
                f"measure one: vitnas profile --space {space.name}",
            )


def describe_device(name: str) -> dict[str, Any]:
    """What identifies a device and how it is run; `UnknownNameError` for one we cannot run on."""
    if name != "cpu":
        raise UnknownNameError("device", name, ["cpu"])
    return {
        "name": "cpu",
        "processor": _processor(),
        "machine": platform.machine(),
        "runtime": "torch-eager",
        "runtime_version": version("torch").partition("+")[0],
        "threads": 1,
        "dtype": "float32",
        "batch": 1,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {k.strip(): v.strip() for k, v in fields.items()}
        parts = [f"{k} {fields[k]}" for k in ("cpu family", "model") if k in fields]
        return " ".join([fields.get("model name", platform.processor()), *parts])
    except OSError:
        return platform.processor() or platform.machine()


def layer_code(space: SearchSpace) -> str:
    """A fingerprint of the code that the layers of a space run."""
    import nas
    import search_spaces

    folder = Path(nas.__file__).parent
    files = [folder / f"{name}.py" for name in ("convolution", "elastic", "precision", "windows")]
    files.append(Path(next(iter(search_spaces.__path__))) / f"{space.family}.py")
    return fingerprint(*(file.read_bytes() for file in files))


def cache_folder() -> Path:
    return Path(platformdirs.user_cache_dir("vitnas")) / "tables"


def table_folder(space: SearchSpace, classes: int, device: str) -> Path:
    """Where the table of this machine for a space is kept: below the user's cache directory."""
    identity = fingerprint(describe_device(device), layer_code(space), PROTOCOL)
    return cache_folder() / device / f"{space.name.replace(':', '-')}-{classes}-{identity}"


def known_table(space: SearchSpace, classes: int, device: str) -> LatencyTable | None:
    """The table of this machine if it has been measured."""
    folder = table_folder(space, classes, device)
    return LatencyTable.load(folder) if (folder / "manifest.toml").exists() else None


def saved_tables() -> Iterator[tuple[Path, LatencyTable]]:
    """Every finished table in the cache."""
    for manifest in sorted(cache_folder().glob("*/*/manifest.toml")):
        yield manifest.parent, LatencyTable.load(manifest.parent)


def profile(
    space: SearchSpace,
    classes: int,
    device: str = "cpu",
    folder: Path | None = None,
    rounds: int = ROUNDS,
    minutes: float = math.inf,
) -> LatencyTable:
    """The table of this machine: read if it is complete, else measured (about half a minute).

    Measuring takes rounds over all rows and reference networks in turn, so that a slow moment of
    the machine hits all alike. Every round is kept in `samples.jsonl`: a killed profile goes on
    with the next round. Stops with a `TableError` after `minutes`, keeping what it has.
    """
    described = describe_device(device)
    folder = folder or table_folder(space, classes, device)
    graph = Graph.of(space, classes)
    if graph.count < FIT + HELD_OUT:
        raise TableError(
            f"{space.name} has {graph.count} architectures, too few to calibrate a table on",
            f"measure it end to end: vitnas measure {space.name}",
        )
    if (folder / "manifest.toml").exists():
        table = LatencyTable.load(folder)
        table.check(space, described)
        if graph.items().keys() <= table.rows.keys():
            return table
    journal = Journal(folder / "samples.jsonl")
    _claim(journal, fingerprint(described, layer_code(space), space.name, classes, PROTOCOL))
    campaign = _Campaign(space, classes, graph, journal, rounds)
    campaign.run(minutes)
    table = LatencyTable(
        rows=campaign.rows(),
        manifest={
            "space": space.name,
            "classes": classes,
            "source": "measured",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "vitnas_version": version("vitnas"),
            "layer_code": layer_code(space),
            "rounds": rounds,
            "protocol": "layers timed in network order, one warm-up inference each, heap kept",
            "wall_over_cpu": round(campaign.wall_over_cpu(), 3),
            "device": described,
            "calibration": asdict(campaign.calibration()),
        },
    )
    table.save(folder)
    return table


def _claim(journal: Journal, identity: str) -> None:
    """Start a journal of samples with who measures what; refuse to go on with another's."""
    records = journal.read()
    if not records:
        journal.append({"identity": identity})
    elif records[0].get("identity") != identity:
        raise TableError(
            f"the samples in {journal.path} are of another machine, version or space",
            "choose another folder, or measure anew: vitnas profile --again",
        )


def forget(folder: Path) -> None:
    """Delete a table and its samples, and nothing else that may lie in the folder."""
    for name in ("samples.jsonl", "manifest.toml", "rows.csv"):
        (folder / name).unlink(missing_ok=True)


class _Campaign:
    """The samples of one profile.

    Rows are timed in context, layer by layer inside whole networks ("tours") that together contain
    every row: isolated layers find their weights in the cache, and were 10-30 % off in both
    directions. Reference networks are timed end to end, for the calibration and its error.
    """

    def __init__(
        self, space: SearchSpace, classes: int, graph: Graph, journal: Journal, rounds: int
    ) -> None:
        self.space, self.classes, self.graph, self.rounds = space, classes, graph, rounds
        self.journal = journal
        self.layers: dict[str, list[Sequence[float]]] = {}
        self.references: dict[str, list[Sequence[float]]] = {}
        self.visits: dict[str, int] = {}
        self.tours = [decode(space, path).to_json() for path in graph.tours()]
        for record in journal.read()[1:]:
            self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        self.references |= {text: [] for text in record.get("chosen", [])}
        for text, samples in record.get("tours", {}).items():
            self.visits[text] = self.visits.get(text, 0) + 1
            layers = self.space.layers(self.space.parse(text), self.classes)
            for layer, sample in zip(layers, samples):
                self.layers.setdefault(layer.key, []).append(sample)
        for text, sample in record.get("references", {}).items():
            self.references[text].append(sample)

    def run(self, minutes: float) -> None:
        """Rounds over all tours and references in turn, until each had its share of them."""
        import torch

        from nas import stopwatch

        threads = torch.get_num_threads()
        stopwatch.quiet_process()
        torch.manual_seed(0)
        try:
            self._rounds(minutes, stopwatch)
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)

    def _rounds(self, minutes: float, stopwatch: Any) -> None:
        end = time.monotonic() + 60 * minutes
        rng = np.random.default_rng(0)
        built: dict[str, tuple[Network, torch.Tensor]] = {}
        held = 0
        with bar(
            "profile", (len(self.tours) + FIT + HELD_OUT) * self.rounds, "networks"
        ) as advance:
            advance(sum(self.visits.values()) + sum(map(len, self.references.values())))
            while True:
                due = [t for t in self.tours if self.visits.get(t, 0) < self.rounds]
                if all(t in self.visits for t in self.tours):
                    if not self.references:
                        chosen = {"chosen": self._references()}
                        self.journal.append(chosen)
                        self._add(chosen)
                    due += [t for t, done in self.references.items() if len(done) < self.rounds]
                if not due:
                    return
                record: dict[str, Any] = {"tours": {}, "references": {}}
                for i in rng.permutation(len(due)):
                    text = due[i]
                    ready = built.get(text)
                    if ready is None:
                        architecture = self.space.parse(text)
                        network = stopwatch.build(self.space, architecture, self.classes)
                        ready = network, stopwatch.image_for(architecture)
                        stopwatch.time_network(*ready)  # dropped: the first call is slower
                        weights = sum(p.numel() for p in network.parameters())
                        if (held := held + weights) < _HELD_WEIGHTS:
                            built[text] = ready
                    if text in self.references:
                        record["references"][text] = stopwatch.time_network(*ready).rounded
                    else:
                        samples = stopwatch.time_layers(*ready)
                        record["tours"][text] = [sample.rounded for _, sample in samples]
                    advance(1)
                    if time.monotonic() > end:
                        break
                self.journal.append(record)
                self._add(record)
                if time.monotonic() > end:
                    raise TableError(
                        f"the time was up after {sum(self.visits.values())} of "
                        f"{len(self.tours) * self.rounds} networks",
                        f"go on with what there is: vitnas profile --space {self.space.name}",
                    )

    def _references(self) -> list[str]:
        """One random network from each of equal bands of the latency range, in random order."""
        rows = self.rows()
        trellis = Trellis(self.graph, lambda layer: rows[layer.key].median_ms)
        edges = np.linspace(trellis.fastest, trellis.slowest, FIT + HELD_OUT + 1)
        rng = np.random.default_rng(0)
        chosen: dict[str, None] = {}
        for i in rng.permutation(FIT + HELD_OUT):
            try:
                within = trellis.within(edges[i + 1], edges[i], ticks=1024)
            except InfeasibleError:
                continue  # a band may hold no architecture
            chosen[decode(self.space, within.sample(1, rng)[0]).to_json()] = None
        return [text for text in chosen if text not in self.tours]

    def rows(self) -> dict[str, Row]:
        return {key: Row.of(key, samples) for key, samples in self.layers.items()}

    def calibration(self) -> Calibration:
        rows = self.rows()
        sums, measured = [], []
        for text, samples in self.references.items():
            layers = self.space.layers(self.space.parse(text), self.classes)
            sums.append(sum(rows[layer.key].median_ms for layer in layers))
            measured.append(Row.of(text, samples).median_ms)
        return Calibration.fit(sums, measured, min(FIT, len(sums) // 2))

    def wall_over_cpu(self) -> float:
        samples = np.array([s for rows in self.layers.values() for s in rows])
        return float(np.median(samples[:, 0] / np.maximum(samples[:, 1], 1e-3)))
