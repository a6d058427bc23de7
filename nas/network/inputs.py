"""Inputs of networks: what an example of a family looks like, and how it gets another size."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor


class Images:
    """The input of families that take square pictures of three channels; its size is their side."""

    takes = "images"
    unit = "px"

    def for_maps(self) -> Self:
        """The parts of networks whose head reads a map, of which nothing is left behind then.

        They are the same, unless a family says otherwise.
        """
        return self

    @property
    def multiple(self) -> int:
        """Sides may be any, unless a family says otherwise."""
        return 1

    def example(self, size: int) -> tuple[int, ...]:
        """(3, size, size)."""
        return 3, size, size

    def resized(self, inputs: Tensor, size: int) -> Tensor:
        """Pictures (n, channels, side, side) at another side, bilinear and anti-aliased."""
        if inputs.shape[-1] == size:
            return inputs
        return F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)
