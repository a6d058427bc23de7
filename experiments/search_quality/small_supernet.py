"""A small part of the shipped supernet, every architecture of it scored: a problem whose optimum is
known although its accuracies are real.

`python experiments/search_quality/small_supernet.py` (half an hour on two cores) writes
`small_supernet.csv`: 2,160 architectures of `swin:micro` at 112 px (all heads; MLP ratio 2 or 4;
sparsity 0, 40 or 80 %; one or two pairs of blocks in the last stage), each with its accuracy on 400
images of the search split and its latency by the shipped table of torch on the CPU. Killed, it goes
on where it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.latency.library import shipped_folder
from nas.latency.table import LatencyTable
from nas.progress import bar
from nas.records import Journal
from nas.space.architecture import Stage
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.family import SearchSpace
from nas.training.supernet import load_supernet, supernet_folder
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis

HERE = Path(__file__).parent
WIDTHS = ((48,), (96,), (128, 192))
DEPTHS = (1, 1, 2)
HEADS = (3, 6, 12)


def small_space() -> SearchSpace:
    whole = load_space("swin:micro")
    block = dict(dict(whole.domain.domains)["stages"].items[0].domains)["blocks"].items[0]
    stages = []
    for widths, depth, heads in zip(WIDTHS, DEPTHS, HEADS):
        domains = dict(block.domains) | {
            "heads": Choice(heads), "mlp_ratio": Choice(2, 4), "sparsity": Choice(80, 40, 0),
        }  # fmt: skip
        blocks = Repeat(Space(block.of, **domains), Choice(*range(1, depth + 1)))
        stages.append(Space(Stage, width=Choice(*widths), blocks=blocks))
    domain = Space(whole.domain.of, resolution=Choice(112), stages=Fixed(*stages))
    return SearchSpace(whole.name, domain, whole.parts, whole.task)


def small_trellis(space: SearchSpace) -> Trellis:
    table = LatencyTable.load(shipped_folder() / "torch-cpu" / "swin-micro")
    return Trellis(Graph.of(space), table.cost, fixed=table.calibration.overhead)


def main() -> None:
    space, data = small_space(), load_data("scenes")
    trellis = small_trellis(space)
    everything = Trellis(trellis.graph, lambda _: 0.0).within(0.0, ticks=1)
    network, _ = load_supernet(supernet_folder("swin:micro", data), "swin:micro", data)
    evaluator = Evaluator(network, data, data.search, 400, reuse=2**30)
    paths = np.unique(everything.sample(40 * trellis.graph.count, np.random.default_rng(0)), axis=0)
    assert len(paths) == trellis.graph.count
    by_id = {(a := decode(space, path)).id: (a, path) for path in paths}
    journal = Journal(HERE / "small_supernet.jsonl")
    known = {record["id"]: record["top1_percent"] for record in journal.read()}
    missing = [a for a, _ in by_id.values() if a.id not in known]
    with bar("enumerate", len(missing), "networks") as advance:
        for a in evaluator.plan(missing):
            known[a.id] = evaluator.percent(a)
            journal.append({"id": a.id, "top1_percent": known[a.id]})
            advance(1)
    costs = trellis.costs_of(paths)
    rows = [
        {"path": " ".join(map(str, path)), "ms": round(ms, 5), "top1_percent": known[a.id]}
        for (a, path), ms in zip(by_id.values(), costs)
    ]
    pd.DataFrame(rows).to_csv(HERE / "small_supernet.csv", index=False)


if __name__ == "__main__":
    main()
