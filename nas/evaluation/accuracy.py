"""How good subnets are on one split, as the plain networks that they would be deployed as."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from nas.evaluation.batch_norm import Map, recalibrate
from nas.evaluation.racing import Outcomes, Race
from nas.evaluation.shared_prefixes import Prefixes, depth_first, layer_names, layer_steps
from nas.network.network import embedding
from nas.space.architecture import Architecture, at_precision

if TYPE_CHECKING:
    from nas.data import Arrays, Dataset, Split, Tensors
    from nas.network.network import Network
    from nas.space.task import Metric, Observed

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Scored:
    """What a subnet did on the first samples of a split: all of them, unless it was dropped."""

    metric: Metric
    observed: Observed  # (images, ...): what each sample adds to the total
    dropped: bool = False  # by a race against a rival

    @property
    def images(self) -> int:
        """How many samples were seen."""
        return len(self.observed)

    @property
    def percent(self) -> float:
        """The total over the samples seen; that of a dropped subnet is too low on average."""
        return self.metric.percent(self.observed)

    @property
    def variance(self) -> float:
        """The variance of `percent` over draws of as many samples, in points squared."""
        return self.metric.variance(self.observed)

    @property
    def outcomes(self) -> Outcomes | None:
        """How well each sample did, as races compare it; None where only the whole has a score."""
        return outcomes(self.metric, self.observed)


def outcomes(metric: Metric, observed: Observed) -> Outcomes | None:
    """How well each sample did: bool hits, or float16, so that a rival read back is the same."""
    found = metric.outcomes(observed)
    return found if found is None or found.dtype == bool else found.astype(np.float16)


class Evaluator:
    """Runs subnets of a network on the first `images` samples of a split.

    They are scored by a `metric`, if none is given by that of their task.
    What comes out does not depend on `threads` (0: one for each core), nor on the parts in which
    samples are asked for, nor on `reuse`: a sample always runs in the same batch, on one thread.
    `reuse` is how many bytes may hold activations that planned subnets share.
    """

    def __init__(
        self,
        network: Network,
        data: Dataset,
        split: Split,
        images: int,
        *,
        metric: Metric | None = None,
        threads: int = 0,
        reuse: int = 2**29,
    ) -> None:
        self.network = network.eval()
        self.data, self.split = data, split
        self.metric = metric or network.space.task.metric
        self.images = min(images, split.size)
        self.threads = threads or cores()
        self.reuse(reuse)

    def reuse(self, capacity: int) -> None:
        """Let up to `capacity` bytes hold activations from here on; 0 turns reuse off."""
        self._prefixes = Prefixes(capacity)

    @cached_property
    def loaded(self) -> Arrays:
        """The samples as their split gives them, inputs of the largest size of the space.

        Batches are prepared as they run: 1,000 scenes of 448 px are 0.4 GB of bytes with their
        masks, and preparing them all at once takes 2.7 GB; one batch takes 0.3 % of its time.
        """
        return self._first(self.split, self.images)

    @property
    def calibrated_on(self) -> int:
        """How many of the first training samples give the statistics of a subnet's BatchNorms."""
        return min(256, self.data.train.size)

    @cached_property
    def references(self) -> Arrays:
        """The first training samples, as many as the metric is fitted to."""
        return self._first(self.data.train, self.metric.references)

    @cached_property
    def _calibration(self) -> Tensor:
        samples = self._first(self.data.train, self.calibrated_on)
        return torch.as_tensor(samples[self.network.space.parts.takes])

    def _first(self, split: Split, count: int) -> Arrays:
        return split.batch(range(count), self.network.space.largest.resolution)

    def _prepared(self, inputs: Tensor) -> Tensor:
        """Inputs of the network, of samples as they are stored."""
        name = self.network.space.parts.takes
        return self.data.prepare({name: inputs})[name]

    @property
    def batch(self) -> int:
        """How many samples run together; parts that end at a multiple of it waste nothing."""
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
                recalibrate(plain, self._calibration, self._prefixes, map_, self._prepared)
        return plain

    @contextmanager
    def _workers(self) -> Iterator[Map]:
        """A `map` for work on batches of its own."""
        if next(self.network.parameters()).is_cuda:
            yield map
        else:
            with alone(self.threads) as pool:
                yield pool.map

    def score(
        self,
        architecture: Architecture,
        rival: Outcomes | None = None,
        race: Race | None = None,
    ) -> Scored:
        """The score of the subnet with inherited weights, cut short if it loses a race to a rival.

        `rival` (images,) are the rival's outcomes on all samples, without which there is no race;
        nor is there one where the metric has no outcomes.
        """
        network, metric = self._judged(self.subnet(architecture).deploy(), self._prefixes)
        seen: list[Observed] = []

        def run(start: int, stop: int) -> Outcomes:
            seen.append(self._observed(network, metric, self._prefixes, start, stop))
            found = outcomes(self.metric, seen[-1])
            return np.ones(len(seen[-1]), bool) if found is None else found  # loses to none

        if rival is None:
            race = Race((self.images,))
        elif race is None:
            race = Race.doubling(self.images, 4 * self.batch)
        raced = race.run(run, rival)
        return Scored(self.metric, np.concatenate(seen), raced.dropped)

    def percent(self, architecture: Architecture) -> float:
        """The score of the subnet with inherited weights on all samples, in percent."""
        return self.score(architecture).percent

    def observed(
        self, architecture: Architecture, start: int = 0, stop: int | None = None
    ) -> Observed:
        """What each of the samples [start, stop) adds to the total of the subnet.

        Whole batches run, so that the parts of a split together give what the whole gives.
        """
        network, metric = self._judged(self.subnet(architecture).deploy(), self._prefixes)
        return self._observed(network, metric, self._prefixes, start, stop)

    def observed_by(self, network: Network) -> Observed:
        """What each sample (images, ...) adds to the total of a plain network."""
        none = Prefixes(0)
        return self._observed(*self._judged(network, none), none)

    def outputs(self, network: Network) -> Tensor:
        """What a plain network gives for each sample (images, ...)."""
        return self._outputs(network, Prefixes(0), self.loaded)

    def _judged(self, network: Network, prefixes: Prefixes) -> tuple[Network, Metric]:
        """A deployed network as the metric sees it, and the metric as it judges this network."""
        metric = self.metric
        if metric.vectors:
            network = embedding(network)
        if metric.references:
            outputs = self._outputs(network, prefixes, self.references, "references")
            takes = network.space.parts.takes
            labels = {name: own for name, own in self.references.items() if name != takes}
            metric = metric.fitted(outputs, self.data.prepare(labels))
        return network, metric

    def _outputs(
        self, network: Network, prefixes: Prefixes, samples: Arrays, name: str = ""
    ) -> Tensor:
        found = self._run(network, prefixes, lambda outputs, _: outputs, samples=samples, name=name)
        return torch.cat(found)

    def answered_by(self, network: Network) -> tuple[float, Tensor | None]:
        """The score of a plain network in percent, and its answers (images, ...) to all samples.

        None stands for a task that does not say what its answers are. Outputs are not kept: those
        of a class for every pixel are a hundred times as large.
        """
        task = self.network.space.task
        parts = self._run(
            network,
            Prefixes(0),
            lambda outputs, batch: (self.metric.observe(outputs, batch), task.answers(outputs)),
        )
        percent = self.metric.percent(np.concatenate([observed for observed, _ in parts]))
        answers = [own for _, own in parts if own is not None]
        return percent, torch.cat(answers) if answers else None

    def _observed(
        self,
        network: Network,
        metric: Metric,
        prefixes: Prefixes,
        start: int = 0,
        stop: int | None = None,
    ) -> Observed:
        parts = self._run(network, prefixes, metric.observe, start, stop)
        first = start // self.batch * self.batch
        stop = self.images if stop is None else stop
        return np.concatenate(parts)[start - first : stop - first]

    def _run(
        self,
        network: Network,
        prefixes: Prefixes,
        use: Callable[[Tensor, Tensors], T],
        start: int = 0,
        stop: int | None = None,
        *,
        samples: Arrays | None = None,
        name: str = "",
    ) -> list[T]:
        """What `use` makes of the outputs and the samples of each batch of [start, stop).

        The `samples` are those of the split, unless others are given with a `name` of theirs.
        """
        space, device = network.space, next(network.parameters()).device
        loaded = self.loaded if samples is None else samples  # before threads ask for it
        images = len(loaded[space.parts.takes])
        stop = images if stop is None else min(stop, images)
        layers = space.layers(network.architecture)
        steps = layer_steps(layers, [network.module(layer) for layer in layers])

        @torch.inference_mode()
        def run(number: int) -> T:
            first = number * self.batch
            batch = self.data.prepare(
                {name: x[first : first + self.batch] for name, x in loaded.items()}
            )

            def enter() -> tuple[Tensor]:
                inputs = batch[space.parts.takes].to(device)
                return (space.parts.resized(inputs, network.architecture.resolution),)

            chunk = (name, number) if name else number
            outputs: Tensor = prefixes.run(chunk, steps, enter)[0]
            return use(outputs.cpu(), batch)

        with self._workers() as map_:
            return list(map_(run, range(start // self.batch, -(-stop // self.batch))))


@contextmanager
def alone(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for work on batches of its own: each runs layers by itself, none helped by others.

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


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
