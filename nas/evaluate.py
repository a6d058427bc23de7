"""Accuracy of subnets on one split, as the plain networks that they would be deployed as."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.space import Architecture, at_precision

if TYPE_CHECKING:
    from nas.data import Dataset, Split
    from nas.elastic import Network

_BATCH = 16  # fastest on one CPU core: activations of a batch still fit the caches
_CALIBRATION = 256  # training images for the statistics of a subnet's BatchNorms


def resize(images: Tensor, resolution: int) -> Tensor:
    """Square images (n, channels, side, side) at another side, anti-aliased."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)


class Evaluator:
    """Runs subnets of a network on the first `images` of a split."""

    def __init__(self, network: Network, data: Dataset, split: Split, images: int) -> None:
        self.network = network.eval()
        self.data, self.split = data, split
        self.images = min(images, split.size)

    @cached_property
    def _loaded(self) -> tuple[Tensor, NDArray[np.int64]]:
        canvas = self.network.space.largest.resolution
        pixels, labels = self.split.batch(range(self.images), canvas)
        return self.data.tensor(pixels), labels

    @cached_property
    def _calibration(self) -> Tensor:
        split = self.data.train
        canvas = self.network.space.largest.resolution
        pixels, _ = split.batch(range(min(_CALIBRATION, split.size)), canvas)
        return self.data.tensor(pixels)

    def subnet(self, architecture: Architecture) -> Network:
        """The plain network with inherited weights; BatchNorm statistics are its own."""
        plain = self.network.inherit(architecture).eval()
        if plain.batch_norms:
            recalibrate(plain, self._calibration)
        return plain

    def correct(self, architecture: Architecture) -> NDArray[np.bool_]:
        """Which of the images (n,) the subnet with inherited weights classifies rightly."""
        return self.correct_by(self.subnet(architecture).deploy())

    def correct_by(self, network: Network) -> NDArray[np.bool_]:
        """Which of the images (n,) a plain network classifies rightly."""
        right: NDArray[np.bool_] = self.answers(network) == self._loaded[1]
        return right

    def percent_right(self, answers: NDArray[np.int64]) -> float:
        return float(100 * (answers == self._loaded[1]).mean())

    def answers(self, network: Network) -> NDArray[np.int64]:
        """The class (n,) that a plain network gives each of the images."""
        resolution = network.architecture.resolution
        device = next(network.parameters()).device
        images, _ = self._loaded

        @torch.inference_mode()
        def predict(chunk: Tensor) -> Tensor:
            chunk = resize(chunk.to(device), resolution)
            return network(chunk).argmax(1).cpu()  # type: ignore[no-any-return]

        if device.type == "cuda":
            predicted = [predict(chunk) for chunk in torch.split(images, 256)]
        else:  # one thread per core on images of its own beats several on one layer
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                # Masked attention makes denormal numbers, which are slow: a flag of each thread.
                flush = partial(torch.set_flush_denormal, True)
                with ThreadPoolExecutor(cores(), initializer=flush) as pool:
                    predicted = list(pool.map(predict, torch.split(images, _BATCH)))
            finally:
                torch.set_num_threads(before)
        return torch.cat(predicted).numpy()

    def top1_percent(self, architecture: Architecture) -> float:
        return float(100 * self.correct(architecture).mean())


@torch.no_grad()
def recalibrate(network: Network, images: Tensor) -> None:
    """Give the BatchNorms of a plain network the statistics of `images` (n, 3, side, side).

    The mean over batches of what each norm sees (once-for-all, Cai et al., ICLR 2020): inherited
    statistics are those of wider networks.
    """
    norms: list[Any] = [m for m in network.modules() if hasattr(m, "running_var")]
    device = next(network.parameters()).device
    exact = at_precision(network.architecture, "fp32")  # int8 has the norms folded in
    network.eval()
    for norm in norms:
        norm.train()
    for i, chunk in enumerate(torch.split(images, 64)):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        network(resize(chunk.to(device), network.architecture.resolution), exact)
    network.eval()
    for norm in norms:
        norm.momentum = 0.1


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
