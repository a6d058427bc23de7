"""Accuracy of subnets on one split, as the plain networks that they would be deployed as."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.racing import Race
from nas.space import Architecture, at_precision

if TYPE_CHECKING:
    from nas.data import Dataset, Split
    from nas.elastic import Network

_CALIBRATION = 256  # training images for the statistics of a subnet's BatchNorms


def resize(images: Tensor, resolution: int) -> Tensor:
    """Square images (n, channels, side, side) at another side, anti-aliased."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)


@dataclass(frozen=True, eq=False)
class Scored:
    """What a subnet did on the first images of a split: all of them, unless it was dropped."""

    hits: NDArray[np.bool_]  # (images,): which it classified rightly
    dropped: bool = False  # by a race against a rival

    @property
    def images(self) -> int:
        return len(self.hits)

    @property
    def top1_percent(self) -> float:
        """Of the images seen; of a dropped subnet this is on average too low."""
        return float(100 * self.hits.mean())


class Evaluator:
    """Runs subnets of a network on the first `images` of a split.

    What comes out does not depend on `threads` (0: one for each core), nor on the parts in which
    images are asked for: an image always runs in the same batch, on one thread.
    """

    def __init__(
        self, network: Network, data: Dataset, split: Split, images: int, *, threads: int = 0
    ) -> None:
        self.network = network.eval()
        self.data, self.split = data, split
        self.images = min(images, split.size)
        self.threads = threads or cores()

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

    @property
    def batch(self) -> int:
        """Images that run together; parts that end at a multiple of it waste nothing."""
        # On one CPU core 16 are fastest: the activations of a batch still fit the caches.
        return 256 if next(self.network.parameters()).is_cuda else 16

    def subnet(self, architecture: Architecture) -> Network:
        """The plain network with inherited weights; BatchNorm statistics are its own."""
        plain = self.network.inherit(architecture).eval()
        if plain.batch_norms:
            with alone(1) as pool:
                pool.submit(recalibrate, plain, self._calibration).result()
        return plain

    def score(
        self,
        architecture: Architecture,
        rival_hits: NDArray[np.bool_] | None = None,
        race: Race | None = None,
    ) -> Scored:
        """What the subnet with inherited weights does; it may lose a race against a rival.

        `rival_hits` (images,) are the rival's on all images, without which there is no race.
        """
        if race is None:
            race = Race.doubling(self.images, 4 * self.batch)
        network = self.subnet(architecture).deploy()
        raced = race.run(partial(self._hits, network), rival_hits)
        return Scored(raced.outcomes, raced.dropped)

    def hits(
        self, architecture: Architecture, start: int = 0, stop: int | None = None
    ) -> NDArray[np.bool_]:
        """Which of the images [start, stop) the subnet with inherited weights classifies rightly.

        Whole batches run, so that the parts of a split together give what the whole gives.
        """
        return self._hits(self.subnet(architecture).deploy(), start, stop)

    def correct(self, architecture: Architecture) -> NDArray[np.bool_]:
        """Which of the images (n,) the subnet with inherited weights classifies rightly."""
        return self.hits(architecture)

    def correct_by(self, network: Network) -> NDArray[np.bool_]:
        """Which of the images (n,) a plain network classifies rightly."""
        return self._hits(network)

    def _hits(self, network: Network, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.answers(network, start, stop) == self._loaded[1][start:stop]
        return right

    def percent_right(self, answers: NDArray[np.int64]) -> float:
        return float(100 * (answers == self._loaded[1]).mean())

    def answers(
        self, network: Network, start: int = 0, stop: int | None = None
    ) -> NDArray[np.int64]:
        """The class (n,) that a plain network gives each of the images [start, stop)."""
        stop = self.images if stop is None else min(stop, self.images)
        resolution = network.architecture.resolution
        device = next(network.parameters()).device
        first = start // self.batch * self.batch
        images = self._loaded[0][: -(-stop // self.batch) * self.batch]

        @torch.inference_mode()
        def predict(chunk: Tensor) -> Tensor:
            chunk = resize(chunk.to(device), resolution)
            return network(chunk).argmax(1).cpu()  # type: ignore[no-any-return]

        chunks = torch.split(images[first:], self.batch)
        if device.type == "cuda":
            predicted = [predict(chunk) for chunk in chunks]
        else:
            with alone(self.threads) as pool:
                predicted = list(pool.map(predict, chunks))
        return torch.cat(predicted).numpy()[start - first : stop - first]

    def top1_percent(self, architecture: Architecture) -> float:
        return self.score(architecture).top1_percent


@contextmanager
def alone(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for work on images of its own: each runs layers by itself, none helped by others.

    One thread per core like this beats several on one layer, and how layers are split between
    threads changes their rounding.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Masked attention makes denormal numbers, which are slow: a flag of each thread.
        flush = partial(torch.set_flush_denormal, True)
        with ThreadPoolExecutor(threads, initializer=flush) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


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
