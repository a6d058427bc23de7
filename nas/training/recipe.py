"""Recipes: how many images a network is trained on, at which sizes, rates and subnets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nas.size import Size, each


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the shipped `mobilevit:micro` began with the defaults.

    `images` are the numbers of samples seen at a quarter, a half and the whole of the largest size
    of the input, in this order, and `batches` their batch sizes. `subnets` says how many of each
    kind a step trains besides the largest, see `nas.training.subnets.Subnets`.
    """

    images: tuple[int, int, int] = (66_944, 15_808, 6_016)
    batches: tuple[int, int, int] = (64, 32, 32)
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    clip_norm: float = 1.0
    subnets: Mapping[str, float] = field(
        default_factory=lambda: {"scheduled": 1.0, "band": 1.0, "smallest": 0.25}
    )
    seed: int = 0

    def scaled(self, images: int) -> Recipe:
        """The same recipe with another total number of images."""
        total = sum(self.images)
        a, b, c = (
            max(batch, n * images // total) if n else 0
            for n, batch in zip(self.images, self.batches)
        )
        return replace(self, images=(a, b, c))

    def steps(self) -> list[int]:
        """The number of steps at each size of the input."""
        return [n // batch for n, batch in zip(self.images, self.batches)]

    def sizes(self) -> list[int]:
        """The size of the batch of each step."""
        return [batch for batch, n in zip(self.batches, self.steps()) for _ in range(n)]

    def phase(self, step: int) -> int:
        """Whether a step runs at a quarter (0), a half (1) or the whole (2) of the largest size."""
        ends = [sum(self.steps()[: i + 1]) for i in range(2)]
        return sum(step >= end for end in ends)

    def size(self, step: int, largest: Size) -> Size:
        """The size of inputs in a step, of which the space has this largest one."""
        part = (4, 2, 1)[self.phase(step)]
        return each(lambda side: side // part, largest)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then half a cosine."""
        total = sum(self.steps())
        warm = max(1, int(total * self.warmup))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    def to_json(self) -> dict[str, Any]:
        """The recipe as the card of a supernet holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# For a supernet that is trained: once more, without the smallest pictures.
ADAPTATION = Recipe(images=(0, 9_600, 9_600), learning_rate=1e-3)
