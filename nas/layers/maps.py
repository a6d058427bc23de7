"""Layers whose input is a map, and their score: which of its windows are the most active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas.layers.elastic import ElasticModule
from nas.layers.windows import halo_tokens, window_orders


class MapModule(ElasticModule):
    """A layer whose input is a map and (here not needed) the order of its windows."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Any, ...]:
        order = None
        if "window" in sizes:
            total = (input_shape[0] // sizes["window"]) ** 2
            order = torch.rand(batch, total).argsort(1)
        return torch.randn(batch, *input_shape), order

    def kept(self, *state: Any, **sizes: int) -> Tensor | None:
        if "kept" not in sizes:
            return None
        x, order = state
        size, window = x.shape[1], sizes["window"]
        tokens = halo_tokens(size, window, 0, x.device)
        if sizes["kept"] < len(tokens):
            tokens = tokens[order[0, : sizes["kept"]]]
        mask = torch.zeros(size * size, dtype=torch.bool)
        mask[tokens.flatten().cpu()] = True
        return mask.view(size, size)


class MapScore(MapModule):
    """Order the windows of a map by their activation, for the blocks of the stage that prune."""

    def __init__(self, **_: int) -> None:
        super().__init__()

    def forward(self, x_BSSC: Tensor, _: Tensor | None, *, window: int) -> tuple[Tensor, Tensor]:
        (order,) = window_orders(x_BSSC, x_BSSC.shape[1], window, (0,))
        return x_BSSC, order
