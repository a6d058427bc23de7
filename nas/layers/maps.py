"""Layers between images, maps and answers that families share, and the score of windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.layers.conv import ConvNorm
from nas.layers.elastic import ElasticModule
from nas.layers.windows import halo_tokens, map_size, window_orders, windows_in
from nas.size import Size, area, sides, size_of

# Shape suffixes: B batch, SS height and width of the map, C width.


class StridedStem(ElasticModule):
    """A 3x3 convolution of stride 2 with norm and activation, from images to a map."""

    def __init__(self, width: int, activation: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = ConvNorm(3, width, 3, stride=2, activation=activation, eps=eps)

    def forward(self, images: Tensor, *, width: int) -> tuple[Tensor, None]:
        """Return the map of images (B, 3, height, width); its windows have no order yet."""
        return self.conv(images.permute(0, 2, 3, 1), width).contiguous(), None


class MapModule(ElasticModule):
    """A layer whose input is a map and, once they are scored, the order of its windows."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: Any) -> tuple[Any, ...]:
        """Draw a map, and an order of its windows where the layer has some."""
        order = None
        if "window" in sizes:
            total = windows_in(size_of(*input_shape[:2]), sizes["window"])
            order = torch.rand(batch, total).argsort(1)
        return torch.randn(batch, *input_shape), order

    def kept(
        self, x_BSSC: Tensor, order: Tensor, *others: Tensor, window: Size = 0, kept: int = 0
    ) -> Tensor | None:
        """Mark the tokens of the windows that are kept, (S, S); None for a layer without any."""
        if not kept:
            return None
        size = map_size(x_BSSC)
        tokens = halo_tokens(size, window, 0, x_BSSC.device)
        if kept < len(tokens):
            tokens = tokens[order[0, :kept]]
        mask = torch.zeros(area(size), dtype=torch.bool)
        mask[tokens.flatten().cpu()] = True
        return mask.view(sides(size))


class MapScore(MapModule):
    """Order the windows of a map by their activation, for the blocks of the stage that prune."""

    def forward(self, x_BSSC: Tensor, _: Tensor | None, *, window: Size) -> tuple[Tensor, Tensor]:
        """Return the map as it is, and the order (B, windows), most active first."""
        (order,) = window_orders(x_BSSC, map_size(x_BSSC), window, (0,))
        return x_BSSC, order


class PooledHead(MapModule):
    """The last pointwise convolution and the mean over the map, before a family's classifier."""

    def __init__(self, width: int, hidden: int, activation: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = ConvNorm(width, hidden, activation=activation, eps=eps)

    def pooled(self, x_BSSC: Tensor, hidden: int | None = None) -> Tensor:
        """Return the mean (B, hidden); `hidden` is by default what it was built with."""
        mean: Tensor = self.conv(x_BSSC, hidden).mean((1, 2))
        return mean


def resized(x_BSSC: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """A map at another size, pixels as areas; `mode` is one of torch's `interpolate`."""
    x = F.interpolate(x_BSSC.permute(0, 3, 1, 2), sides(size), mode=mode)
    return x.permute(0, 2, 3, 1)


def channels_first(x_BSSC: Tensor, b: int) -> Tensor:
    """(b, C, N): a map, or windows of `b` images, a view where that is possible."""
    if len(x_BSSC) == b:
        return x_BSSC.permute(0, 3, 1, 2).flatten(2)
    return x_BSSC.reshape(b, -1, x_BSSC.shape[-1]).mT


def unfold(x_BSSC: Tensor, patch: int) -> Tensor:
    """(B, P, N, C): the P pixels of each of the N patches of a map of whole patches."""
    b, height, width, c = x_BSSC.shape
    down, across = height // patch, width // patch
    x = x_BSSC.reshape(b, down, patch, across, patch, c).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, patch * patch, down * across, c)


def fold(x_BPNC: Tensor, patch: int, size: Size) -> Tensor:
    """The map of this size, (B, S, S, C), that `unfold` makes x of."""
    b, _, _, c = x_BPNC.shape
    height, width = sides(size)
    x = x_BPNC.view(b, patch, patch, height // patch, width // patch, c)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, height, width, c)
