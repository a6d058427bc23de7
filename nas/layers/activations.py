"""Activations by name; those that a layer applies to its own tensor work in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.layers import mode

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # of OpenAI's CLIP
}
_IN_PLACE: dict[str, Activation] = {
    "relu": partial(F.relu, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True),
    "silu": partial(F.silu, inplace=True),
    "gelu": lambda x: torch.ops.aten.gelu_(x),  # 10-15 % faster than with memory of its own
}


def activate(name: str, x: Tensor) -> Tensor:
    """The activation of a tensor that nobody else holds: in place where autograd allows it."""
    table = ACTIVATIONS if mode.recording() else _IN_PLACE
    return table.get(name, ACTIVATIONS[name])(x)
