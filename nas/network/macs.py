"""Parameters and multiply-accumulates of layers and networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from nas.space.layer import Layer, by_path


def count_params(layer: Layer) -> int:
    """Parameters of one layer at its own size."""
    with torch.device("meta"):
        return sum(p.numel() for p in layer.build().parameters())


def sum_params(layers: Iterable[Layer]) -> int:
    """Parameters of a whole network, each layer's once in however many phases it runs."""
    return sum(map(count_params, by_path(layers).values()))


class Macs(NamedTuple):
    """Multiply-accumulates of one inference through one layer.

    Convolutions, linear layers and the two attention products; no bias, norm, softmax, activation,
    pooling or resize.
    """

    total: int
    attention: int  # of submodules called `attention`: projections and products
    attention_products: int  # of them, the two products alone


def count_macs(layer: Layer) -> Macs:
    """Counted by running the layer on tensors without data; batch 1, padding counted as run.

    Equal layers at different places are counted once in a process.
    """
    return _count(replace(layer, path=""))


@lru_cache(maxsize=65536)
def _count(layer: Layer) -> Macs:
    from torch.utils.flop_counter import FlopCounterMode

    layer = layer.at_bits(32)  # as many in int8
    # With gradients, windows run as one chunk instead of many: the same count, forty times sooner.
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.enable_grad():
        module = layer.build().eval()
        module.run(layer.inputs(1), **layer.elastic)
    counts = counter.get_flop_counts()
    attention = [ops for path, ops in counts.items() if path.endswith(".attention")]
    return Macs(
        counter.get_total_flops() // 2,
        sum(sum(ops.values()) for ops in attention) // 2,
        sum(n for ops in attention for op, n in ops.items() if _is_product(op)) // 2,
    )


def sum_macs(layers: Iterable[Layer]) -> Macs:
    """Those of a whole network."""
    counted = [count_macs(layer) for layer in layers]
    return Macs(*(sum(column) for column in zip(*counted, strict=True)))


def _is_product(op: Any) -> bool:
    """Batched products of two activations, as opposed to projections by weights."""
    return any(name in str(op) for name in ("bmm", "attention"))
