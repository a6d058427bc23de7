"""Does the supernet rank architectures as training them alone does?

    python experiments/rank_correlation.py --images 100000 --count 8

A supernet of `swin:micro` on 56-pixel scenes (one item and a fragment of clutter or two), and
architectures spread over its MACs trained alone from scratch: same recipe, images, order and number
of steps, without the sandwich. Both are scored on 1,000 scenes of the search split. Writes
`rank_correlation.csv`; prints Spearman's and Kendall's correlation.

Small because a training alone at 224 px takes over an hour on two cores; 8,000 images and eight
architectures take five minutes, and are too few: the subnets of the supernet are then still at
chance. Give it 100,000 (an hour).
"""

from __future__ import annotations

import argparse
import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator, cores
from nas.families import load_space
from nas.latency.fit import kendall_tau
from nas.network.macs import count_macs
from nas.network.network import Network
from nas.progress import bar
from nas.runtimes.host import keep_heap
from nas.strategy.statistics import spearman
from nas.training.device import faster_in_bf16
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.trainer import Trainer
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis

OUT = Path(__file__).parent / "results"


def trained(network: Network, data, recipe: Recipe, title: str) -> Evaluator:
    torch.set_num_threads(cores())
    bf16 = faster_in_bf16(network, data)
    trainer = Trainer(network, data, recipe, Supervised(network.space), bf16=bf16)
    with bar(title, sum(recipe.steps()), "steps") as advance:
        for _ in range(sum(recipe.steps())):
            loss = float(trainer.train_step())
            advance(1, f"loss {loss:.2f}")
    return Evaluator(network, data, data.search, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    keep_heap()
    data = load_data("scenes")
    whole = load_space("swin:micro")
    space = whole.restrict("resolution", 56)
    recipe = Recipe(images=(0, 0, options.images))
    graph = Graph.of(space)
    macs = {key: count_macs(layer).total for key, layer in graph.items().items()}
    trellis = Trellis(graph, lambda layer: macs[layer.key])
    edges = np.geomspace(trellis.fastest * 1.5, trellis.slowest, options.count + 1)
    rng = np.random.default_rng(0)
    chosen = [
        decode(space, trellis.within(high, low).sample(1, rng)[0]) for low, high in pairwise(edges)
    ]
    torch.manual_seed(0)
    supernet = trained(Network(space, space.largest), data, recipe, "supernet")
    rows = []
    for i, architecture in enumerate(chosen):
        torch.manual_seed(0)
        alone = trained(Network(space, architecture), data, recipe, f"alone {i}")
        rows.append((architecture.id, supernet.percent(architecture), alone.percent(architecture)))
        print(f"{rows[-1][0]}: supernet {rows[-1][1]:.1f} %, alone {rows[-1][2]:.1f} %", flush=True)
    OUT.mkdir(exist_ok=True)
    with (OUT / "rank_correlation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "supernet_top1_percent", "alone_top1_percent"))
        writer.writerows(rows)
    a, b = np.array([r[1:] for r in rows]).T
    print(f"Spearman {spearman(a, b):.2f}, Kendall {kendall_tau(a, b):.2f} on {len(rows)}")


if __name__ == "__main__":
    main()
