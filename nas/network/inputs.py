"""Inputs of networks: what an example of a family looks like, and how it gets another size."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor

from nas.size import Size, sides


class Images:
    """The input of families that take pictures of three channels; its size is that in pixels."""

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

    def example(self, size: Size) -> tuple[int, ...]:
        """(3, height, width)."""
        return 3, *sides(size)

    def resized(self, inputs: Tensor, size: Size) -> Tensor:
        """Pictures (n, channels, height, width) at another size, bilinear and anti-aliased."""
        if inputs.shape[-2:] == sides(size):
            return inputs
        return F.interpolate(inputs, sides(size), mode="bilinear", antialias=True)
