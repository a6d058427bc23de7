"""How many images a second does training see, and how long does a step wait for them?

    python experiments/training_speed.py --space mobilenetv3:micro

One step of the recipe of adaptation (the largest network and its subnets) at a quarter, a half and
the whole of the largest size: with samples that were made before (`alone`: what the mathematics
takes), with samples loaded by processes beside the step (`beside`, what training does), and loaded
within it (`within`). Under `bf16` and `fp32` stands the speed with products of either type, samples
made before. Each runs `--steps` in a row, after as many more as there are batches loaded ahead;
wall time, on an idle machine. It takes two to eight minutes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import repeat

import torch

from nas.data import load_data
from nas.evaluation.accuracy import cores
from nas.families import load_space
from nas.network.network import Network
from nas.runtimes.host import keep_heap
from nas.training.batches import AHEAD, loading_processes
from nas.training.device import faster_in_bf16
from nas.training.objectives import load_objective
from nas.training.recipe import ADAPTATION, Recipe
from nas.training.trainer import Trainer


def trainer(network, data, recipe: Recipe, bf16: bool, workers: int, prepared: bool) -> Trainer:
    """A training of one phase, whose weights stay as they are."""
    objective = load_objective("supervised", network.space)
    made = Trainer(network, data, recipe, objective, None, bf16, workers)
    if prepared:
        made._batch()
        made.samples = repeat(next(made.samples))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="swin:micro")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(cores())
    torch.set_flush_denormal(True)
    data = load_data("scenes")
    space = load_space(options.space, data.task)
    network = Network(space, space.largest)
    best = faster_in_bf16(network, data)
    print(f"{options.space}, {cores()} cores, bf16 is {'' if best else 'not '}faster")
    kinds = {
        "alone": (best, 0, True),
        "beside": (best, loading_processes(), False),
        "within": (best, 0, False),
        "bf16": (True, 0, True),
        "fp32": (False, 0, True),
    }
    for phase, name in enumerate(("quarter", "half", "whole")):
        batch = ADAPTATION.batches[phase]
        images = tuple(batch * 1000 if i == phase else 0 for i in range(3))
        recipe = replace(ADAPTATION, images=images, learning_rate=0.0, weight_decay=0.0)
        speed = {}
        for kind, own in kinds.items():
            made = trainer(network, data, recipe, *own)
            ahead = own[1] * AHEAD if own[1] else 2
            for number in range(ahead + options.steps):
                if number == ahead:
                    start = time.monotonic()
                made.train_step().item()
            speed[kind] = batch * options.steps / (time.monotonic() - start)
        line = ", ".join(f"{kind} {found:.1f}" for kind, found in speed.items())
        waiting = max(0.0, 1 - speed["beside"] / speed["alone"])
        print(f"{name} size, images/s: {line}; a step waits {100 * waiting:.0f} % of its time")


if __name__ == "__main__":
    main()
