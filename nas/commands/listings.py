"""The command that lists models, spaces, supernets, devices, tables and runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.budget import readable_ms
from nas.commands import Json, app, grid_of, out, print_json


class Listing(StrEnum):
    """The things that can be listed."""

    models = "models"
    spaces = "spaces"
    supernets = "supernets"
    devices = "devices"
    tables = "tables"
    runs = "runs"


# What only --json shows, because 80 columns are few.
_ONLY_JSON = {
    Listing.tables: {"source", "rows", "p95 %", "bias %", "tau", "folder"},
    Listing.runs: {"budgets"},
    Listing.supernets: {"space"},
}


@app.command(name="list", epilog="Example: vitnas list models")
def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the runs that are listed, or one of them.")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List spaces, devices, tables, models or runs."""
    rows = _LISTINGS[what]() if what in _LISTINGS else _runs(folder)
    if as_json:
        return print_json({what.value: rows})
    if not rows:
        return out.print(f"no {what.value} yet")
    shown = [{k: v for k, v in row.items() if k not in _ONLY_JSON.get(what, ())} for row in rows]
    grid = grid_of(*shown[0])
    for column, value in zip(grid.columns, shown[0].values()):
        column.justify = "left" if isinstance(value, str) else "right"
    for row in shown:
        row = row | {"date": row["date"][:10]} if "date" in row else row
        cells = (
            f"{v:,.3f}" if isinstance(v, float) else "-" if v is None else str(v)
            for v in row.values()
        )
        grid.add_row(*cells)
    out.print(grid)


def _models() -> list[dict[str, Any]]:
    from nas.families import load_space, model_names
    from nas.network.macs import sum_macs, sum_params
    from nas.progress import track

    rows = []
    names = list(model_names())
    for name in track(names, "count", len(names), "models"):
        space = load_space(name)
        layers = space.layers(space.largest)
        rows.append(
            {
                "model": name,
                "family": space.family,
                "resolution": space.largest.resolution,
                "params M": round(sum_params(layers) / 1e6, 3),
                "MACs G": round(sum_macs(layers).total / 1e9, 3),
            }
        )
    return rows


def _spaces() -> list[dict[str, Any]]:
    from nas.families import load_space, space_names
    from nas.progress import track
    from nas.trellis.graph import Graph

    rows = []
    names = list(space_names())
    for name in track(names, "count", len(names), "spaces"):
        space = load_space(name)
        graph = Graph.of(space)
        resolutions = space.positions[0].values
        rows.append(
            {
                "space": name,
                "resolution": f"{resolutions[0]}-{resolutions[-1]}",
                "architectures": f"{graph.count:.2e}",
                "rows": len(graph.items()),
            }
        )
    return rows


def _devices() -> list[dict[str, Any]]:
    """A row for each device, with its version, or the reason why it cannot be measured here."""
    from nas.errors import VitnasError
    from nas.runtimes import runtimes

    rows = []
    for name, factory in runtimes().items():
        if name.endswith("://"):
            ready = f"an address: {name}{factory.example}"
        else:
            try:
                described = factory(name).describe()
                ready = f"{described['runtime']} {described['runtime_version']}"
            except VitnasError as error:
                ready = f"no: {error}"
        rows.append({"device": name, "kind": factory.kind, "ready": ready})
    return rows


def _tables() -> list[dict[str, Any]]:
    """A row for each table: its state, and whether a search here would take it."""
    from nas.latency.library import is_taken, saved_tables
    from nas.runtimes import VERBS

    rows = []
    for folder, table in saved_tables():
        m, c = table.manifest, table.calibration
        states = ["stale"] * (not table.current) + ["altered"] * table.altered
        states += ["busy"] * table.busy + ["noisy"] * (table.wanting and table.current)
        taken = is_taken(folder, table)
        rows.append(
            {
                "table": f"{m['device']['name']}/{m['space']}",
                "source": ", ".join([m["source"], *states]),
                "state": ", ".join(
                    [VERBS[m["source"]] * (m["source"] != "measured"), *states]
                ).strip(", ")
                or "measured",
                "date": m["date"],
                "used": {True: "yes", False: "no", None: "?"}[taken],
                "rows": len(table.rows),
                "MAPE %": c.mape_percent,
                "p95 %": c.p95_percent,
                "tau": c.kendall_tau,
                **{"bias %": c.bias_percent, "folder": str(folder)},
            }
        )
    return rows


def _supernets() -> list[dict[str, Any]]:
    from nas.records import read_json
    from nas.tasks import load_task
    from nas.training.supernet import ASSETS, shipped_names

    rows = []
    for name in shipped_names():
        card = read_json(ASSETS / name / "supernet.json")
        score = f"search_{load_task(card).metric.key}"
        scores = {f"{size}_search": card.get(f"{size}_{score}") for size in ("largest", "smallest")}
        rows.append({"name": name, "space": card["space"], "data": card["data"], **scores})
    return rows


def _runs(folder: Path) -> list[dict[str, Any]]:
    """A row for each budget of each run in a folder, or of the run that the folder is."""
    from nas.errors import RunError
    from nas.report.saved_run import read_settings
    from nas.run_record import RunRecord

    rows = []
    try:
        found = sorted([*folder.glob("settings.json"), *folder.glob("*/settings.json")])
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror}", "give another --out") from None
    for path in found:
        done = path.with_name("run.json")
        try:
            settings = read_settings(path)
            record = RunRecord.read(done) if done.exists() else None
        except RunError as error:  # the other runs are listed all the same
            print(f"vitnas: {error}", file=sys.stderr)
            continue
        answered = [(budgets, "unfinished", "") for budgets in settings.budgets]
        if record is not None:
            how = "" if record.verb == "measured" else f" {record.verb}"
            answered = [
                (budgets, f"{readable_ms(won.measured_ms)} ms{how}", f"{won.test_percent:.1f} %")
                for budgets, won in ((a.budgets, a.winner) for a in record.answers)
            ]
        for budgets, measured, test in sorted(answered, key=lambda row: row[0][settings.device]):
            rows.append(
                {
                    "run": str(path.parent),
                    "space": settings.space,
                    "budget": " & ".join(f"{ms:g} ms" for ms in budgets.values()),
                    "measured": measured,
                    "test": test,
                    "budgets": budgets,
                }
            )
    return rows


_LISTINGS = {
    Listing.models: _models,
    Listing.spaces: _spaces,
    Listing.supernets: _supernets,
    Listing.devices: _devices,
    Listing.tables: _tables,
}
