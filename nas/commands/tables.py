"""Latency tables, and networks measured beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.budget import readable_ms
from nas.commands import (
    Classes,
    Device,
    DeviceOfRun,
    Json,
    Space,
    app,
    draw,
    figure_path,
    find_network,
    find_space,
    grid_of,
    out,
    print_json,
)
from nas.settings import DEVICE, Settings

if TYPE_CHECKING:
    from nas.latency.table import LatencyTable as Latencies


@app.command(epilog="Example: vitnas profile --device onnxruntime-cpu --space swin:micro")
def profile(
    space: Space = Settings.space,
    device: Device = DEVICE,
    classes: Classes = None,
    folder: Annotated[str, typer.Option("--out", help="Folder; default: the user's cache.")] = "",
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Visits of each row, default 5; more: less noise.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Stop after this long, keep what there is.")] = 1e6,
    context: Annotated[
        str, typer.Option(help="How rows are timed: network, isolated, stacked or added.")
    ] = "",
    sibling: Annotated[
        str, typer.Option("--from", help="Table of a sibling device to carry over.")
    ] = "",
    rows: Annotated[int, typer.Option(min=1, help="With --from: rows to measure of a kind.")] = 5,
    again: Annotated[bool, typer.Option("--again", help="Measure anew even if complete.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the latency table of a device.

    A campaign that was stopped goes on where it was.
    """
    from dataclasses import asdict

    from nas.latency.library import table_folder
    from nas.latency.profiling import profile as run_profile
    from nas.latency.table import LatencyTable
    from nas.runtimes import load_runtime

    the_space = find_space(space, classes)
    where = Path(folder) if folder else table_folder(the_space, load_runtime(device))
    own = where if folder or again else None
    table = run_profile(
        the_space,
        device,
        own,
        rounds,
        minutes,
        context,
        sibling=LatencyTable.load(Path(sibling)) if sibling else None,
        rows_per_kind=rows,
        again=again,
    )
    if as_json:
        return print_json(
            {
                "folder": str(where),
                "rows": len(table.rows),
                "manifest": table.manifest,
                "calibration": asdict(table.calibration),
            }
        )
    _show(table)
    out.print(f"table: {where}", soft_wrap=True)


def _show(table: Latencies) -> None:
    m, c = table.manifest, table.calibration
    unusable = [row for row in table.rows.values() if not row.usable]
    out.print(
        f"{len(table.rows)} rows of {m['space']} on {m['device']['processor']}, "
        f"{m['device']['runtime']} {m['device']['runtime_version']} ({m['source']}, rows timed "
        f"{m['context']}, {m['seconds']:.0f} s)"
    )
    out.print(
        f"on {c.held_out} other networks: mean error {c.mape_percent:.2f} % "
        f"({c.raw_mape_percent:.2f} % before calibration), p95 {c.p95_percent:.2f} %, "
        f"bias {c.bias_percent:+.2f} %, Kendall tau {c.kendall_tau:.3f}"
    )
    if p := m.get("port"):
        out.print(
            f"ported from {m['ported_from']['name']} by {p['fitted_on']} rows; on {p['held_out']} "
            f"other rows: mean error {p['mape_percent']:.1f} %, p95 {p['p95_percent']:.1f} %"
        )
    if unusable:
        out.print(f"{len(unusable)} layers do not run on it, e.g. {unusable[0].key}:")
        out.print(f"  {unusable[0].note}")


