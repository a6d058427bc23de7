"""What a busy machine does to latency tables, and which estimator beats it.

    python experiments/busy_machine.py [--space swin:micro] [--loads none,loop,copy] [--keep FOLDER]

It measures the table of torch-cpu with nothing beside it, and then with one other busy process on
every core (pinned by `sched_setaffinity`), each time from nothing: `loop` counts in Python and
takes time only, `copy` copies 64 MB to and fro and takes caches and memory, too. Beside a load it
stops after twice the time of the quiet table. It prints (1) the error that each table states, its
rounds and seconds, and what disturbed it: the share of samples that were held up, stolen time of
the virtual machine, how much the speed of the machine wandered, and the jitter that is left; and
(2) what the error would be with other estimators, from the same samples. Both are written to
`experiments/results/busy_machine.csv` and `busy_machine_estimators.csv`.

On two idle cores 4 to 6 minutes. Expected: a stated mean error of at most 2 % without a load and
2.5 % beside one; by the median of wall times, several times that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nas.errors import TableError
from nas.families import load_space
from nas.latency.fit import Calibration
from nas.latency.noise import steadied, undisturbed
from nas.latency.profiling import profile
from nas.latency.protocols import samples_by_row
from nas.records import Journal, write_csv
from nas.space.family import SearchSpace

RESULTS = Path(__file__).parent / "results"
Visits = dict[str, list[list[tuple[float, float]]]]

ESTIMATORS: dict[str, Callable[[np.ndarray], float]] = {
    "wall, median": lambda s: float(np.median(s[:, 0])),
    "wall, 20th percentile": lambda s: float(np.percentile(s[:, 0], 20)),
    "wall, least": lambda s: float(s[:, 0].min()),
    "processor, median": lambda s: float(np.median(s[:, 1])),
    "processor, 20th percentile": lambda s: float(np.percentile(s[:, 1], 20)),
    "processor, least": lambda s: float(s[:, 1].min()),
    "not held up, median": lambda s: float(np.median(undisturbed(s)[:, 0])),
}


def occupy(kind: str, core: int) -> None:
    """Keep a core busy until this process is ended."""
    os.sched_setaffinity(0, {core})
    if kind == "copy":
        a, b = np.ones(8 << 20), np.empty(8 << 20)
        while True:
            np.copyto(b, a)
    count = 0
    while True:
        count += 1


def stolen_s() -> float:
    """Seconds that the host has taken from this virtual machine, all cores together."""
    ticks = int(Path("/proc/stat").read_text().split()[8])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(space: SearchSpace, folder: Path, load: str, limit_s: float) -> dict[str, object]:
    """Measure a table beside a load; what it states of itself, and what disturbed it."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if load != "none" else []
    others = [context.Process(target=occupy, args=(load, c), daemon=True) for c in cores]
    for other in others:
        other.start()
    time.sleep(3 if others else 0)  # they import numpy first
    start, stolen = time.monotonic(), stolen_s()
    try:
        try:
            table = profile(space, folder=folder, minutes=limit_s / 60)
        except TableError:  # not even three rounds in that time: busier than the load alone
            table = profile(space, folder=folder, rounds=3)
    finally:
        for other in others:
            other.terminate()
    seconds, c = time.monotonic() - start, table.calibration
    order = read(folder)[0]
    wander, jitter = _wander(order)
    return {
        "load": load,
        "MAPE %": c.mape_percent,
        "p95 %": c.p95_percent,
        "bias %": c.bias_percent,
        "tau": c.kendall_tau,
        "noise %": table.manifest["noise_percent"],
        "rounds": table.manifest["rounds"],
        "seconds": round(seconds, 1),
        "held up %": table.manifest["held_up_percent"],
        "wall / CPU of networks": _waiting(order),
        "stolen %": round(100 * (stolen_s() - stolen) / seconds, 2),
        "wander %": wander,
        "jitter %": jitter,
        "processor": table.manifest["device"]["processor"],
        "date": table.manifest["date"],
    }


def read(folder: Path) -> tuple[list[tuple[str, list]], list[str]]:
    """The visits of a campaign in their order, and its reference networks."""
    order, chosen = [], []
    for record in Journal(folder / "samples.jsonl").read()[1:]:
        order += record.get("samples", {}).items()
        chosen += record.get("chosen", [])
    return order, chosen


def _waiting(order: list) -> float:
    samples = np.array([s for name, v in order if name.startswith("network") for s in v])
    return round(float(np.median(samples[:, 0] / samples[:, 1])), 2)


def _wander(order: list) -> tuple[float, float]:
    """The spread in percent of the machine's slow changes, and of visits when these are out."""
    raw = defaultdict(list)
    for name, visit in order:
        raw[name].append(visit)
    before, after = _spread(raw), _spread(steadied(order))
    return round(100 * max(before**2 - after**2, 0.0) ** 0.5, 2), round(100 * after, 2)


def _spread(visits: Visits) -> float:
    """The standard deviation of what visits take of the processor, beside others of the piece."""
    logs = [np.log([np.sum(v, 0)[1] for v in own]) for own in visits.values() if len(own) > 1]
    return float(np.concatenate([own - np.median(own) for own in logs]).std())


def estimators(space: SearchSpace, folder: Path, load: str) -> list[dict[str, object]]:
    """The error of tables that other estimators make of the same samples."""
    order, chosen = read(folder)
    raw = defaultdict(list)
    for name, visit in order:
        raw[name].append(visit)
    found = []
    for taken_out, visits in (("no", raw), ("yes", steadied(order))):
        for name, estimator in ESTIMATORS.items():
            c = _calibrated(space, visits, chosen, estimator)
            found.append(
                {"load": load, "estimator": name, "slow seconds taken out": taken_out,
                 "MAPE %": c.mape_percent, "p95 %": c.p95_percent, "tau": c.kendall_tau}
            )  # fmt: skip
    return found


def _calibrated(space: SearchSpace, visits: Visits, chosen: list[str], estimator) -> Calibration:
    rows = {key: estimator(np.array(own)) for key, own in samples_by_row(space, (), visits).items()}
    sums, measured = [], []
    for text in chosen:
        own: dict[str, float] = defaultdict(float)
        for layer in space.layers(space.parse(text)):
            own[layer.key.partition("(")[0]] += rows[layer.key]
        sums.append(own)
        measured.append(estimator(np.array([s for v in visits[f"network {text}"] for s in v])))
    return Calibration.fit_kinds(sums, measured, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="swin:micro")
    parser.add_argument("--loads", default="none,loop,copy")
    parser.add_argument("--keep", default="", help="folder for the samples; default: a new one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the two results")
    options = parser.parse_args()
    root = Path(options.keep or tempfile.mkdtemp(prefix="busy-machine-"))
    space = load_space(options.space)
    tables, judged, limit_s = [], [], 100.0
    for load in options.loads.split(","):
        tables.append(measure(space, root / load, load, limit_s))
        if load == "none":
            limit_s = 2 * float(tables[0]["seconds"])
        judged += estimators(space, root / load, load)
        print(json.dumps(tables[-1]), flush=True)
    for row in judged:
        print(*row.values(), sep="\t")
    write_csv(options.out / "busy_machine.csv", tables)
    write_csv(options.out / "busy_machine_estimators.csv", judged)


if __name__ == "__main__":
    main()
