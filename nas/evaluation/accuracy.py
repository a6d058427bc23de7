"""Accuracy of subnets on one split, as the plain networks that they would be deployed as."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.evaluation.racing import Race
from nas.evaluation.shared_prefixes import Prefixes, State, Step, depth_first, layer_names
from nas.space.architecture import Architecture, at_precision

if TYPE_CHECKING:
    from nas.data.dataset import Dataset, Split
    from nas.network.network import Network
    from nas.space.layer import Layer

Map = Callable[..., Iterable[Any]]


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
    images are asked for, nor on `reuse`: an image always runs in the same batch, on one thread.
    `reuse` is how many bytes may hold activations that planned subnets share.
    """

    def __init__(
        self,
        network: Network,
        data: Dataset,
        split: Split,
        images: int,
        *,
        threads: int = 0,
        reuse: int = 2**29,
    ) -> None:
        self.network = network.eval()
        self.data, self.split = data, split
        self.images = min(images, split.size)
        self.threads = threads or cores()
        self.reuse(reuse)

    def reuse(self, capacity: int) -> None:
        """From here on up to `capacity` bytes may hold activations; 0 turns reuse off."""
        self._prefixes = Prefixes(capacity)

    @cached_property
    def _loaded(self) -> tuple[Tensor, NDArray[np.int64]]:
        canvas = self.network.space.largest.resolution
        pixels, labels = self.split.batch(range(self.images), canvas)
        return self.data.tensor(pixels), labels

    @property
    def calibrated_on(self) -> int:
        """The first training images that give the statistics of a subnet's BatchNorms."""
        return min(256, self.data.train.size)

    @cached_property
    def _calibration(self) -> Tensor:
        canvas = self.network.space.largest.resolution
        pixels, _ = self.data.train.batch(range(self.calibrated_on), canvas)
        return self.data.tensor(pixels)

    @property
    def batch(self) -> int:
        """Images that run together; parts that end at a multiple of it waste nothing."""
        # On one CPU core 16 are fastest: the activations of a batch still fit the caches.
        return 256 if next(self.network.parameters()).is_cuda else 16

    def plan(self, architectures: Iterable[Architecture]) -> list[Architecture]:
        """These in the best order to score them: each goes on where one before it parts from it.

        Only planned architectures reuse activations; a new plan replaces the one before.
        """
        space = self.network.space
        found = list(architectures)
        lists = [layer_names(space.layers(a)) for a in found]
        exact = [layer_names(space.layers(at_precision(a, "fp32"))) for a in found]
        self._prefixes.plan([*lists, *(e for e, own in zip(exact, lists) if e != own)])
        return [found[i] for i in depth_first(lists)]

    def subnet(self, architecture: Architecture) -> Network:
        """The plain network with inherited weights; BatchNorm statistics are its own."""
        plain = self.network.inherit(architecture).eval()
        if plain.batch_norms:
            with self._workers() as map_:
                recalibrate(plain, self._calibration, self._prefixes, map_)
        return plain

    @contextmanager
    def _workers(self) -> Iterator[Map]:
        """A `map` for work on images of its own."""
        if next(self.network.parameters()).is_cuda:
            yield map
        else:
            with alone(self.threads) as pool:
                yield pool.map

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
        raced = race.run(partial(self._hits, network, self._prefixes), rival_hits)
        return Scored(raced.outcomes, raced.dropped)

    def hits(
        self, architecture: Architecture, start: int = 0, stop: int | None = None
    ) -> NDArray[np.bool_]:
        """Which of the images [start, stop) the subnet with inherited weights classifies rightly.

        Whole batches run, so that the parts of a split together give what the whole gives.
        """
        return self._hits(self.subnet(architecture).deploy(), self._prefixes, start, stop)

    def correct(self, architecture: Architecture) -> NDArray[np.bool_]:
        """Which of the images (n,) the subnet with inherited weights classifies rightly."""
        return self.hits(architecture)

    def correct_by(self, network: Network) -> NDArray[np.bool_]:
        """Which of the images (n,) a plain network classifies rightly."""
        return self._hits(network, Prefixes(0))

    def answers(self, network: Network) -> NDArray[np.int64]:
        """The class (n,) that a plain network gives each of the images."""
        return self._logits(network, Prefixes(0)).argmax(1).numpy()

    def percent_right(self, answers: NDArray[np.int64]) -> float:
        return float(100 * (answers == self._loaded[1]).mean())

    def _hits(
        self, network: Network, prefixes: Prefixes, start: int = 0, stop: int | None = None
    ) -> NDArray[np.bool_]:
        answers = self._logits(network, prefixes, start, stop).argmax(1).numpy()
        right: NDArray[np.bool_] = answers == self._loaded[1][start:stop]
        return right

    def _logits(
        self, network: Network, prefixes: Prefixes, start: int = 0, stop: int | None = None
    ) -> Tensor:
        stop = self.images if stop is None else min(stop, self.images)
        batches = range(start // self.batch, -(-stop // self.batch))
        first = batches.start * self.batch
        images, device = self._loaded[0], next(network.parameters()).device
        layers = network.space.layers(network.architecture)
        steps = layer_steps(layers, [network.module(layer) for layer in layers])

        @torch.inference_mode()
        def run(number: int) -> Tensor:
            def enter() -> tuple[Tensor]:
                batch = images[number * self.batch : (number + 1) * self.batch]
                return (resize(batch.to(device), network.architecture.resolution),)

            (logits,) = prefixes.run(number, steps, enter)
            return logits.cpu()  # type: ignore[no-any-return]

        with self._workers() as map_:
            return torch.cat(list(map_(run, batches)))[start - first : stop - first]

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


def layer_steps(layers: Sequence[Layer], modules: Sequence[nn.Module]) -> list[Step]:
    """The steps of a plain network whose layers are run by these modules."""

    def run(module: nn.Module, sizes: dict[str, int], state: State) -> State:
        return module(*state, **sizes)  # type: ignore[no-any-return]

    return [
        Step(name, partial(run, module, layer.sizes))
        for name, module, layer in zip(layer_names(layers), modules, layers)
    ]


def recalibrate(
    network: Network, images: Tensor, prefixes: Prefixes | None = None, map_: Map = map
) -> None:
    """Give the BatchNorms of a plain network the statistics of `images` (n, 3, side, side).

    The mean over batches of what each norm sees (once-for-all, Cai et al., ICLR 2020): inherited
    statistics are those of wider networks. Those of a layer depend on the layers before it only, so
    `prefixes` may hold them beside the activations. `map_` may run batches at the same time.
    """
    exact = at_precision(network.architecture, "fp32")  # int8 has the norms folded in
    layers = network.space.layers(exact)
    modules = [network.eval().module(layer) for layer in layers]
    store = Prefixes(0) if prefixes is None else prefixes
    batches, device = torch.split(images, 64), next(network.parameters()).device

    @torch.no_grad()
    def statistics(number: int) -> Sequence[Tensor]:
        # Norms of its own, for batches that run at the same time; everything else is shared.
        own = deepcopy(modules, {id(p): p for p in network.parameters()})
        steps = [observed(s, batch_norms(m)) for s, m in zip(layer_steps(layers, own), own)]

        def enter() -> State:
            return (resize(batches[number].to(device), exact.resolution),), ()

        return store.run(("calibration", number), steps, enter)[1]  # type: ignore[no-any-return]

    seen = zip(*map_(statistics, range(len(batches))))
    with torch.no_grad():
        for norm in (norm for module in modules for norm in batch_norms(module)):
            norm.running_mean.copy_(torch.stack(next(seen)).mean(0))
            norm.running_var.copy_(torch.stack(next(seen)).mean(0))


def batch_norms(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if hasattr(m, "running_var")]


def observed(step: Step, norms: Sequence[Any]) -> Step:
    """A step of (state, statistics): its norms use, and append, those of the batch."""
    for norm in norms:
        norm.train()
        norm.momentum = 1.0

    def run(both: State) -> State:
        state, seen = both
        state = step.run(state)
        return state, (*seen, *(s for n in norms for s in (n.running_mean, n.running_var)))

    return Step(step.name, run)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
