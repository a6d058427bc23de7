"""Commands about one network: its parts, its costs, and its accuracy in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.budget import readable_ms
from nas.commands import (
    Classes,
    Data,
    DeviceOfRun,
    Json,
    Space,
    Supernet,
    app,
    draw,
    figure_path,
    find_network,
    grid_of,
    out,
    print_json,
)
from nas.errors import UsageError
from nas.settings import Settings
from nas.size import Size, read_size, sides
from nas.space.family import LARGEST


def _size(text: str) -> Size:
    """The size that `--resolution` names."""
    size = read_size(text)
    if size is None or not all(1 <= side <= LARGEST for side in sides(size)):
        raise typer.BadParameter(
            f"{text!r} is no side from 1 to {LARGEST}, and no HEIGHTxWIDTH of such"
        )
    return size


@app.command(epilog="Example: vitnas inspect vit_base_patch16_224 --resolution 384")
def inspect(
    what: Annotated[
        str, typer.Argument(metavar="[ARCH|RUN|MODEL]", help="Default: the largest of the space.")
    ] = "",
    space: Space = Settings.space,
    resolution: Annotated[
        Any,
        typer.Option(parser=_size, metavar="PIXELS", help="E.g. 384 or 256x512; default: its own."),
    ] = None,
    device: DeviceOfRun = "",
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """List parameters, MACs and latency by layer."""
    from nas.network.macs import count_macs, count_params, sum_params

    the_space, architecture, _, table = find_network(what, space, device, classes, resolution)
    rows: list[dict[str, Any]] = [
        {
            "layer": layer.path,
            "key": layer.key,
            "params": count_params(layer),
            "macs": count_macs(layer).total,
            "predicted_ms": round(table.cost(layer), 4) if table else None,
        }
        for layer in the_space.layers(architecture)
    ]
    plain = the_space.name.partition("@")[0]
    result: dict[str, Any] = {
        "name": f"{plain} {architecture.id}" if ":" in plain else plain,
        "resolution": architecture.resolution,
        "params": sum_params(the_space.layers(architecture)),
        "macs": sum(row["macs"] for row in rows),
        "predicted_ms": round(table.predict(the_space, architecture), 4) if table else None,
        "layers": rows,
    }
    if as_json:
        return print_json(result)
    size = f"{result['resolution']} {the_space.parts.unit}"
    out.print(f"{result['name']} at {size}, {the_space.task.outputs} outputs")
    grid = grid_of("layer", "params", "MACs", "predicted")
    for row in [*rows, {"layer": "sum", **result}]:
        ms = row["predicted_ms"]
        grid.add_row(
            row["layer"],
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:,.2f} M",
            "not measured" if ms is None else f"{readable_ms(ms, 3)} ms",
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
    """Show how MACs grow with the resolution."""
    names = _items(models, "--models", "names", "vit_base_patch16_224")
    sides = [_pixels(item) for item in _items(resolutions, "--resolutions", "pixels", "224,448")]
    path = figure_path(figure)
    from nas.report.macs import macs_by_resolution

    result = macs_by_resolution(names, sides)
    if as_json:
        print_json(result)
        return draw(path, "macs", result)
    grid = grid_of("MACs of one image", "products", "attention", "whole model", "share")
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
    draw(path, "macs", result)
    if path:
        out.print(f"figure: {path}", soft_wrap=True)


@app.command(epilog="Example: vitnas quantize runs/swin-micro-20ms")
def quantize(
    what: Annotated[
        str,
        typer.Argument(metavar="[RUN|ARCH|MODEL]", help="Default: the largest of the space."),
    ] = "",
    space: Space = Settings.space,
    data: Data = Settings.data,
    supernet: Supernet = Settings.supernet,
    weights: Annotated[
        str, typer.Option(help="Checkpoint of a named model: a file, or a name on timm's hub.")
    ] = "",
    images: Annotated[
        int, typer.Option(min=10, help="Samples (images) of the search split.")
    ] = 400,
    calibration: Annotated[int, typer.Option(min=1, help="Training samples for the ranges.")] = 64,
    train: Annotated[
        int, typer.Option(min=0, help="Images to train the int8 network on, into --out.")
    ] = 0,
    rate: Annotated[
        float, typer.Option(min=1e-9, max=1.0, help="Learning rate of --train.")
    ] = 1e-4,
    folder: Annotated[str, typer.Option("--out", help="Write the int8 network here.")] = "",
    as_json: Json = False,
) -> None:
    """Compare a network in int8 with float32.

    It gives the accuracy by clipping method, and what each layer costs.
    """
    import torch

    from nas.quantization import quantize as run_quantize
    from nas.saved_network import subject

    network, images_of = subject(what, space, data, supernet, weights)
    torch.set_num_threads(1)
    result = run_quantize(
        network,
        images_of,
        images=images,
        calibration=calibration,
        train=train,
        rate=rate,
        out=Path(folder) if folder else None,
    )
    if as_json:
        return print_json(result)
    metric = network.space.task.metric
    grid = grid_of("ranges", f"search {metric.heading or metric.name}", "answers changed")
    grid.add_row("float32", f"{result['fp32'][metric.key]:.1f} %", "")
    for method, row in result["methods"].items():
        changed = row["changed_percent"]
        changed = "" if changed is None else f"{changed:.1f} %"
        grid.add_row(f"int8 {method}", f"{row[metric.key]:.1f} %", changed)
    out.print(grid)
    ms = result["measured_ms"]
    out.print(
        f"measured, torch eager, one thread: float32 {readable_ms(ms['fp32'])} ms, "
        f"int8 {readable_ms(ms['int8'])} ms"
    )
    out.print(
        "relative squared error of a layer's output by method, and of the logits "
        "if it alone is int8"
    )
    methods = list(result["layers"][0]["error"])
    grid = grid_of("layer", *methods, "chosen", "logits")
    for row in result["layers"]:
        errors = (f"{row['error'][method]:.1e}" for method in methods)
        grid.add_row(row["layer"], *errors, row["method"], f"{row['logit_error']:.1e}")
    out.print(grid)
    for name, difference in result.get("exported", {}).items():
        out.print(f"{Path(folder) / name} (largest difference of a logit {difference:.1g})")
    if result.get("saturates"):
        from nas.export import SATURATED

        out.print(SATURATED, style="yellow")


def _items(text: str, option: str, what: str, example: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(
            f"{option} takes {what} separated by commas, got {text!r}", f"e.g. {example}"
        )
    return items


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST:
        raise UsageError(
            f"--resolutions takes pixels from 1 to {LARGEST}, got {text!r}", "e.g. 224,448"
        )
    return int(text)
