"""How many architectures that fit a tight budget can be proposed in a second?

    OMP_NUM_THREADS=1 python experiments/search_quality/throughput.py

For every shipped space: architectures, edges, seconds to build, and paths per second of
`Within.sample` at the budget that a uniform draw from the space meets once in 1e9 (found by
bisection on `within(budget).count / graph.count`; a smaller space gets the budget that a thousand
of its architectures fit). For a few spaces plain rejection beside it, at budgets that 10 %, 1 % and
0.1 % of the space fit: uniform draws from the whole space by the same sampler, their costs looked
up all at once, those over the budget thrown away. Costs are calibrated milliseconds where a table
of `torch-cpu` ships, else MACs of layers, whose counting is no part of the seconds to build. Spaces
whose graph equals an earlier one's (the larger models of a family) are only built.

All times are CPU time of one thread, so that other work on the machine disturbs them less; medians
of interleaved rounds, except for building, which is timed once for each space, cold. About 25
minutes, most of them for counting MACs. Expected on a core of 2023: 1e5 feasible paths per second
or more in every space; a second or two to build the largest, tenths of one for most; rejection some
ten times slower at 10 %, a thousand times at 0.1 %. The recorded numbers are of a shared machine
with a load of 6 to 8 on its two cores; on quiet ones they are better. Writes `throughput.json` and
`throughput.png` (where rejection is not run, its wait follows from its rate) beside this file.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from nas.families import load_space, space_names
from nas.latency.library import shipped_folder
from nas.latency.table import LatencyTable
from nas.network.macs import count_macs
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph
from nas.trellis.trellis import Trellis
from nas.trellis.within import Within

OUT = Path(__file__).with_suffix(".json")
COMPARED = ("swin:micro", "efficientvit:b3", "vit:base")
ACCEPTANCES = (0.1, 0.01, 0.001)
TIGHT, FEWEST = 1e-9, 1000  # acceptance, and architectures that are left in a small space
DRAWS, ROUNDS = 20_000, 5


def main() -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("one thread is meant: OMP_NUM_THREADS=1 python ...")
    result: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "load_at_start": os.getloadavg()[0],
        },
        "draws": DRAWS,
        "rounds": ROUNDS,
        "spaces": {},
    }
    seen: dict[bytes, str] = {}
    for name in space_names():
        graph, record = build(name)
        result["spaces"][name] = record
        same = seen.setdefault(fingerprint(graph), name)
        if same == name:
            measure(name, graph, record)
        else:
            record["same_graph_as"] = same
        print(name, json.dumps(record), flush=True)
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    draw(result)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


def fingerprint(graph: Graph) -> bytes:
    columns = [np.stack([level.source, level.value, level.target]) for level in graph.levels]
    return b"|".join(column.tobytes() for column in columns)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    gc.collect()
    start = time.process_time()
    made = work()
    return made, time.process_time() - start


def build(name: str) -> tuple[Graph, dict[str, Any]]:
    """The graph of a space for the first time; its trellis and budget with costs from a lookup."""
    space = load_space(name, Classification(10 if table_folder(name).exists() else 1000))
    graph, graph_s = timed(lambda: Graph.of(space))
    lookup: dict[str, float] = {}
    _, trellis_s = timed(lambda: Trellis(graph, lambda layer: lookup.get(layer.key, 1.0)))
    return graph, {
        "architectures": graph.count,
        "edges": sum(len(level.source) for level in graph.levels),
        "layers": len(graph.items()),
        "graph_s": graph_s,
        "trellis_s": trellis_s,
    }


def measure(name: str, graph: Graph, record: dict[str, Any]) -> None:
    costs, fixed = table_or_macs(name)
    record["costs"] = "MACs" if costs is macs else "ms"
    trellis, record["costs_s"] = timed(lambda: Trellis(graph, costs, fixed))
    target = max(TIGHT, FEWEST / graph.count)
    tight = at_acceptance(trellis, target)
    _, record["within_s"] = timed(lambda: trellis.within(tight.budget))
    record["build_s"] = record["graph_s"] + record["trellis_s"] + record["within_s"]
    record |= {"budget": tight.budget, "acceptance": tight.count / graph.count}
    runs: dict[str, Callable[[np.random.Generator], int]] = {"tight": lambda rng: drawn(tight, rng)}
    whole = trellis.within(trellis.slowest * (1 + 1e-6))
    for share in ACCEPTANCES if name in COMPARED else ():
        some = at_acceptance(trellis, share)
        runs[f"trellis {share}"] = lambda rng, some=some: drawn(some, rng)
        runs[f"rejection {share}"] = lambda rng, some=some: kept(whole, some.budget, rng)
    rates: dict[str, list[float]] = {key: [] for key in runs}
    for seed in range(ROUNDS):
        for key, run in runs.items():
            found, seconds = timed(lambda run=run, seed=seed: run(np.random.default_rng(seed)))
            rates[key].append(found / seconds)
    found_per_s = record["feasible_per_s"] = {key: median(own) for key, own in rates.items()}
    if name in COMPARED:
        record["trellis_over_rejection"] = {
            str(s): found_per_s[f"trellis {s}"] / found_per_s[f"rejection {s}"] for s in ACCEPTANCES
        }


def table_folder(name: str) -> Path:
    return shipped_folder() / "torch-cpu" / name.replace(":", "-")


def macs(layer: Layer) -> float:
    return float(count_macs(layer).total)


def table_or_macs(name: str) -> tuple[Callable[[Layer], float], float]:
    if not table_folder(name).exists():
        return macs, 0.0
    table = LatencyTable.load(table_folder(name))
    return table.cost, table.calibration.overhead


def at_acceptance(trellis: Trellis, share: float) -> Within:
    """The paths within the largest budget that less than this share of all meet."""
    low, high = trellis.fastest, trellis.slowest
    for _ in range(16):
        middle = (low + high) / 2
        met = trellis.within(middle).count / trellis.graph.count
        low, high = (middle, high) if met < share else (low, middle)
    return trellis.within(low)


def drawn(within: Within, rng: np.random.Generator) -> int:
    return len(within.sample(DRAWS, rng))


def kept(whole: Within, budget: float, rng: np.random.Generator) -> int:
    paths = whole.sample(DRAWS, rng)
    return int((whole.trellis.costs_of(paths) <= budget).sum())


def draw(result: dict[str, Any]) -> None:
    """Bars of feasible paths per second, by budget."""
    figure, panels = plt.subplots(1, len(COMPARED), figsize=(10, 3.4), sharey=True)
    ticks = [*(f"{100 * share:g} %" for share in ACCEPTANCES), "1e-9"]
    for panel, name in zip(panels, COMPARED):
        record = result["spaces"][name]
        rates, fit = record["feasible_per_s"], record["acceptance"]
        trellis = [*(rates[f"trellis {share}"] for share in ACCEPTANCES), rates["tight"]]
        rejection = [rates[f"rejection {share}"] for share in ACCEPTANCES]
        ticks[-1] = f"{fit:.0e}".replace("e-0", "e-")
        at = np.arange(len(ticks))
        panel.bar(at - 0.2, trellis, 0.38, color="#2563a8", label="trellis")
        panel.bar(at[:-1] + 0.2, rejection, 0.38, color="#d9a441", label="rejection")
        for x, rate in [*zip(at - 0.2, trellis), *zip(at + 0.2, rejection)]:
            panel.text(x, rate * 1.12, short(rate), ha="center", fontsize=7)
        wait = 1 / (rejection[0] / ACCEPTANCES[0] * fit)
        panel.text(at[-1] + 0.06, 14, f"one in\n{wait:,.0f} s", fontsize=7)
        panel.set(xticks=at, xticklabels=ticks, yscale="log", ylim=(10, 3e6), title=name)
        panel.set_xlim(-0.6, at[-1] + 0.7)
        panel.set_xlabel("share of the space that fits")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("feasible architectures per second")
    panels[0].legend(frameon=False, loc="upper right", fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(OUT.with_suffix(".png"), dpi=150)


def short(rate: float) -> str:
    return f"{rate / 1000:.0f}k" if rate >= 10_000 else f"{rate:,.0f}"


if __name__ == "__main__":
    main()
