"""Which subnets a step of a supernet trains besides the largest.

The smallest and random ones are the sandwich of BigNAS (Yu et al., ECCV 2020). Uniform draws hardly
ever are large and pruned at once, which is what a search picks; so the largest sizes are drawn
under schedules of their own (sparsity-aware adaptation, SparseViT, CVPR 2023, section 3.2). And
draws come from one band of cost for some steps, since gradients conflict the more the further the
costs of two subnets are apart (ElasticViT, Tang et al., ICCV 2023, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from nas.network.macs import count_macs
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.trellis.graph import Floats, Graph, decode
from nas.trellis.trellis import Trellis
from nas.trellis.within import Within

_BANDS = 6  # of costs, each as much dearer than the one before
_STAY = 16  # steps that draw from one band
_TICKS = 256


class Subnets:
    """Draws subnets of a space for training steps; the same seed and step draw the same ones.

    `rates` says how many of each kind a step trains on average: `smallest`; `random`, each choice
    uniform; `scheduled`, the largest sizes at any resolution of the space under a random schedule;
    `band`, uniform among all whose MACs lie in one of six bands.
    """

    def __init__(self, space: SearchSpace, rates: Mapping[str, float], seed: int = 0) -> None:
        self.space, self.rates, self.seed = space, dict(rates), seed

    def of(self, step: int) -> list[Architecture]:
        """The subnets of a step."""
        rng = Random(f"{self.seed} {step}")
        found = []
        for kind, rate in self.rates.items():
            for _ in range(int(rate) + (rng.random() < rate % 1)):
                found.append(getattr(self, f"_{kind}")(step, rng))
        return found

    def _smallest(self, step: int, rng: Random) -> Architecture:
        return self.space.smallest

    def _random(self, step: int, rng: Random) -> Architecture:
        return self.space.draw(rng)

    def _scheduled(self, step: int, rng: Random) -> Architecture:
        return self._sample(schedules(self.space), rng)

    def _band(self, step: int, rng: Random) -> Architecture:
        band = Random(f"band {self.seed} {step // _STAY}").randrange(_BANDS)
        return self._sample(bands(self.space)[band], rng)

    def _sample(self, within: Within, rng: Random) -> Architecture:
        path = within.sample(1, np.random.default_rng(rng.getrandbits(64)))[0]
        architecture: Architecture = decode(self.space, path)
        return architecture


@lru_cache(maxsize=8)
def schedules(space: SearchSpace) -> Within:
    """Architectures of the largest sizes, under any schedule and at any resolution."""
    largest = space.domain.flatten(space.largest)
    weights: list[Floats] = [
        np.array([i == 0 or _as_large(value, most) for value in position.values], float)
        for i, (position, most) in enumerate(zip(space.positions, largest))
    ]
    return Trellis(_costs(space).graph, lambda _: 0.0).within(0.0, ticks=1, weights=weights)


@lru_cache(maxsize=8)
def bands(space: SearchSpace) -> list[Within]:
    """All architectures in six bands of MACs, each as much dearer than the one before."""
    trellis = _costs(space)
    edges = np.geomspace(trellis.fastest, trellis.slowest, _BANDS + 1)
    return [
        trellis.within(float(high), floor=float(low) if i else -np.inf, ticks=_TICKS)
        for i, (low, high) in enumerate(pairwise(edges))
    ]


@lru_cache(maxsize=8)
def _costs(space: SearchSpace) -> Trellis:
    """What architectures cost in millions of MACs; takes some seconds for each space."""
    graph = Graph.of(space)
    millions = {key: count_macs(layer).total / 1e6 for key, layer in graph.items().items()}
    return Trellis(graph, lambda layer: millions[layer.key])


def _as_large(value: Any, most: Any) -> bool:
    """Whether a choice differs from the largest one by its sparsity only."""
    if value == most:
        return True
    pruned = is_dataclass(value) and type(value) is type(most) and hasattr(value, "sparsity")
    return pruned and replace(value, sparsity=most.sparsity) == most
