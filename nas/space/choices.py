"""Choices, and the space of choices, that families share."""

from __future__ import annotations

from nas.space.architecture import Architecture, Stage
from nas.space.domains import Choice, Fixed, Space

DENSE = Choice(0)  # sparsities in percent, the cheapest first
HALF = Choice(50, 0)
FIFTHS = Choice(80, 60, 40, 20, 0)
TENTHS = Choice(90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
FLOAT = Choice("fp32")  # precisions
EITHER = Choice("int8", "fp32")


def stages(resolution: Choice, *domains: Space[Stage]) -> Space[Architecture]:
    """The domain of architectures of these stages."""
    return Space(Architecture, resolution=resolution, stages=Fixed(*domains))
