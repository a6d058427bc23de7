"""How far predictions are from whole networks, by runtime, space and way of timing rows.

    python experiments/table_error/measure.py [--devices torch-cpu,onnxruntime-cpu]
        [--spaces swin:micro,vit:micro,efficientvit:micro]
        [--contexts network,isolated,stacked,added]
        [--rounds 12]

Segmenters are spaces like others: --spaces efficientvit:seg-micro,swin:seg-micro.

For each it measures a latency table (kept in the user's cache, so that a stopped run goes on) and
judges it on 30 networks that it was not fitted to, spread over the latency range. Of all tables
that were ever measured so, here or where the files come from, it writes beside itself
`networks.csv` (every network: sum of its rows, prediction, measurement), `summary.csv` and
`scatter.png`. On two cores one to three minutes a table; with ONNX Runtime, the first time, about a
second more for each row, to export it.

Expected, on a quiet machine: mean error 1-2 % with torch, 2-3 % with ONNX Runtime.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt

from nas.families import load_space
from nas.latency.library import cache_folder
from nas.latency.profiling import profile
from nas.latency.table import LatencyTable
from nas.runtimes import load_runtime

HERE = Path(__file__).parent
COLUMNS = {
    "raw MAPE %": "raw_mape_percent",
    "MAPE %": "mape_percent",
    "p95 %": "p95_percent",
    "bias %": "bias_percent",
    "tau": "kendall_tau",
}


def networks(table: LatencyTable) -> list[dict[str, object]]:
    """Every reference network of a table, predicted and measured."""
    space = load_space(table.manifest["space"])
    rows = []
    for run in table.references:
        predicted = table.predict(space, space.parse(run.architecture))
        rows.append(
            {
                "use": run.use,
                "sum_ms": run.sum,
                "predicted_ms": round(predicted, 5),
                "measured_ms": run.median,
                "measured_p20_ms": run.p20,
                "measured_iqr_ms": run.iqr,
                "architecture": run.architecture,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="torch-cpu,onnxruntime-cpu")
    parser.add_argument("--spaces", default="swin:micro,vit:micro,efficientvit:micro")
    parser.add_argument("--contexts", default="", help="default: that of the device")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    root = cache_folder().parent / "table_error"
    for device in options.devices.split(","):
        for name in options.spaces.split(","):
            for context in (options.contexts or load_runtime(device).context).split(","):
                folder = root / device / f"{name.replace(':', '-')}-{context}"
                profile(load_space(name), device, folder, options.rounds, context=context)
    summary, details = [], []
    for manifest in sorted(root.glob("*/*/manifest.toml"), reverse=True):
        table = LatencyTable.load(manifest.parent)
        m = table.manifest
        where = {"device": m["device"]["name"], "space": m["space"], "context": m["context"]}
        found = {title: m["calibration"][key] for title, key in COLUMNS.items()}
        summary.append(
            {
                **where,
                "rows": len(table.rows),
                "held out": m["calibration"]["held_out"],
                **found,
                "factors of kinds": bool(m["calibration"]["factors"]),
                "rounds": m["rounds"],
                "wall / CPU": m["wall_over_cpu"],
                "seconds": m["seconds"],
                "date": m["date"],
                "processor": m["device"]["processor"],
            }
        )
        details += [{**where, **row} for row in networks(table)]
        print(*where.values(), *(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    summary, details = earlier("summary.csv", summary), earlier("networks.csv", details)
    for file, rows in (("summary.csv", summary), ("networks.csv", details)):
        with (HERE / file).open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    draw(summary, details)


def earlier(file: str, rows: list[dict]) -> list[dict]:
    """Rows of this machine, then those in a file that are of tables which it has not measured."""
    with (HERE / file).open(newline="") as lines:
        before = list(csv.DictReader(lines))
    own = {tuple(row[key] for key in ("device", "space", "context")) for row in rows}
    return rows + [r for r in before if (r["device"], r["space"], r["context"]) not in own]


def draw(summary: list[dict], details: list[dict]) -> None:
    """Measured over predicted for the held-out networks, the best context of each table."""
    best: dict[tuple, dict] = {}
    for row in summary:
        key = (row["device"], row["space"])
        if key not in best or float(row["MAPE %"]) < float(best[key]["MAPE %"]):
            best[key] = row
    devices = list(dict.fromkeys(device for device, _ in best))
    spaces = list(dict.fromkeys(space for _, space in best))
    size = (3.1 * len(spaces), 3.1 * len(devices))
    figure, grid = plt.subplots(
        len(devices), len(spaces), figsize=size, squeeze=False, layout="constrained"
    )
    for (device, space), row in best.items():
        axes = grid[devices.index(device)][spaces.index(space)]
        own = [d for d in details if all(d[k] == row[k] for k in ("device", "space", "context"))]
        held = [d for d in own if d["use"] == "held-out"]
        x, y = ([float(d[key]) for d in held] for key in ("measured_ms", "predicted_ms"))
        axes.plot([min(x), max(x)], [min(x), max(x)], color="#9aa5b1", linewidth=1)
        axes.plot(x, [float(d["sum_ms"]) for d in held], ".", color="#d9a441", label="sum of rows")
        axes.plot(x, y, ".", color="#2563a8", label="calibrated")
        axes.set_title(f"{device}, {space}\n{row['context']}: {float(row['MAPE %']):.1f} %, "
                       f"tau {float(row['tau']):.2f}", fontsize=8)  # fmt: skip
        axes.set(xlabel="measured [ms]", ylabel="predicted [ms]")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(HERE / "scatter.png", dpi=150)


if __name__ == "__main__":
    main()
