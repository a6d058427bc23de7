"""The report: one self-contained HTML page from one run, or several side by side."""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import load_file

from nas.errors import RunError
from nas.families import load_space
from nas.latency.table import LatencyTable
from nas.network.calibration import run_layer
from nas.network.macs import sum_macs, sum_params
from nas.network.network import Network
from nas.records import Journal, read_json, write_bytes, write_text
from nas.report import pictures
from nas.report.wording import (
    above_dense,
    command,
    complete,
    headline,
    ladder,
    number,
    odds,
    verdict,
)
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.tasks import load_task

_SHOWN_IMAGES = 3


@dataclass(frozen=True)
class Run:
    """What a finished run has recorded."""

    folder: Path
    result: dict[str, Any]
    journal: list[dict[str, Any]]
    cloud: NDArray[np.float64]  # (n, 2): predicted ms and search top-1 of everything scored

    @classmethod
    def load(cls, folder: Path) -> Run:
        if not (folder / "run.json").exists():
            known = sorted(str(p.parent) for p in folder.parent.glob("*/run.json"))[:3]
            fix = f"finished runs here: {', '.join(known)}" if known else "make one: vitnas search"
            if (folder / "settings.json").exists():
                fix = f"finish it: vitnas search with its options and --out {folder} --resume"
            raise RunError(f"{folder} is not a finished run", fix)
        result = complete(read_json(folder / "run.json"))
        cloud = np.loadtxt(folder / "cloud.csv", delimiter=",", skiprows=1, ndmin=2)
        return cls(folder, result, Journal(folder / "candidates.jsonl").read(), cloud)

    @property
    def answers(self) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self.result["answers"]
        return answers

    @property
    def space(self) -> SearchSpace:
        return load_space(self.result["space"], load_task(self.result))

    @cached_property
    def table(self) -> LatencyTable:
        return LatencyTable.load(self.folder / "table")

    @property
    def command(self) -> str:
        return command(read_json(self.folder / "settings.json"))

    def command_from(self, budget_ms: float) -> str:
        """The command line of a run that answers another budget from the scores of this one."""
        settings = read_json(self.folder / "settings.json")
        del settings["evaluations"]
        budgets = [{**self.answers[0]["budgets"], self.result["device"]: budget_ms}]
        again = {"budgets": budgets, "source_run": self.result["run_dir"]}
        return command({**settings, **again})

    @property
    def archive(self) -> list[dict[str, float]]:
        """The best known network by latency, as `archive.csv` has it; none from an early run."""
        if not (path := self.folder / "archive.csv").exists():
            return []
        rows = csv.DictReader(path.read_text().splitlines())
        return [{k: float(v) for k, v in row.items() if k != "id"} for row in rows]

    def scored(self) -> list[dict[str, Any]]:
        """The candidates of the search that have a score, in order, with their prediction."""
        own = [r for r in self.journal if r["origin"] == "search" and "error" not in r]
        found = [self.space.parse(r["architecture"]) for r in own]
        costs = [self.table.predict(self.space, a) for a in found]
        return [{**r, "predicted_ms": ms} for r, ms in zip(own, costs)]

    def ladder(self) -> list[tuple[float, float]]:
        """What this run knows of round budgets: ms and the expected accuracy of the best."""
        confidence = self.result["confidence"]
        return ladder(self.archive, lambda ms: self.table.limit(ms, confidence))

    def architecture(self, entry: dict[str, Any]) -> Architecture:
        return self.space.domain.parse(entry["architecture"])

    def winner(self) -> Network:
        """The winner with its weights."""
        network = Network.empty(self.space, self.architecture(self.result["winner"]))
        network.load_state_dict(load_file(self.folder / "winner" / "weights.safetensors"))
        return network


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run (`RUN/report.html`) or of several side by side (`out`).

    The pictures of a single run are also left beside it as SVG and PNG.
    """
    runs = [Run.load(folder) for folder in folders]
    results = [run.result for run in runs]
    archives = [
        np.array([(r["predicted_ms"], r["expected_top1_percent"]) for r in run.archive])
        for run in runs
    ]
    figures: dict[str, Figure] = {
        "pareto": pictures.pareto(results, [run.cloud for run in runs], archives),
        "predicted": pictures.predicted_measured(results),
        "convergence": pictures.convergence(results, [run.scored() for run in runs]),
    }
    winners: list[dict[str, Any]] = []
    if len(runs) == 1:
        (run,) = runs
        shown = _look(run)
        figures["layers"] = pictures.layers(_rows(run))
        figures["kept"] = pictures.kept_windows(
            [s.pixels for s in shown], [s.title for s in shown], [s.kept for s in shown]
        )
        winners = [_winner(run, answer) for answer in run.answers]
    drawn = {name: pictures.svg(figure) for name, figure in figures.items()}
    if len(runs) == 1:
        for name, figure in figures.items():
            png = pictures.png(figure)
            write_bytes(runs[0].folder / "pictures" / f"{name}.png", png)
            write_text(runs[0].folder / "pictures" / f"{name}.svg", drawn[name])
            if name == "kept":
                drawn[name] = _img(png)  # photos are smaller as PNG, lines as SVG
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(runs=runs, results=results, pictures=drawn, winners=winners)
    )
    path = out or runs[0].folder / "report.html"
    write_text(path, page)
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nas", "assets"), autoescape=select_autoescape(default=True)
    )
    environment.filters |= {
        "ms": lambda v: "-" if v is None else f"{v:.2f}",
        "pct": lambda v: "-" if v is None else f"{v:.1f}",
        "short": lambda v: f"{v:g}",
        "number": number,
    }
    environment.globals |= {
        "headline": headline,
        "above_dense": above_dense,
        "odds": odds,
        "verdict": verdict,
    }
    return environment


def _rows(run: Run) -> list[tuple[str, list[tuple[str, float]]]]:
    """Milliseconds by layer of the winners and of the largest dense network."""
    answers = run.answers
    dense = next(b for b in answers[0]["baselines"] if b["name"] == "largest dense")
    several = len(answers) > 1
    entries = [
        (f"winner within {a['budget_ms']:g} ms" if several else "winner", a["winner"])
        for a in answers
    ]
    return [
        (
            name,
            [
                (layer.path, run.table.cost(layer))
                for layer in run.space.layers(run.architecture(entry))
            ],
        )
        for name, entry in [*entries, ("largest dense", dense)]
    ]


@dataclass(frozen=True)
class Shown:
    """A test image, what the winner says of it, and which tokens each of its layers works on."""

    pixels: NDArray[np.float64]  # (side, side, 3) in [0, 1]
    title: str
    kept: dict[str, NDArray[np.bool_]]


def _look(run: Run) -> list[Shown]:
    """The winner on the first test images."""
    import torch

    from nas.data import load_data

    network = run.winner()
    architecture = network.architecture
    data = load_data(run.result["data"])
    count = min(_SHOWN_IMAGES, data.test.size)
    parts = run.space.parts
    shown = []
    for i in range(count):
        sample = data.test.batch([i], run.space.largest.resolution)
        batch = data.prepare(sample)
        x = parts.resized(batch[parts.takes], architecture.resolution)
        with torch.no_grad():
            caption = data.task.caption(network(x), batch)
        pixels = torch.from_numpy(sample["images"]).float() / 255
        raw = parts.resized(pixels, architecture.resolution)
        shown.append(
            Shown(
                raw[0].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).double().numpy(),
                caption,
                {k: v.numpy() for k, v in network.kept(x).items()},
            )
        )
    return shown


def _winner(run: Run, answer: dict[str, Any]) -> dict[str, Any]:
    """What the winner of a budget is made of."""
    space, architecture = run.space, run.architecture(answer["winner"])
    layers = space.layers(architecture)
    return {
        "budget_ms": answer["budget_ms"],
        "resolution": architecture.resolution,
        "params": sum_params(layers),
        "macs": sum_macs(layers).total,
        "stages": _schedule(space, architecture),
    }


def _schedule(space: SearchSpace, architecture: Architecture) -> list[dict[str, Any]]:
    """An architecture stage by stage; for each block its fields and the share it works on."""
    shares_of = _shares(Network(space, architecture).eval())
    stages: list[dict[str, Any]] = []
    state: Any = None
    for i, value in enumerate(space.domain.flatten(architecture)):
        part = space.advance(i, state, value)
        assert part is not None
        state = part.state
        if isinstance(value, int) and i:  # the width that opens a stage
            stages.append({"width": value, "blocks": []})
        elif i and value is not None:
            paths = [layer.path for layer in part.layers]
            shares = [shares_of[path] for path in paths if path in shares_of]
            share = float(np.mean(shares)) if shares else 1.0  # a block that cannot prune
            fields = {k: v for k, v in vars(value).items() if k != "sparsity"}
            stages[-1]["blocks"].append({"fields": fields, "kept": 100 * share})
    return stages


def _shares(network: Network) -> dict[str, float]:
    """The share of its tokens that each layer that can prune works on, by path.

    It depends neither on weights nor on precision, and int8 would need ranges; on the image only
    where a map is padded, by which windows are kept.
    """
    import torch

    side = network.architecture.resolution
    state: tuple[Any, ...] = (torch.zeros(1, 3, side, side),)
    shares = {}
    with torch.no_grad():
        for layer in network.space.layers(network.architecture):
            module: Any = network.module(layer)
            if (kept := module.kept(*state, **layer.sizes)) is not None:
                shares[layer.path] = float(kept.double().mean())
            state = run_layer(module, layer, state, bits=32)
    return shares


def _img(data: bytes) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="" src="data:image/png;base64,{encoded}">'
