"""Modules that run at any size up to the one they were built with.

The prefix rule: at a smaller size a module uses the leading entries of each of its parameters
along each axis, so each elastic size has an axis of its own. The input width is read from the
input; every other size is an argument of the call and never state. `inherit` is the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers.activations import activate
from nas.layers.precision import Quantizer, linear

# Shape suffixes: B batch or windows, N tokens, C width, H heads, D head_dim.


class ElasticModule(nn.Module):
    """A layer of a network: built with keyword sizes, called with (state..., **sizes).

    Keyword-only arguments of `__init__`, `forward`, `run` and `kept` name its sizes (see
    `nas.space.layer`).
    """

    takes: ClassVar[int | None] = None  # how many entries of a state `forward` names; None: all

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        given = list(signature(cls.forward).parameters.values())[1:]
        named = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        cls.takes = None if any(p.kind is p.VAR_POSITIONAL for p in given) else len(named)

    def run(self, state: tuple[Any, ...], *, tap: int = 0, **sizes: int) -> tuple[Any, ...]:
        """The state after this layer, given the state before it.

        A layer takes as many entries of a state as its `forward` has positional arguments. The
        others wait for a later layer and pass by, behind what `forward` returns. A `tap` puts the
        first entry in front of those that wait: nothing may then have written into it.
        """
        if self.takes is not None and len(state) < self.takes:
            raise RuntimeError(f"{type(self).__name__} takes {self.takes} entries of the state")
        after: tuple[Any, ...] = self(*state[: self.takes], **sizes)
        waiting = () if self.takes is None else state[self.takes :]
        return (*after, *state[:tap], *waiting)

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: Any) -> tuple[Any, ...]:
        """Random inputs of the right shapes, to run this layer on its own; gets every size."""
        return (torch.randn(batch, *input_shape),)

    def kept(self, *state: Any, **sizes: Any) -> Tensor | None:
        """Which tokens of the first image this layer works on: a bool map, to be drawn.

        None for layers that always work on everything.
        """
        return None

    def reorder(self) -> None:
        """Put the most important heads and hidden channels first; the function stays the same.

        Importance is the L1 norm of all weights of a head or channel. For a layer at full size.
        """
        for child in self.children():
            if isinstance(child, Reorderable):
                child.reorder()


@runtime_checkable
class Reorderable(Protocol):
    """A module whose heads or hidden channels can be put in an order of importance."""

    def reorder(self) -> None:
        """Put the most important ones first; the function stays the same."""


def inherit(small: nn.Module, large: nn.Module) -> None:
    """Copy the leading slice of every parameter and buffer of `large` into `small`.

    A module with an `inherit` of its own says itself what it takes over.
    """
    if isinstance(small, Inheriting):
        small.inherit(large)
        return
    own = [*small.named_parameters(recurse=False), *small.named_buffers(recurse=False)]
    with torch.no_grad():
        for name, tensor in own:
            tensor.copy_(getattr(large, name)[tuple(map(slice, tensor.shape))])
    for name, child in small.named_children():
        inherit(child, large.get_submodule(name))


@runtime_checkable
class Inheriting(Protocol):
    """A module that takes over more than the leading slices of a larger one's tensors."""

    def inherit(self, large: Any) -> None:
        """Copy the weights of `large`, of the same class."""


def importance(weight: Tensor, axis: int) -> Tensor:
    """The L1 norm of each slice of `weight` along `axis`."""
    return weight.detach().abs().transpose(0, axis).flatten(1).sum(1)


def permute(order: Tensor, *slots: tuple[Tensor, int]) -> None:
    """Reorder each (parameter, axis) in place."""
    with torch.no_grad():
        for tensor, axis in slots:
            tensor.copy_(tensor.index_select(axis, order))


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """The leading entries of `tensor` along each axis."""
    return tensor if tensor.shape == sizes else tensor[tuple(map(slice, sizes))]


class ElasticLinear(nn.Linear):
    """y = x W[:out, :in]^T + b[:out], in float32 or int8."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.input = Quantizer()
        nn.init.trunc_normal_(self.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        out_features: int | None = None,
        bits: int = 32,
        residual: Tensor | None = None,
    ) -> Tensor:
        """x (..., in) projected to (..., out), plus `residual` of that shape.

        During inference the residual may be overwritten with the result.
        """
        out = out_features or self.out_features
        bias = None if self.bias is None else leading(self.bias, out)
        weight = leading(self.weight, out, x.shape[-1])
        return linear(x, weight, bias, self.input, bits, residual=residual)


def classifier(in_features: int, outputs: int) -> nn.Module:
    """The last linear layer of a head; features pass as they are where nothing is asked of them."""
    return ElasticLinear(in_features, outputs) if outputs else nn.Identity()


class ElasticLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that arrive."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised channels of x (..., C)."""
        c = x.shape[-1]
        return F.layer_norm(x, (c,), leading(self.weight, c), leading(self.bias, c), self.eps)


class ElasticMlp(nn.Module):
    """Two linear layers with an activation, GELU by default, between them."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1 = ElasticLinear(width, hidden)
        self.fc2 = ElasticLinear(hidden, width)
        self.activation = activation

    def forward(
        self, x: Tensor, hidden: int, bits: int = 32, residual: Tensor | None = None
    ) -> Tensor:
        """x (..., C) through both layers to the same shape, plus `residual` of that shape.

        During inference the residual may be overwritten with the result.
        """
        y = activate(self.activation, self.fc1(x, hidden, bits))
        return self.fc2(y, x.shape[-1], bits, residual)  # type: ignore[no-any-return]

    def reorder(self) -> None:
        """Sort hidden channels by importance."""
        order = importance(self.fc1.weight, 0) + importance(self.fc2.weight, 1)
        order = order.argsort(descending=True)
        permute(order, (self.fc1.weight, 0), (self.fc1.bias, 0), (self.fc2.weight, 1))


@runtime_checkable
class PatchEmbedding(Protocol):
    """A module that projects patches to tokens with positions, which need not be learned."""

    def fix_positions(self) -> None:
        """Take sines and cosines as positions, which are not learned."""

    def freeze_projection(self) -> None:
        """Take the projection out of what is trained."""


@runtime_checkable
class Deployable(Protocol):
    """A module that gets faster once its weights no longer change."""

    def deploy(self) -> None:
        """Prepare for inference only, in place."""