@app.command(epilog="Example: vitnas audit torch-cpu/swin:micro")
def audit(
    name: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="Folder, or DEVICE/SPACE of `vitnas list tables`."),
    ],
    other: Annotated[
        str, typer.Argument(metavar="[OTHER]", help="A table that this one must be no copy of.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Find what is wrong with a latency table.

    That is copies, slips, outliers, gaps and stale code.
    """
    from nas.families import load_space
    from nas.latency.audit import as_json as json_of
    from nas.latency.audit import audit as run_audit
    from nas.latency.audit import shortened
    from nas.latency.library import find_table

    table = find_table(name)
    own = table.manifest["source"] != "external"
    space = load_space(table.manifest["space"], table.task) if own else None
    findings = run_audit(table, find_table(other) if other else None, space=space)
    result = json_of(findings)
    if as_json:
        print_json(result)
    else:
        for finding in shortened(findings):
            style = "red" if finding.severity == "error" else "yellow"
            about = f" {finding.row}" if finding.row else ""
            out.print(finding.severity, style=style, end="")
            out.print(f" {finding.rule}:{about}", soft_wrap=True)
            out.print(f"  {finding.message}; {finding.fix}", soft_wrap=True)
        out.print(
            f"{len(table.rows)} rows of {name}: {result['errors']} errors, "
            f"{result['warnings']} warnings"
        )
    if result["errors"]:
        raise typer.Exit(1)


@app.command(name="import", epilog="Example: vitnas import lut.yaml --out tables/pixel1")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, nn-Meter JSON, or YAML.")],
    folder: Annotated[str, typer.Option("--out", help="Folder of the table.")],
    form: Annotated[
        str, typer.Option("--format", help="csv, nn-meter or once-for-all; default: by ending.")
    ] = "",
    unit: Annotated[str, typer.Option(help="Unit of the times, where the file has none.")] = "",
    device: Annotated[str, typer.Option(help="What the device is called.")] = "",
    as_json: Json = False,
) -> None:
    """Read a latency table of another project.

    It becomes an external one: to look at, not to search with.
    """
    from nas.latency.external import import_table

    table = import_table(file, form, unit, device)
    table.save(Path(folder))
    if as_json:
        return print_json({"folder": folder, "rows": len(table.rows), "manifest": table.manifest})
    out.print(f"{len(table.rows)} rows of {table.manifest['device']['name']}: {folder}")


@app.command(epilog="Example: vitnas measure runs/swin-micro-20ms")
def measure(
    what: Annotated[
        str, typer.Argument(metavar="ARCH|RUN|MODEL", help="Architecture JSON, run or model.")
    ],
    space: Space = Settings.space,
    device: DeviceOfRun = "",
    classes: Classes = None,
    rounds: Annotated[int, typer.Option(min=1, help="Visits, of three samples each.")] = 17,
    figure: Annotated[
        str, typer.Option("--out", help="Draw it by layer: a .png, .svg or .pdf file.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Measure an architecture end to end.

    It runs in a fresh process, and is shown beside its prediction by layer.
    """
    import numpy as np

    from nas.latency.end_to_end import measure_fresh
    from nas.progress import bar
    from nas.runtimes import VERBS

    path = figure_path(figure)
    the_space, architecture, runtime, table = find_network(what, space, device, classes)
    described = runtime.describe()
    with bar("measure", rounds, "rounds") as advance:
        (measured,) = measure_fresh(
            runtime.device, the_space, [architecture], rounds, layers=True, advance=advance
        )
    samples, verb = measured.samples, VERBS[runtime.source]
    result: dict[str, Any] = {
        "space": the_space.name,
        "id": architecture.id,
        "device": described,
        "source": runtime.source,
        "unit": runtime.unit,
        "samples": len(samples),
        "measured_ms": round(float(np.median(samples)), 4),
        "measured_p20_ms": round(float(np.percentile(samples, 20)), 4),
        "measured_p95_ms": round(float(np.percentile(samples, 95)), 4),
        "measured_min_ms": round(min(samples), 4),
        "measured_iqr_ms": round(float(np.subtract(*np.percentile(samples, (75, 25)))), 4),
        "wall_over_cpu": measured.wall_over_cpu,
        "predicted_ms": None,
        "layers": [
            {
                "layer": layer.path,
                "key": layer.key,
                "predicted_ms": round(table.cost(layer), 4) if table else None,
                "measured_ms": round(float(np.median(own)), 4),
            }
            for layer, own in zip(the_space.layers(architecture), measured.layers)
        ],
    }
    if table:
        predicted = table.predict(the_space, architecture)
        result["predicted_ms"] = round(predicted, 4)
        result["overhead_ms"] = table.calibration.overhead
        result["interval_ms"] = [round(ms, 4) for ms in table.interval(predicted, 0.95)]
    if as_json:
        print_json(result)
        return draw(path, "measured_layers", result, verb)
    unit, total = runtime.unit, result["measured_ms"]
    p20, p95, least = (readable_ms(result[f"measured_{of}_ms"]) for of in ("p20", "p95", "min"))
    out.print(
        f"{architecture.id} on {runtime.device}: {readable_ms(total)} {unit} {verb} (median of "
        f"{len(samples)}; p20 {p20}, p95 {p95}, min {least})"
    )
    if measured.wall_over_cpu > 1.1:
        out.print(
            f"the machine is busy: {measured.wall_over_cpu:.2f} times the processor time; measure "
            "again when it is quiet",
            style="yellow",
        )
    if table:
        low, high = result["interval_ms"]
        out.print(
            f"{readable_ms(predicted)} {unit} predicted ({100 * (predicted / total - 1):+.1f} %); "
            f"with 95 % confidence between {readable_ms(low)} and {readable_ms(high)}"
        )
    grid = grid_of("layer", "predicted", f"{verb} in order", "share")
    for row in result["layers"]:
        ms, measured_ms = row["predicted_ms"], row["measured_ms"]
        cells = ["" if ms is None else f"{readable_ms(ms, 3)} {unit}"]
        cells += [f"{readable_ms(measured_ms, 3)} {unit}", f"{100 * measured_ms / total:4.1f} %"]
        grid.add_row(row["layer"], *cells)
    out.print(grid)
    if not table:
        how = f"vitnas profile --device {runtime.device} --space {the_space.name}"
        why = f"there is no table yet ({how})"
        if ":" not in the_space.name:
            why = "tables are fitted to spaces, and this is a single model"
        out.print(f"no prediction: {why}")
    draw(path, "measured_layers", result, verb)
    if path:
        out.print(f"figure: {path}", soft_wrap=True)
