"""How many images a second does training see, and how long does a step wait for them?

    python experiments/training_speed.py --space mobilenetv3:micro

One step of the recipe of adaptation (the largest network and its subnets) at a quarter, a half and
the whole of the largest size: with samples that were made before (`alone`: what the mathematics
takes), with samples loaded by processes beside the step (`beside`, what training does), and loaded
within it (`within`, what it did before it had such processes). Under `bf16` and `fp32` stands the
speed with products of either type, samples made before. Each runs `--steps` in a row, after as many
more as there are batches loaded ahead, so that these are not counted. `waits` is the share of its
time that a step of `beside` and `within` stood still for its batch, by the clock; `beside` loses
more than that against `alone` where the processes take cores away from the mathematics. Wall time,
on an idle machine. Writes `training_speed-SPACE.csv`. It takes two to eight minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pandas as pd

from nas.data import Dataset, Tensors, load_data
from nas.evaluation.accuracy import cores
from nas.families import load_space
from nas.network.network import Network
from nas.runtimes.host import quiet_process
from nas.training.batches import AHEAD, batches, loading_processes
from nas.training.device import faster_in_bf16
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import ADAPTATION, Recipe
from nas.training.trainer import Trainer

OUT = Path(__file__).parent / "results"


class Timed:
    """Batches, and the seconds that were spent on waiting for them."""

    def __init__(self, samples: Iterator[Tensors]) -> None:
        self.samples, self.seconds = samples, 0.0

    def __iter__(self) -> Iterator[Tensors]:
        return self

    def __next__(self) -> Tensors:
        start = time.monotonic()
        found = next(self.samples)
        self.seconds += time.monotonic() - start
        return found


def timed(
    network: Network,
    data: Dataset,
    recipe: Recipe,
    steps: int,
    bf16: bool,
    workers: int,
    prepared: bool,
) -> tuple[float, float]:
    """Images a second of the one phase of a recipe, and the share of the time spent waiting.

    The weights stay as they are.
    """
    samples = batches(data.train, recipe, network.space.largest.resolution, workers)
    trainer = Trainer(network, data, recipe, Supervised(network.space), None, bf16)
    trainer.samples = own = Timed(repeat(next(samples)) if prepared else samples)
    ahead = workers * AHEAD or 2
    for number in range(ahead + steps):
        if number == ahead:
            start, own.seconds = time.monotonic(), 0.0
        trainer.train_step().item()
    seconds = time.monotonic() - start
    return max(recipe.batches) * steps / seconds, own.seconds / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilevit:micro")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    quiet_process(cores())
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
    rows = []
    for phase, size in enumerate(("quarter", "half", "whole")):
        batch = ADAPTATION.batches[phase]
        recipe = replace(
            ADAPTATION,
            images=tuple(batch * 1000 if i == phase else 0 for i in range(3)),
            batches=(batch, batch, batch),
            learning_rate=0.0,
            weight_decay=0.0,
        )
        row: dict[str, float | str] = {"size": size}
        for kind, own in kinds.items():
            speed, waits = timed(network, data, recipe, options.steps, *own)
            row[kind] = round(speed, 1)
            if kind in ("beside", "within"):
                row[f"{kind}_waits_percent"] = round(100 * waits, 1)
        rows.append(row)
        print(row, flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(OUT / f"training_speed-{options.space.replace(':', '-')}.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
