"""The report: one self-contained HTML page from one run, or several side by side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from nas.budget import readable_ms
from nas.records import write_bytes, write_text
from nas.report import pictures, wording
from nas.report.examples import examples
from nas.report.saved_run import SavedRun
from nas.report.schedules import Made, layer_times, winner_made
from nas.size import Sides

_PHOTOS = ("kept", "masks")  # pictures that show test images


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run (`RUN/report.html`) or of several side by side (`out`).

    The pictures of a single run are also left beside it as SVG and PNG.
    """
    runs = [SavedRun.load(folder) for folder in folders]
    figures: dict[str, Figure] = {
        "pareto": pictures.pareto(runs),
        "predicted": pictures.predicted_measured(runs),
        "convergence": pictures.convergence(runs),
    }
    winners: list[Made] = []
    if len(runs) == 1:
        (run,) = runs
        figures["layers"] = pictures.layers(layer_times(run))
        shown = examples(run)
        if shown:
            figures["kept"] = pictures.kept_windows(
                [s.pixels for s in shown], [s.title for s in shown], [s.kept for s in shown]
            )
            if run.space.task.dense:
                figures["masks"] = pictures.masks(
                    [s.pixels for s in shown], [s.title for s in shown],
                    [s.painted for s in shown], run.space.task.legend(),
                )  # fmt: skip
        winners = [winner_made(run, answer) for answer in run.record.by_budget]
    drawn = {name: pictures.svg(figure) for name, figure in figures.items()}
    if len(runs) == 1:
        for name, figure in figures.items():
            png = pictures.png(figure)
            write_bytes(runs[0].folder / "pictures" / f"{name}.png", png)
            write_text(runs[0].folder / "pictures" / f"{name}.svg", drawn[name])
            if name in _PHOTOS:
                drawn[name] = embedded(png)  # photos are smaller as PNG, lines as SVG
        for name in _PHOTOS if shown is None else ():
            if (before := runs[0].folder / "pictures" / f"{name}.png").exists():
                drawn[name] = embedded(before.read_bytes())  # the images have moved since
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            runs=runs,
            results=[run.record for run in runs],
            pictures=drawn,
            winners=winners,
            takes=runs[0].space.parts.takes,
            unit=runs[0].space.parts.unit,
        )
    )
    path = out or runs[0].folder / "report.html"
    write_text(path, page)
    return path


def environment() -> Environment:
    """Where templates of pages are, with the words and numbers that they use."""
    environment = Environment(
        loader=PackageLoader("nas", "assets"), autoescape=select_autoescape(default=True)
    )
    environment.filters |= {
        "ms": readable_ms,
        "pct": lambda v: "-" if v is None else f"{v:.1f}",
        "short": lambda v: f"{v:g}",
        "size": lambda v: str(Sides(*v)) if isinstance(v, list) else v,
        "number": wording.number,
    }
    environment.globals["wording"] = wording
    return environment


def embedded(data: bytes) -> str:
    """A PNG as an element that stands inside a page."""
    encoded = base64.b64encode(data).decode()
    return f'<img alt="" src="data:image/png;base64,{encoded}">'
