"""Test images with what the winner of a run says of them, and where its layers look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data import Tensors
from nas.errors import DataError, UsageError
from nas.report.saved_run import SavedRun
from nas.space.task import Task

_COUNT = 3


@dataclass(frozen=True)
class Example:
    """A test image, what the winner says of it, and which tokens each of its layers works on.

    `pixels` (height, width, 3) are in [0, 1]; `kept` holds a map of tokens by layer. For a dense
    task `painted` holds the truth and the answer as colours (height, width, 4) to lay over them.
    """

    pixels: NDArray[np.float64]
    title: str
    kept: dict[str, NDArray[np.bool_]]
    painted: dict[str, NDArray[np.float32]]


def examples(run: SavedRun) -> list[Example] | None:
    """The first test images; none where the inputs of the space are no images.

    None where the data set can no longer be loaded, e.g. because it has moved.
    """
    if run.space.parts.takes != "images":
        return []
    network = run.winner()
    architecture = network.architecture
    try:
        data = run.data()
    except (DataError, UsageError):  # the latter of a module of one's own
        return None
    count = min(_COUNT, data.test.size)
    parts, task = run.space.parts, data.posed(network.space.task)
    shown = []
    for i in range(count):
        sample = data.test.batch([i], run.space.largest.resolution)
        batch = data.prepare(sample)
        x = parts.resized(batch[parts.takes], architecture.resolution)
        with torch.no_grad():
            outputs = network(x)
        pixels = torch.from_numpy(sample["images"]).float() / 255
        raw = parts.resized(pixels, architecture.resolution)
        shown.append(
            Example(
                raw[0].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).double().numpy(),
                task.caption(outputs, batch),
                {k: v.numpy() for k, v in network.kept(x).items()},
                painted(task, outputs, batch) if task.dense else {},
            )
        )
    return shown


def painted(task: Task, outputs: Tensor, batch: Tensors) -> dict[str, NDArray[np.float32]]:
    """The truth and the answer to one sample of a dense task, as colours to lay over it."""
    answers = task.answers(outputs)
    assert answers is not None  # of a dense task
    both = {"truth": batch["labels"], "answer": answers}
    return {name: task.painted(own[0]).numpy() for name, own in both.items()}
