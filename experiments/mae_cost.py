"""What a step of masked autoencoding costs, in shares of a supervised step on the same pictures.

    python experiments/mae_cost.py

Both train the same network on the same scenes of the whole size, the paired steps one after the
other on one thread, in processor time, so that a busy machine changes little; what is printed is
the median of the ratios, with their quartiles. `largest` is a step of the largest network alone,
`subnets` one of a supernet by the default recipe, in which both train as many subnets. It takes two
minutes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch

from nas.data import load_data
from nas.families import load_space
from nas.network.network import Network
from nas.training.objectives import load_objective, task_of
from nas.training.recipe import Recipe
from nas.training.trainer import Trainer


def trainer(space_name: str, objective: str, batch: int, subnets: bool) -> Trainer:
    """A training at the whole size whose samples are made before."""
    data = load_data("scenes")
    space = load_space(space_name, task_of(objective, data))
    torch.manual_seed(0)
    network = Network(space, space.largest)
    learned = load_objective(objective, space)
    learned.prepare(network)
    recipe = Recipe(images=(0, 0, batch * 10_000), batches=(batch, batch, batch))
    made = Trainer(network, data, recipe if subnets else replace(recipe, subnets={}), learned)
    made._batch()
    made.samples = repeat(next(made.samples))
    return made


def seconds(made: Trainer) -> float:
    """The processor time of a step."""
    start = time.process_time()
    made.train_step().item()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", default="vit:micro,vit:tiny")
    parser.add_argument("--objective", default="mae")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for space in options.spaces.split(","):
        for kind in ("largest", "subnets"):
            pair = [
                trainer(space, objective, options.batch, kind == "subnets")
                for objective in (options.objective, "supervised")
            ]
            times = np.array([[seconds(made) for made in pair] for _ in range(options.steps + 2)])
            low, middle, high = np.quantile(times[2:, 0] / times[2:, 1], (0.25, 0.5, 0.75))
            own, other = np.median(times[2:], 0)
            print(
                f"{space} {kind}: {middle:.2f} ({low:.2f}-{high:.2f}) of a supervised step, "
                f"{own:.2f} s and {other:.2f} s for {options.batch} pictures",
                flush=True,
            )


if __name__ == "__main__":
    main()
