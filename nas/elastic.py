"""Modules that run at any size up to the one they were built with, and networks made of them.

The prefix rule: at a smaller size a module uses the leading entries of each of its parameters
along each axis, so each elastic size has an axis of its own. The input width is read from the
input; every other size is an argument of the call and never state. `inherit` is the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.family import Layer, SearchSpace
from nas.space import Architecture

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

    def inherit(self, large: nn.Module) -> None:
        """Take over the leading slice of every parameter of `large`."""
        source = dict(large.named_parameters())
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(source[name][tuple(map(slice, parameter.shape))])


class ElasticLinear(nn.Linear):
    """y = x W[:out, :in]^T + b[:out]."""

    def forward(self, x: Tensor, out_features: int | None = None) -> Tensor:
        out = out_features or self.out_features
        bias = None if self.bias is None else self.bias[:out]
        return F.linear(x, self.weight[:out, : x.shape[-1]], bias)


class ElasticLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that arrive."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return F.layer_norm(x, (c,), self.weight[:c], self.bias[:c], self.eps)


class ElasticAttention(nn.Module):
    """Multi-head self-attention with `heads` of `head_dim` channels, whatever the width."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(3, heads, head_dim, width))
        self.qkv_bias = nn.Parameter(torch.zeros(3, heads, head_dim))
        self.out = nn.Parameter(torch.empty(width, heads, head_dim))
        self.out_bias = nn.Parameter(torch.zeros(width))
        for weight in (self.qkv, self.out):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x_BNC: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
        """`bias` is added to the attention logits; it broadcasts to (B, heads, N, N)."""
        b, n, c = x_BNC.shape
        d = self.qkv.shape[2]
        weight = self.qkv[:, :heads, :, :c].reshape(3 * heads * d, c)
        qkv = F.linear(x_BNC, weight, self.qkv_bias[:, :heads].reshape(-1))
        q, k, v = qkv.view(b, n, 3, heads, d).permute(2, 0, 3, 1, 4)
        if x_BNC.is_cuda:
            y_BHND = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:  # explicit products are 1.1-1.5x faster than the fused kernel on CPUs at these sizes
            logits = (q * d**-0.5) @ k.mT
            y_BHND = (logits if bias is None else logits + bias).softmax(-1) @ v
        y = y_BHND.transpose(1, 2).reshape(b, n, heads * d)
        return F.linear(y, self.out[:c, :heads].reshape(c, heads * d), self.out_bias[:c])


class ElasticMlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ElasticLinear(width, hidden)
        self.fc2 = ElasticLinear(hidden, width)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, hidden: int) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x, hidden)), x.shape[-1])  # type: ignore[no-any-return]


class Network(nn.Module):
    """The layers of an architecture; runs that architecture or any smaller one of its space.

    Built at `space.largest` it is the supernet; built at one architecture it is the plain model.
    Images are (batch, 3, resolution, resolution) floats, logits (batch, classes).
    """

    def __init__(self, space: SearchSpace, architecture: Architecture, classes: int) -> None:
        super().__init__()
        self.space, self.architecture, self.classes = space, architecture, classes
        self._own = space.layers(architecture, classes)
        built = {layer.path: layer for layer in self._own}
        self.layers = nn.ModuleDict({path: layer.build() for path, layer in built.items()})

    @classmethod
    def empty(cls, space: SearchSpace, architecture: Architecture, classes: int) -> Network:
        """A network in evaluation mode whose weights hold anything: to be filled at once."""
        with torch.device("meta"):
            network = cls(space, architecture, classes)
        return network.to_empty(device="cpu").eval()

    def forward(self, images: Tensor, architecture: Architecture | None = None) -> Tensor:
        state: tuple[Any, ...] = (images,)
        layers = self._own
        if architecture is not None:
            layers = self.space.layers(architecture, self.classes)
        for layer in layers:
            state = self.module(layer)(*state, **layer.sizes)
        logits: Tensor = state[0]
        return logits

    def module(self, layer: Layer) -> nn.Module:
        """What runs a layer; one without weights need not be in the largest architecture."""
        return self.layers[layer.path] if layer.path in self.layers else layer.build()

    @torch.no_grad()
    def kept(self, images: Tensor) -> dict[str, Tensor]:
        """For each layer that can prune, by path: the tokens of the first image it works on."""
        state: tuple[Any, ...] = (images,)
        maps = {}
        for layer in self.space.layers(self.architecture, self.classes):
            module: Any = self.layers[layer.path]
            if (kept := module.kept(*state, **layer.sizes)) is not None:
                maps[layer.path] = kept
            state = module(*state, **layer.sizes)
        return maps

    def inherit(self, architecture: Architecture) -> Network:
        """The plain model of `architecture` with this network's weights."""
        plain = Network.empty(self.space, architecture, self.classes)
        device = next(self.parameters()).device
        for path, module in plain.layers.items():
            if path in self.layers:
                module.inherit(self.layers[path])  # type: ignore[operator]
        return plain.to(device)


def count_params(layer: Layer) -> int:
    """Parameters of one layer at its own size."""
    with torch.device("meta"):
        return sum(p.numel() for p in layer.build().parameters())


def count_macs(layer: Layer) -> int:
    """Multiply-accumulates of one inference through one layer.

    Convolutions, linear layers and the two attention products; no bias, norm, softmax, activation,
    pooling or resize.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        module = layer.build()
        module(*module.inputs(1, layer.input_shape, **layer.sizes), **layer.sizes)
    return int(counter.get_total_flops()) // 2
