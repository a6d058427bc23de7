"""Does a supernet rank architectures as training them alone does, and after fine-tuning?

    python experiments/rank_correlation.py --space mobilenetv3:micro --images 20000

Twelve architectures spread over the MACs of the space at one small size, each with three scores on
the same scenes of the search split: with weights inherited from the shipped supernet, with these
fine-tuned on a tenth of the images by the recipe of `vitnas finetune`, and trained alone from
nothing on all images (same recipe, images, order and number of steps for all). Writes
`rank_correlation.csv` and prints Kendall's tau with its 95 % interval over draws of architectures
(bootstrap). Scores go below `--out`, where a stopped study goes on. A quarter of an hour of one
core at 56 px.

What it can say is bounded: scenes of 56 px hold one item and a fragment or two, so that hardly
anything can be pruned, and trainings are short. The noise of a score is in the table.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau

from nas.data import Dataset, load_data
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.network.macs import count_macs
from nas.network.network import Network
from nas.progress import bar
from nas.records import Journal
from nas.run.finetuning import RECIPE
from nas.runtimes.host import quiet_process
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet, supernet_folder
from nas.training.trainer import Trainer
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis

OUT = Path(__file__).parent / "results"
KINDS = ("inherited_percent", "finetuned_percent", "alone_percent")
SCENES = 1000


def spread(space: SearchSpace, count: int) -> list[Architecture]:
    """Random architectures, one from each band of MACs, the bands equally wide by ratio."""
    graph = Graph.of(space)
    macs = {key: count_macs(layer).total for key, layer in graph.items().items()}
    trellis = Trellis(graph, lambda layer: macs[layer.key])
    edges = np.geomspace(trellis.fastest * 1.05, trellis.slowest, count + 1)
    rng = np.random.default_rng(0)
    return [
        decode(space, trellis.within(high, low).sample(1, rng)[0]) for low, high in pairwise(edges)
    ]


def train(
    network: Network, data: Dataset, recipe: Recipe, title: str, teacher: Network | None = None
) -> Network:
    """The network, trained in place."""
    trainer = Trainer(network, data, recipe, Supervised(network.space), teacher)
    with bar(title, sum(recipe.steps()), "steps") as advance:
        for _ in range(sum(recipe.steps())):
            advance(1, f"loss {float(trainer.train_step()):.2f}")
    return network


def scores(
    supernet: Network, data: Dataset, architecture: Architecture, images: int
) -> dict[str, float]:
    """The three scores of an architecture."""
    torch.manual_seed(0)
    alone = train(
        Network(supernet.space, architecture), data,
        Recipe((0, 0, images), (32, 32, 32), subnets={}), "alone",
    )  # fmt: skip
    tuning = Recipe((0, 0, images // 10), (16, 16, 16), RECIPE.learning_rate, subnets={})
    teacher = supernet.inherit(supernet.space.largest)
    tuned = train(supernet.inherit(architecture), data, tuning, "fine-tune", teacher)
    found = [
        Evaluator(own, data, data.search, SCENES, threads=1).percent(architecture)
        for own in (supernet, tuned, alone)
    ]
    return dict(zip(KINDS, found))


def correlation(table: pd.DataFrame, kind: str) -> str:
    """Kendall's tau between scores of a kind and those of training alone, and its interval."""
    tau = kendalltau(table[kind], table["alone_percent"]).statistic
    rng, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        own = table.iloc[rng.integers(0, len(table), len(table))]
        drawn.append(kendalltau(own[kind], own["alone_percent"]).statistic)
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return f"{kind}: tau {tau:.2f} ({low:.2f} to {high:.2f}) on {len(table)} architectures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilenetv3:micro")
    parser.add_argument("--supernet", type=Path, help="folder; the shipped one")
    parser.add_argument("--size", type=int, default=56, help="pixels of a side")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs") / "rank_correlation")
    options = parser.parse_args()
    quiet_process()
    data = load_data("scenes")
    folder = options.supernet or supernet_folder(options.space, data)
    trained, card = load_supernet(folder, options.space, data)
    space = load_space(options.space, data.task).at(options.size)
    supernet = Network(space, space.largest)
    supernet.load_state_dict(trained.state_dict())
    name = f"{card['fingerprint']}-{options.size}-{options.images}.jsonl"
    journal = Journal(options.out / name)
    for number, architecture in enumerate(spread(space, options.count)):
        known = {r["id"] for r in journal.read()}
        if architecture.id in known:
            continue
        macs = sum(count_macs(layer).total for layer in space.layers(architecture)) / 1e6
        found = scores(supernet, data, architecture, options.images)
        journal.append({"id": architecture.id, "megamacs": round(macs, 2), **found})
        print(number, list(journal.read())[-1], flush=True)
    table = pd.DataFrame(list(journal.read()))
    percent = table[list(KINDS)]
    noise = np.sqrt(percent * (100 - percent) / SCENES).mean().mean()
    table.round(2).to_csv(OUT / "rank_correlation.csv", index=False)
    print(table.to_string(index=False))
    print(f"one standard error of a score: {noise:.1f} points")
    for kind in KINDS[:2]:
        print(correlation(table, kind))


if __name__ == "__main__":
    main()
