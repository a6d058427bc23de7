"""The command line. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nas.errors import UsageError, VitnasError
from nas.family import LARGEST_PX

app = typer.Typer(
    name="vitnas",
    help="The most accurate vision transformer within a latency budget, measured on your device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 an error with its fix, 2 wrong usage, 3 nothing fits the budget. "
    "Add --debug to any command to see where an error came from.",
)
# UsageError of click, or of the click that newer versions of typer bring along.
_WrongUsage: Any = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130
out = Console(highlight=False, width=None if sys.stdout.isatty() else 80)

Space = Annotated[str, typer.Option(help="Search space, FAMILY:PRESET; see `vitnas list spaces`.")]
Device = Annotated[str, typer.Option(help="Device to run on; see `vitnas list devices`.")]
Data = Annotated[str, typer.Option(help="`scenes` (shipped) or `imagefolder:PATH`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Supernet = Annotated[
    str, typer.Option(help="Folder of a trained supernet; default: the shipped one.")
]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Classes = Annotated[
    int | None,
    typer.Option(min=2, help="Classes of the classifier; default: 10, for named models 1000."),
]
# Tables of Swin's windows are made in full on the way: 0.2 GB here, four times that at twice this.
_FIGURES = (".png", ".svg", ".pdf")


class Sampler(StrEnum):
    """Where proposals come from."""

    trellis = "trellis"
    rejection = "rejection"


class Format(StrEnum):
    """File formats of an exported network."""

    safetensors = "safetensors"
    pt2 = "pt2"
    onnx = "onnx"


class Listing(StrEnum):
    """What can be listed."""

    models = "models"
    spaces = "spaces"
    supernets = "supernets"
    devices = "devices"
    tables = "tables"
    runs = "runs"


@app.command(epilog="Example: vitnas search --budget 20ms")
def search(
    budget: Annotated[str, typer.Option(help="Latency budget with its unit, e.g. 20ms.")],
    space: Space = "swin:micro",
    data: Data = "scenes",
    device: Device = "cpu",
    supernet: Supernet = "",
    run: Annotated[
        str, typer.Option("--out", help="Run directory; default: a new one in runs/.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    evaluations: Annotated[int, typer.Option(min=1, help="Candidates to score in this run.")] = 8,
    search_images: Annotated[int, typer.Option(min=10, help="Images of the search split.")] = 400,
    test_images: Annotated[int, typer.Option(min=10, help="Images of the test split.")] = 500,
    sampler: Annotated[Sampler, typer.Option(help="Where proposals come from.")] = Sampler.trellis,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore the shipped scores.")] = False,
    table: Annotated[str, typer.Option(help="Folder of a latency table to use.")] = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Search the most accurate architecture within a latency budget."""
    from nas.budget import Budget

    parsed = Budget.parse(budget)
    from nas.run import search as run_search

    result = run_search(
        parsed,
        space=space,
        data=data,
        device=device,
        supernet=supernet,
        out=run or None,
        resume=resume,
        evaluations=evaluations,
        search_images=search_images,
        test_images=test_images,
        sampler=sampler.value,
        fresh=fresh,
        seed=seed,
        table=table or None,
    )
    if as_json:
        return _json(result)
    grid = _table("network", "predicted", "measured", "p95", "search top-1", "test top-1")
    for i, c in enumerate([result["winner"], *result["baselines"]]):
        cells = [f"{c[k]:.2f} ms" for k in ("predicted_ms", "measured_ms", "measured_p95_ms")]
        cells += [f"{c[k]:.1f} %" for k in ("search_top1_percent", "test_top1_percent")]
        grid.add_row(c["name"], *cells, style="bold" if i == 0 else "")
    out.print(grid)
    seconds = result["seconds"]
    parts = ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items() if k != "total")
    out.print(f"{seconds['total']:.0f} s in all: {parts}")
    out.print(f"report: {result['run_dir']}/report.html", soft_wrap=True)


