"""Which loss a segmenter of the scenes learns from: a small network trained by each of four.

    python experiments/segmentation_losses.py

Six minutes on one core beside other work. The same 6,400 scenes of 72 px, the same initial weights
and one thread for each loss; a network of 0.13 M parameters with two scales. Scored on 300 scenes
of the search split, where one standard error is below 2 points (less between two losses: the scenes
are the same). Expected: the loss of the task is 3 points or more ahead of the cross-entropy,
whether or not that weighs the classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.data import load_data
from nas.tasks.segmentation import IGNORED, Segmentation

SIDE, BATCH, RATE = 72, 16, 3e-3


def conv(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


class Small(nn.Module):
    """Maps at a quarter and an eighth of the side, added and refined."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 32))
        self.coarse = nn.Sequential(conv(32, 64, 2), conv(64, 64), conv(64, 64))
        self.from_fine, self.from_coarse = nn.Conv2d(32, 48, 1), nn.Conv2d(64, 48, 1)
        self.answer = nn.Sequential(conv(48, 48), nn.Conv2d(48, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.from_coarse(self.coarse(fine))
        y = self.from_fine(fine) + F.interpolate(coarse, fine.shape[-2:], mode="bilinear")
        return F.interpolate(self.answer(y), x.shape[-2:], mode="bilinear")


def losses(task: Segmentation, shares: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Each loss by name; `shares` of the pixels that the classes have give the usual weights."""

    def entropy(weights: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda outputs, labels: F.cross_entropy(
            outputs, labels.long(), weights, ignore_index=IGNORED
        )

    return {
        "cross-entropy and IoU": lambda outputs, labels: task.loss(outputs, {"labels": labels}),
        "cross-entropy": entropy(None),
        "weights by the root of the share": entropy((shares.median() / shares).sqrt()),
        "weights of ENet": entropy(1 / torch.log(1.02 + shares)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    data = load_data("scenes:masks")
    task = data.task
    assert isinstance(task, Segmentation)
    search = data.first(data.search, 300, SIDE)
    shares = search["labels"].flatten().bincount(minlength=task.classes) / search["labels"].numel()
    for name, loss in losses(task, shares).items():
        torch.manual_seed(0)
        network = Small(task.classes)
        optimizer = torch.optim.AdamW(network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.05)
        for step in range(steps):
            numbers = range(step * BATCH, (step + 1) * BATCH)
            batch = data.prepare(data.train.batch(numbers, SIDE))
            optimizer.zero_grad()
            loss(network(batch["images"]), batch["labels"]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            observed = task.metric.observe(network.eval()(search["images"]), search)
        error = np.sqrt(task.metric.variance(observed))
        print(f"{name:34} {task.metric.percent(observed):.1f} +- {error:.1f} %", flush=True)


if __name__ == "__main__":
    main()
