"""Modules that run at any size up to the one they were built with.

The prefix rule: at a smaller size a module uses the leading entries of each of its parameters
along each axis, so each elastic size has an axis of its own. The input width is read from the
input; every other size is an argument of the call and never state. `inherit` is the same rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers.precision import Quantizer, linear

# Shape suffixes: B batch or windows, N tokens, C width, H heads, D head_dim.


class ElasticModule(nn.Module):
    """A layer of a network: built with keyword sizes, called with (state..., **sizes)."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Any, ...]:
        """Random inputs of the right shapes, to run this layer on its own."""
        return (torch.randn(batch, *input_shape),)

    def kept(self, *state: Any, **sizes: int) -> Tensor | None:
        """Which tokens of the first image this layer works on: a square bool map, to be drawn.

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
    def reorder(self) -> None: ...


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
    def inherit(self, large: Any) -> None: ...


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


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) of a tensor nobody else holds: in place during inference, 10-15 % faster."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


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
        """`residual` is added; during inference it may be overwritten with the result."""
        out = out_features or self.out_features
        bias = None if self.bias is None else leading(self.bias, out)
        weight = leading(self.weight, out, x.shape[-1])
        return linear(x, weight, bias, self.input, bits, residual=residual)


class ElasticLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that arrive."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return F.layer_norm(x, (c,), leading(self.weight, c), leading(self.bias, c), self.eps)


# ElasticAttention's tensors as timm calls them inside a block.
ATTENTION_NAMES = {
    "attention.qkv": "attn.qkv.weight",
    "attention.qkv_bias": "attn.qkv.bias",
    "attention.out": "attn.proj.weight",
    "attention.out_bias": "attn.proj.bias",
}


class ElasticAttention(nn.Module):
    """Multi-head self-attention with `heads` of `head_dim` channels, whatever the width.

    At 8 bits the four projections are int8; the two attention products stay in float32.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(3, heads, head_dim, width))
        self.qkv_bias = nn.Parameter(torch.zeros(3, heads, head_dim))
        self.out = nn.Parameter(torch.empty(width, heads, head_dim))
        self.out_bias = nn.Parameter(torch.zeros(width))
        self.input, self.mixed = Quantizer(), Quantizer()
        for weight in (self.qkv, self.out):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(
        self,
        x_BNC: Tensor,
        heads: int,
        bias: Tensor | None = None,
        bits: int = 32,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`bias` is added to the attention logits; it broadcasts to (B, heads, N, N).

        `residual` (B, N, C) is added; during inference it may be overwritten with the result.
        """
        b, n, c = x_BNC.shape
        d = self.qkv.shape[2]
        weight = leading(self.qkv, 3, heads, d, c).reshape(3 * heads * d, c)
        qkv_bias = leading(self.qkv_bias, 3, heads, d).reshape(-1)
        qkv = linear(x_BNC, weight, qkv_bias, self.input, bits)
        q, k, v = qkv.view(b, n, 3, heads, d).permute(2, 0, 3, 1, 4)
        y_BHND = _attend(q, k, v, bias)
        y = y_BHND.transpose(1, 2).reshape(b, n, heads * d)
        out, out_bias = leading(self.out, c, heads, d).reshape(c, -1), leading(self.out_bias, c)
        return linear(y, out, out_bias, self.mixed, bits, residual=residual)

    def reorder(self, *others: tuple[Tensor, int]) -> None:
        """Heads by importance; `others` are tensors with a head axis that belong to them."""
        order = (importance(self.qkv, 1) + importance(self.out, 1)).argsort(descending=True)
        permute(order, (self.qkv, 1), (self.qkv_bias, 1), (self.out, 1), *others)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for q, k, v (B, H, N, D), by the fastest kernel.

    Over many tokens the fused one (against explicit products on one thread of an Intel Xeon: 1.02-
    1.08x at 197, 1.2-1.4x at 577 to 1025); in windows it depends on the CPU. CPUs have none that
    learns a bias, and runtimes know attention by its explicit products.
    """
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    small = q.shape[2] <= _SMALL and _explicit_wins is True
    if (not q.is_cuda and (learned or small)) or torch.onnx.is_in_onnx_export():
        return _explicit(q, k, v, bias)
    return _fused(q, k, v, bias)


def _explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    y: Tensor = (logits if bias is None else logits + bias).softmax(-1) @ v
    return y


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        bias = bias.expand(len(q), q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


_SMALL = 64  # tokens of a window at most


_explicit_wins: bool | None = None  # None until asked


def explicit_in_windows(choice: bool | None = None) -> bool:
    """Whether explicit products beat the fused kernel in windows on this CPU: timed once, 20 ms.

    With 49 tokens and a bias they were 1.3x slower on an Intel Xeon (AMX) and 1.1-1.5x faster on an
    AMD EPYC (Zen 5). `deploy` asks first, outside of any trace; until then the answer is no. The
    two differ by rounding, so processes whose scores are compared need one answer: a `choice`, what
    another process was told, stands from then on in this one.
    """
    global _explicit_wins
    if choice is not None:
        _explicit_wins = choice
    elif _explicit_wins is None:
        _explicit_wins = _time_explicit()
    return _explicit_wins


def _time_explicit() -> bool:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    q, bias = torch.full((32, 3, 49, 32), 0.5), torch.zeros(1, 3, 49, 49)
    times: dict[Any, list[float]] = {_fused: [], _explicit: []}
    try:
        with torch.inference_mode():
            for _ in range(8):
                for kernel, own in times.items():
                    start = time.perf_counter()
                    kernel(q, q, q, bias)
                    own.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times[_explicit]) < min(times[_fused])


class ElasticMlp(nn.Module):
    """Two linear layers with an activation, GELU by default, between them."""

    def __init__(
        self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = gelu
    ) -> None:
        super().__init__()
        self.fc1 = ElasticLinear(width, hidden)
        self.fc2 = ElasticLinear(hidden, width)
        self.activation = activation

    def forward(
        self, x: Tensor, hidden: int, bits: int = 32, residual: Tensor | None = None
    ) -> Tensor:
        """`residual` is added; during inference it may be overwritten with the result."""
        y = self.activation(self.fc1(x, hidden, bits))
        return self.fc2(y, x.shape[-1], bits, residual)  # type: ignore[no-any-return]

    def reorder(self) -> None:
        order = importance(self.fc1.weight, 0) + importance(self.fc2.weight, 1)
        order = order.argsort(descending=True)
        permute(order, (self.fc1.weight, 0), (self.fc1.bias, 0), (self.fc2.weight, 1))


@runtime_checkable
class Deployable(Protocol):
    def deploy(self) -> None: ...
