"""The report: one self-contained HTML page from one run, or several side by side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import load_file

from nas import pictures
from nas.elastic import Network
from nas.errors import RunError
from nas.family import SearchSpace, load_space
from nas.latency import LatencyTable
from nas.records import Journal, read_json, write_bytes, write_text
from nas.space import Architecture

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
        result = read_json(folder / "run.json")
        cloud = np.loadtxt(folder / "cloud.csv", delimiter=",", skiprows=1, ndmin=2)
        return cls(folder, result, Journal(folder / "candidates.jsonl").read(), cloud)

    @property
    def space(self) -> SearchSpace:
        return load_space(self.result["space"])

    @property
    def classes(self) -> int:
        return len(self.result["classes"])

    def architecture(self, entry: dict[str, Any]) -> Architecture:
        return self.space.domain.parse(entry["architecture"])

    def winner(self) -> Network:
        """The winner with its weights."""
        network = Network.empty(self.space, self.architecture(self.result["winner"]), self.classes)
        network.load_state_dict(load_file(self.folder / "winner" / "weights.safetensors"))
        return network


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run (`RUN/report.html`) or of several side by side (`out`).

    The pictures of a single run are also left beside it as SVG and PNG.
    """
    runs = [Run.load(folder) for folder in folders]
    results = [run.result for run in runs]
    figures: dict[str, Figure] = {
        "pareto": pictures.pareto(results, [run.cloud for run in runs]),
        "predicted": pictures.predicted_measured(results),
        "convergence": pictures.convergence(results, [run.journal for run in runs]),
    }
    schedule = None
    if len(runs) == 1:
        (run,) = runs
        dense = next(b for b in run.result["baselines"] if b["name"] == "largest dense")
        table = LatencyTable.load(run.folder / "table")
        rows = [
            [
                (layer.path, table.cost(layer))
                for layer in run.space.layers(run.architecture(entry), run.classes)
            ]
            for entry in (run.result["winner"], dense)
        ]
        figures["layers"] = pictures.layers(*rows)
        shown = _look(run)
        figures["kept"] = pictures.kept_windows(
            [s.pixels for s in shown], [s.title for s in shown], [s.kept for s in shown]
        )
        schedule = _schedule(run, shown[0].kept)
        for name, figure in figures.items():
            write_bytes(run.folder / "pictures" / f"{name}.png", pictures.png(figure))
            write_text(run.folder / "pictures" / f"{name}.svg", pictures.svg(figure))
    drawn = {
        # Photos are smaller as PNG, lines as SVG.
        name: _img(pictures.png(figure)) if name == "kept" else pictures.svg(figure)
        for name, figure in figures.items()
    }
    environment = Environment(
        loader=PackageLoader("nas", "assets"), autoescape=select_autoescape(default=True)
    )
    environment.filters["ms"] = lambda v: "-" if v is None else f"{v:.2f}"
    environment.filters["pct"] = lambda v: "-" if v is None else f"{v:.1f}"
    page = environment.get_template("report.html.jinja").render(
        runs=results, pictures=drawn, schedule=schedule, headline=[_headline(r) for r in results]
    )
    path = out or runs[0].folder / "report.html"
    write_text(path, page)
    return path


def _headline(result: dict[str, Any]) -> str:
    """The result in one sentence, against the best dense network that also fits."""
    w = result["winner"]
    used = 100 * w["measured_ms"] / result["budget_ms"]
    text = (
        f"{w['test_top1_percent']:.1f} % in {w['measured_ms']:.1f} ms: the winner uses "
        f"{used:.0f} % of the {result['budget_ms']:g} ms budget"
    )
    dense = next((b for b in result["baselines"] if b["name"] == "best dense"), None)
    if dense is None:
        return text + "; no dense network fits."
    gain = w["test_top1_percent"] - dense["test_top1_percent"]
    side = "above" if gain >= 0 else "below"
    difference = f"{abs(gain):.1f} points {side}"
    return f"{text}, {difference} the best dense network found within it."


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
    from nas.evaluate import resize

    network = run.winner()
    architecture = network.architecture
    data = load_data(run.result["data"])
    count = min(_SHOWN_IMAGES, data.test.size)
    pixels, labels = data.test.batch(range(count), run.space.largest.resolution)
    shown = []
    for i in range(count):
        x = resize(data.tensor(pixels[i : i + 1]), architecture.resolution)
        with torch.no_grad():
            predicted = int(network(x).argmax())
        sign = "✓" if predicted == labels[i] else f"✗ {data.classes[predicted]}"
        raw = resize(torch.from_numpy(pixels[i : i + 1]).float() / 255, architecture.resolution)
        shown.append(
            Shown(
                raw[0].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).double().numpy(),
                f"{data.classes[labels[i]]} {sign}",
                {k: v.numpy() for k, v in network.kept(x).items()},
            )
        )
    return shown


def _schedule(run: Run, kept: dict[str, NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """The winner stage by stage; for each block its fields and the share it works on."""
    space, architecture = run.space, run.architecture(run.result["winner"])
    stages: list[dict[str, Any]] = []
    state: Any = None
    for i, value in enumerate(space.domain.flatten(architecture)):
        part = space.advance(i, state, value)
        assert part is not None
        state = part.state
        if isinstance(value, int) and i:  # the width that opens a stage
            stages.append({"width": value, "blocks": []})
        elif i and value is not None:
            shares = [kept[layer.path].mean() for layer in part.layers if layer.path in kept]
            share = float(np.mean(shares)) if shares else 1.0  # a block that cannot prune
            fields = {k: v for k, v in vars(value).items() if k != "sparsity"}
            stages[-1]["blocks"].append({"fields": fields, "kept": 100 * share})
    return stages


def _img(data: bytes) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="" src="data:image/png;base64,{encoded}">'