@app.command(epilog="Example: vitnas profile --space swin:micro")
def profile(
    space: Space = "swin:micro",
    device: Device = "cpu",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the classifier.")] = 10,
    folder: Annotated[str, typer.Option("--out", help="Folder; default: the user's cache.")] = "",
    minutes: Annotated[float, typer.Option(help="Stop after this long, keep what there is.")] = 1e6,
    again: Annotated[bool, typer.Option("--again", help="Measure anew even if complete.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the latency table of this machine for a space; goes on where it was stopped."""
    from dataclasses import asdict

    from nas.family import load_space
    from nas.latency import describe_device, forget, table_folder
    from nas.latency import profile as run_profile

    describe_device(device)
    the_space = load_space(space)
    where = Path(folder) if folder else table_folder(the_space, classes, device)
    if again:
        forget(where)
    table = run_profile(the_space, classes, device, where, minutes=minutes)
    c = table.calibration
    if as_json:
        return _json(
            {
                "folder": str(where),
                "rows": len(table.rows),
                "manifest": table.manifest,
                "calibration": asdict(c),
            }
        )
    out.print(
        f"{len(table.rows)} rows of {space} on {table.manifest['device']['processor']}: {where}",
        soft_wrap=True,
    )
    out.print(
        f"on {c.held_out} other networks: mean error {c.mape_percent:.2f} %, "
        f"p95 {c.p95_percent:.2f} %, "
        f"bias {c.bias_percent:+.2f} %, Kendall tau {c.kendall_tau:.3f}"
    )


@app.command(
    epilog="Example: vitnas train --space swin:micro --data imagefolder:photos --out supernet"
)
def train(
    space: Space = "swin:micro",
    data: Data = "scenes",
    folder: Annotated[str, typer.Option("--out", help="Folder of the supernet.")] = "supernet",
    images: Annotated[int, typer.Option(min=200, help="Training images in all.")] = 271_200,
    init: Annotated[
        str, typer.Option(help="Checkpoint to start from: a file, or a model on timm's hub.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a stopped training.")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train the supernet of a space: sandwich rule, distillation, random window schedules."""
    from nas.data import load_data
    from nas.supernet import Recipe, check_device
    from nas.supernet import train as run_train

    check_device(device)
    recipe = Recipe(seed=seed).scaled(images)
    where = run_train(space, load_data(data), Path(folder), recipe, device, resume, init)
    card = json.loads((where / "supernet.json").read_text())
    if as_json:
        return _json(card)
    out.print(
        f"{where}: largest {card['largest_search_top1_percent']:.1f} %, smallest "
        f"{card['smallest_search_top1_percent']:.1f} % on {card['search_images']} search images"
    )


@app.command(epilog="Example: vitnas report runs/swin-micro-20ms runs/swin-micro-12ms")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    page: Annotated[str, typer.Option("--out", help="Page for several runs.")] = "comparison.html",
    as_json: Json = False,
) -> None:
    """Write the report of one run again, or one page with several side by side."""
    from nas.report import write_report

    path = write_report(runs, None if len(runs) == 1 else Path(page))
    if as_json:
        return _json({"report": str(path)})
    out.print(f"report: {path}", soft_wrap=True)


@app.command(epilog="Example: vitnas measure runs/swin-micro-20ms")
def measure(
    what: Annotated[
        str, typer.Argument(metavar="ARCH|RUN|MODEL", help="Architecture JSON, run or model.")
    ],
    space: Space = "swin:micro",
    device: Device = "cpu",
    classes: Classes = None,
    rounds: Annotated[int, typer.Option(min=2, help="Samples to take.")] = 50,
    as_json: Json = False,
) -> None:
    """Measure an architecture end to end in a fresh process, beside its prediction."""
    import numpy as np

    from nas.latency import describe_device, known_table
    from nas.progress import bar
    from nas.stopwatch import measure_fresh

    described = describe_device(device)
    the_space, architecture, classes = _architecture(what, space, classes)
    table = known_table(the_space, classes, device)
    with bar("measure", rounds, "rounds") as advance:
        (samples,) = measure_fresh(the_space, [architecture], classes, rounds, advance)
    result: dict[str, Any] = {
        "space": the_space.name,
        "id": architecture.id,
        "device": described,
        "samples": rounds,
        "measured_ms": round(float(np.median(samples)), 4),
        "measured_p95_ms": round(float(np.percentile(samples, 95)), 4),
        "measured_min_ms": round(min(samples), 4),
        "predicted_ms": None,
        "layers": [],
    }
    if table:
        result["predicted_ms"] = round(table.predict_ms(the_space, architecture, classes), 4)
        result["layers"] = [
            {"layer": layer.path, "key": layer.key, "predicted_ms": round(table.cost_ms(layer), 4)}
            for layer in the_space.layers(architecture, classes)
        ]
    if as_json:
        return _json(result)
    out.print(
        f"{architecture.id}: {result['measured_ms']:.2f} ms measured (median of {rounds}; p95 "
        f"{result['measured_p95_ms']:.2f}, min {result['measured_min_ms']:.2f})"
    )
    if not table:
        why = f"there is no table yet (vitnas profile --space {the_space.name})"
        if ":" not in the_space.name:
            why = "tables are fitted to spaces, and this is a single model"
        return out.print(f"no prediction: {why}")
    total = result["predicted_ms"]
    out.print(
        f"{total:.2f} ms predicted ({100 * (total / result['measured_ms'] - 1):+.1f} %), of which"
    )
    grid = _table("layer", "predicted", "share")
    for row in result["layers"]:
        share = row["predicted_ms"] / total
        grid.add_row(row["layer"], f"{row['predicted_ms']:.3f} ms", f"{100 * share:4.1f} %")
    out.print(grid)


@app.command(epilog="Example: vitnas export runs/swin-micro-20ms --format onnx")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    formats: Annotated[list[Format], typer.Option("--format", help="May be given several times.")],
    folder: Annotated[str, typer.Option("--out", help="Folder; default: RUN/winner.")] = "",
    as_json: Json = False,
) -> None:
    """Write the winner of a run as a file, reloaded and compared with the run's weights."""
    import torch

    from nas.export import export_network
    from nas.report import Run

    network = Run.load(run).winner()
    architecture = network.architecture
    torch.manual_seed(0)
    images = torch.randn(1, 3, architecture.resolution, architecture.resolution)
    with torch.no_grad():
        expected = network(images)
    where = Path(folder) if folder else run / "winner"
    differences = export_network(network, images, expected, where, [f.value for f in formats])
    if as_json:
        return _json({"folder": str(where), "largest_difference": differences})
    for name, difference in differences.items():
        out.print(
            f"{where / name} (largest difference of a logit {difference:.1g})", soft_wrap=True
        )


@app.command(epilog="Example: vitnas quantize runs/swin-micro-20ms")
def quantize(
    what: Annotated[
        str,
        typer.Argument(metavar="[RUN|ARCH|MODEL]", help="Default: the largest of the space."),
    ] = "",
    space: Space = "swin:micro",
    data: Data = "scenes",
    supernet: Supernet = "",
    weights: Annotated[
        str, typer.Option(help="Checkpoint of a named model: a file, or a name on timm's hub.")
    ] = "",
    images: Annotated[int, typer.Option(min=10, help="Images of the search split.")] = 400,
    calibration: Annotated[int, typer.Option(min=1, help="Training images for the ranges.")] = 64,
    folder: Annotated[str, typer.Option("--out", help="Write the int8 network here.")] = "",
    as_json: Json = False,
) -> None:
    """Accuracy of a network in int8 by clipping method, and what each layer costs."""
    import torch

    from nas.quantization import quantize as run_quantize
    from nas.quantization import subject

    network, images_of = subject(what, space, data, supernet, weights)
    torch.set_num_threads(1)
    result = run_quantize(
        network,
        images_of,
        images=images,
        calibration=calibration,
        out=Path(folder) if folder else None,
    )
    if as_json:
        return _json(result)
    grid = _table("ranges", "search top-1", "answers changed")
    grid.add_row("float32", f"{result['fp32']['top1_percent']:.1f} %", "")
    for method, row in result["methods"].items():
        grid.add_row(
            f"int8 {method}", f"{row['top1_percent']:.1f} %", f"{row['changed_percent']:.1f} %"
        )
    out.print(grid)
    ms = result["measured_ms"]
    out.print(
        f"measured, torch eager, one thread: float32 {ms['fp32']:.2f} ms, int8 {ms['int8']:.2f} ms"
    )
    out.print("relative error of a layer's output by method, and of the logits if it alone is int8")
    methods = list(result["layers"][0]["error"])
    grid = _table("layer", *methods, "chosen", "logits")
    for row in result["layers"]:
        errors = (f"{row['error'][method]:.1e}" for method in methods)
        grid.add_row(row["layer"], *errors, row["method"], f"{row['logit_error']:.1e}")
    out.print(grid)
    for name, difference in result.get("exported", {}).items():
        out.print(f"{Path(folder) / name} (largest difference of a logit {difference:.1g})")


@app.command(epilog="Example: vitnas inspect vit_base_patch16_224 --resolution 384")
def inspect(
    what: Annotated[
        str, typer.Argument(metavar="[ARCH|RUN|MODEL]", help="Default: the largest of the space.")
    ] = "",
    space: Space = "swin:micro",
    resolution: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_PX, help="Pixels; default: its own.")
    ] = None,
    device: Device = "cpu",
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Parameters, MACs and predicted latency of an architecture, layer by layer."""
    from nas.elastic import count_macs, count_params
    from nas.latency import describe_device, known_table

    describe_device(device)
    the_space, architecture, classes = _architecture(what, space, classes, resolution)
    table = known_table(the_space, classes, device)
    rows = [
        {
            "layer": layer.path,
            "key": layer.key,
            "params": count_params(layer),
            "macs": count_macs(layer).total,
            "predicted_ms": round(table.cost_ms(layer), 4) if table else None,
        }
        for layer in the_space.layers(architecture, classes)
    ]
    plain = the_space.name.partition("@")[0]
    result = {
        "name": f"{plain} {architecture.id}" if ":" in plain else plain,
        "resolution": architecture.resolution,
        "params": sum(row["params"] for row in rows),
        "macs": sum(row["macs"] for row in rows),
        "predicted_ms": round(table.predict_ms(the_space, architecture, classes), 4)
        if table
        else None,
        "layers": rows,
    }
    if as_json:
        return _json(result)
    out.print(f"{result['name']} at {result['resolution']} px, {classes} classes")
    grid = _table("layer", "params", "MACs", "predicted")
    for row in [*rows, {"layer": "sum", **result}]:
        ms = row["predicted_ms"]
        grid.add_row(
            row["layer"],
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:,.2f} M",
            "not measured" if ms is None else f"{ms:.3f} ms",
        )
    out.print(grid)


@app.command(epilog="Example: vitnas macs --models vit_tiny_patch16_224,swin:tiny --out macs.png")
def macs(
    models: Annotated[
        str, typer.Option(help="Named models (or spaces: their largest), separated by commas.")
    ] = "vit_base_patch16_224,swin_base_patch4_window7_224,mobilevit_s,efficientvit_b3",
    resolutions: Annotated[
        str, typer.Option(help="Sides of the image in pixels, separated by commas.")
    ] = "224,448,512,896,1024,2048",
    figure: Annotated[
        str, typer.Option("--out", help="Draw the curves: a .png, .svg or .pdf file.")
    ] = "",
    as_json: Json = False,
) -> None:
    """How the MACs of attention, and of whole models, grow with the resolution."""
    names = _items(models, "--models", "names", "vit_base_patch16_224")
    sides = [_pixels(item) for item in _items(resolutions, "--resolutions", "pixels", "224,448")]
    path = Path(figure) if figure else None
    if path and path.suffix.lower() not in _FIGURES:
        raise UsageError(f"--out is a .png, .svg or .pdf file, got {figure!r}", "e.g. macs.png")
    from nas.scaling import macs_by_resolution

    result = macs_by_resolution(names, sides)
    if path:
        from nas import pictures

        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(pictures.macs(result), path)
    if as_json:
        return _json(result)
    grid = _table("MACs of one image", "products", "attention", "whole model", "share")
    kinds = ("attention_matmul_macs", "attention_macs", "macs")
    for slope in result["slopes"]:
        grid.add_row(slope["model"], style="bold")
        for row in (row for row in result["rows"] if row["model"] == slope["model"]):
            counts = [row[kind] for kind in kinds]
            share = f"{100 * counts[0] / counts[2]:.1f} %"
            grid.add_row(
                f"{row['resolution']:>6} px", *(f"{n / 1e9:,.2f} G" for n in counts), share
            )
        powers = [slope[kind] for kind in kinds]
        if powers[-1] is not None:
            cells = ("" if power is None else f"R^{power:.2f}" for power in powers)
            grid.add_row("  grows as", *cells, style="cyan")
    out.print(grid)
    out.print(
        "products: the two of attention; attention: with its projections; "
        "share: products of the whole",
        style="dim",
    )
    out.print(result["reading"])
    if path:
        out.print(f"figure: {path}", soft_wrap=True)


def _items(text: str, option: str, what: str, example: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(
            f"{option} takes {what} separated by commas, got {text!r}", f"e.g. {example}"
        )
    return items


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_PX:
        raise UsageError(
            f"--resolutions takes pixels from 1 to {LARGEST_PX}, got {text!r}", "e.g. 224,448"
        )
    return int(text)


@app.command(name="list", epilog="Example: vitnas list models")
def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
    as_json: Json = False,
) -> None:
    """List models of the papers, spaces, shipped supernets, devices, measured tables, or runs."""
    rows = _LISTINGS[what]()
    if as_json:
        return _json({what.value: rows})
    if not rows:
        return out.print(f"no {what.value} yet")
    grid = _table(*rows[0])
    for row in rows:
        cells = (f"{v:,.3f}" if isinstance(v, float) else str(v) for v in row.values())
        grid.add_row(*cells)
    out.print(grid)


def _models() -> list[dict[str, Any]]:
    from nas.elastic import count_params, sum_macs
    from nas.family import load_space, model_names
    from nas.progress import track

    rows = []
    names = list(model_names())
    for name in track(names, "count", len(names), "models"):
        space = load_space(name)
        layers = space.layers(space.largest, 1000)
        rows.append(
            {
                "model": name,
                "family": space.family,
                "resolution": space.largest.resolution,
                "params M": round(sum(map(count_params, layers)) / 1e6, 3),
                "MACs G": round(sum_macs(layers).total / 1e9, 3),
            }
        )
    return rows


def _spaces() -> list[dict[str, Any]]:
    from nas.family import load_space, space_names
    from nas.trellis import Graph

    rows = []
    for name in space_names():
        space = load_space(name)
        graph = Graph.of(space, 10)
        resolutions = space.positions[0].values
        rows.append(
            {
                "space": name,
                "resolution": f"{min(resolutions)}-{max(resolutions)}",
                "architectures": f"{graph.count:.2e}",
                "rows": len(graph.items()),
            }
        )
    return rows


def _devices() -> list[dict[str, Any]]:
    from nas.latency import describe_device

    d = describe_device("cpu")
    return [
        {
            "device": "cpu",
            "processor": d["processor"],
            "runtime": f"{d['runtime']} {d['runtime_version']}",
        }
    ]


def _tables() -> list[dict[str, Any]]:
    from nas.latency import saved_tables

    rows = []
    for folder, table in saved_tables():
        m, c = table.manifest, table.calibration
        rows.append(
            {
                "space": m["space"],
                "device": m["device"]["name"],
                "date": m["date"][:10],
                "rows": len(table.rows),
                "MAPE %": c.mape_percent,
                "p95 %": c.p95_percent,
                "tau": c.kendall_tau,
                "folder": folder.name,
            }
        )
    return rows


def _supernets() -> list[dict[str, Any]]:
    from nas.records import read_json
    from nas.supernet import ASSETS

    cards = [read_json(path) for path in sorted(ASSETS.glob("*/supernet.json"))]
    keys = ("space", "data", "largest_search_top1_percent", "smallest_search_top1_percent")
    return [{key.removesuffix("_top1_percent"): card[key] for key in keys} for card in cards]


def _runs() -> list[dict[str, Any]]:
    from nas.records import read_json

    rows = []
    for path in sorted(Path("runs").glob("*/settings.json")):
        s, done = read_json(path), path.parent / "run.json"
        w = read_json(done)["winner"] if done.exists() else None
        rows.append(
            {
                "run": str(path.parent),
                "space": s["space"],
                "budget": f"{s['budget_ms']:g} ms",
                "measured": f"{w['measured_ms']:.2f} ms" if w else "unfinished",
                "test": f"{w['test_top1_percent']:.1f} %" if w else "",
            }
        )
    return rows


_LISTINGS = {
    Listing.models: _models,
    Listing.spaces: _spaces,
    Listing.supernets: _supernets,
    Listing.devices: _devices,
    Listing.tables: _tables,
    Listing.runs: _runs,
}


def _architecture(
    what: str, space_name: str, classes: int | None, resolution: int | None = None
) -> tuple[Any, Any, int]:
    """The space, architecture and classes that ARCH (JSON or its file), RUN or MODEL stands for."""
    from dataclasses import replace

    from nas.family import load_space

    is_json = what.lstrip().startswith("{")
    path = Path("" if is_json else what)
    if is_json or path.is_file():
        space = load_space(space_name)
        architecture = space.parse(what if is_json else path.read_text(errors="replace"))
    elif what and path.is_dir():
        from nas.report import Run

        run = Run.load(path)
        space, classes = run.space, run.classes
        architecture = run.architecture(run.result["winner"])
    elif "/" in what or what.endswith(".json"):
        raise UsageError(
            f"there is no {what}", "give a run directory, or architecture JSON or its file"
        )
    else:
        space = load_space(what or space_name)
        architecture = space.largest
    if resolution:
        space = space.at(resolution)
        architecture = replace(architecture, resolution=resolution)
    return space, architecture, classes or (10 if ":" in space.name else 1000)


def _table(*columns: str) -> Table:
    grid = Table(box=None, header_style="dim", pad_edge=False)
    for i, column in enumerate(columns):
        last = i == len(columns) - 1  # where it is narrow, only the last column folds
        grid.add_column(column, justify="right" if i else "left", no_wrap=not last, overflow="fold")
    return grid


def _json(data: Any) -> None:
    print(json.dumps(data))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every error becomes one line and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, prog_name="vitnas", standalone_mode=False)
        if code == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except _WrongUsage as error:
        if "--json" in words:
            fix = f"{error.ctx.command_path} --help" if error.ctx else "vitnas --help"
            _json({"error": {"kind": "usage", "message": error.format_message(), "fix": fix}})
        else:
            error.show()
        sys.exit(error.exit_code)
    except VitnasError as error:
        if debug:
            traceback.print_exc()
        if "--json" in words:
            _json({"error": {"kind": error.kind, "message": error.message, "fix": error.fix}})
        else:
            print(f"vitnas: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            traceback.print_exc()
        print(
            "vitnas: interrupted; what was done is kept, the same command goes on "
            "(search and train: with --resume)",
            file=sys.stderr,
        )
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        fix = "run it again with --debug and report what it prints"
        if "--json" in words:
            _json({"error": {"kind": "internal", "message": message, "fix": fix}})
        else:
            print(f"vitnas: internal error: {message}; {fix}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
