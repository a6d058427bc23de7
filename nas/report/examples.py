"""Test images with what the winner of a run says of them, and where its layers look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data import load_data
from nas.errors import DataError, UsageError
from nas.report.saved_run import SavedRun

_COUNT = 3


@dataclass(frozen=True)
class Example:
    """A test image, what the winner says of it, and which tokens each of its layers works on.

    `pixels` (side, side, 3) are in [0, 1]; `kept` holds a map of tokens by layer.
    """

    pixels: NDArray[np.float64]
    title: str
    kept: dict[str, NDArray[np.bool_]]


def examples(run: SavedRun) -> list[Example] | None:
    """The first test images; none where the inputs of the space are no images.

    None where the data set can no longer be loaded, e.g. because it has moved.
    """
    if run.space.parts.takes != "images":
        return []
    network = run.winner()
    architecture = network.architecture
    try:
        data = load_data(run.record.data)
    except (DataError, UsageError):  # the latter of a module of one's own
        return None
    count = min(_COUNT, data.test.size)
    parts = run.space.parts
    shown = []
    for i in range(count):
        sample = data.test.batch([i], run.space.largest.resolution)
        batch = data.prepare(sample)
        x = parts.resized(batch[parts.takes], architecture.resolution)
        with torch.no_grad():
            caption = data.task.caption(network(x), batch)
        pixels = torch.from_numpy(sample["images"]).float() / 255
        raw = parts.resized(pixels, architecture.resolution)
        shown.append(
            Example(
                raw[0].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).double().numpy(),
                caption,
                {k: v.numpy() for k, v in network.kept(x).items()},
            )
        )
    return shown
