"""Elastic convolutions on channel-last maps, and inverted residuals that prune windows.

A map is (B, S, S, C), contiguous: a pointwise convolution is a linear layer on it, and a window is
a gather of its rows. Inverted residuals: MobileNetV2, Sandler et al., CVPR 2018,
https://arxiv.org/abs/1801.04381; squeeze-and-excitation: MobileNetV3, Howard et al., ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.layers.elastic import ElasticModule, importance, permute
from nas.layers.precision import Quantizer, conv2d, linear
from nas.layers.windows import constant, window_orders

# Shape suffixes: B batch, S side of the map, W windows, N tokens of a window, C width.

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": partial(F.relu, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True),
    "silu": partial(F.silu, inplace=True),
}


class BatchNorm(nn.Module):
    """BatchNorm over the channels that arrive; a subnet needs statistics of its own."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.eps = eps
        self.momentum = 0.1

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x_BSSC: Tensor) -> Tensor:
        c = x_BSSC.shape[-1]
        y = F.batch_norm(
            x_BSSC.permute(0, 3, 1, 2),
            self.running_mean[:c],
            self.running_var[:c],
            self.weight[:c],
            self.bias[:c],
            self.training,
            self.momentum,
            self.eps,
        )
        return y.permute(0, 2, 3, 1)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (channels,) that do the same in evaluation mode."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and activation, elastic in both widths and in the kernel.

    A smaller kernel is the centre of the largest (once-for-all, Cai et al., ICLR 2020, without its
    transformation matrices). Padding keeps the size at stride 1. Int8 (not for depthwise ones)
    quantizes what runs when the norm is folded in, so it acts the same before and after `deploy`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        norm: bool = True,
        bias: bool = False,
        activation: str = "",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        shape = (outputs, 1 if depthwise else inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.weight, std=(2 / (kernel**2 * shape[1])) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.norm = BatchNorm(outputs, eps) if norm else None
        self.input = None if depthwise else Quantizer()
        self.stride, self.depthwise = stride, depthwise
        self.activation = ACTIVATIONS[activation]
        self.in_place = _IN_PLACE.get(activation, self.activation)

    def forward(
        self,
        x_BSSC: Tensor,
        outputs: int | None = None,
        kernel: int | None = None,
        bits: int = 32,
        pad: bool = True,
    ) -> Tensor:
        weight, bias = self._sliced(outputs or len(self.weight), x_BSSC.shape[-1], kernel)
        norm = self.norm
        if norm is not None and bits == 8 and not self.training:
            scale, shift = (t[: len(weight)] for t in norm.affine())
            weight, bias = weight * scale[:, None, None, None], _folded(bias, scale, shift)
            norm = None
        y = self._convolve(x_BSSC, weight, bias, bits, pad)
        y = y if norm is None else norm(y)
        return self.activation(y) if torch.is_grad_enabled() else self.in_place(y)

    def _sliced(
        self, outputs: int, inputs: int, kernel: int | None
    ) -> tuple[Tensor, Tensor | None]:
        inputs = 1 if self.depthwise else inputs
        if self.weight.shape[:2] == (outputs, inputs) and kernel in (None, self.weight.shape[-1]):
            return self.weight, self.bias
        edge = (self.weight.shape[-1] - (kernel or self.weight.shape[-1])) // 2
        weight = self.weight[:outputs, :inputs]
        if edge:
            weight = weight[..., edge:-edge, edge:-edge]
        return weight, None if self.bias is None else self.bias[:outputs]

    def _convolve(
        self, x_BSSC: Tensor, weight: Tensor, bias: Tensor | None, bits: int, pad: bool
    ) -> Tensor:
        kernel = weight.shape[-1]
        padding = kernel // 2 if pad else 0
        exporting = torch.onnx.is_in_onnx_export()  # runtimes have their fast path for convolutions
        if kernel == self.stride == 1 and self.input is not None and not (exporting and bits == 32):
            if bits == 8 or bias is None:
                return linear(x_BSSC, weight.flatten(1), bias, self.input, bits)
            # Faster by 5 % than a bias that the product starts from.
            return linear(x_BSSC, weight.flatten(1), None, self.input).add_(bias)
        x = x_BSSC.permute(0, 3, 1, 2)
        if self.input is None:
            y = F.conv2d(x, weight, bias, self.stride, padding, groups=len(weight))
        else:
            y = conv2d(x, weight, bias, self.input, bits, self.stride, padding)
        return y.permute(0, 2, 3, 1)

    def inherit(self, large: ConvNorm) -> None:
        if (self.norm is None) != (large.norm is None):
            raise ValueError("a deployed network has no norms left to inherit; inherit before")
        outputs, inputs, _, kernel = self.weight.shape
        weight, bias = large._sliced(outputs, inputs, kernel)
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)
            if self.input is not None and large.input is not None:
                self.input.clip.copy_(large.input.clip)
            if self.norm is not None and large.norm is not None:
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(self.norm, name).copy_(getattr(large.norm, name)[:outputs])

    def deploy(self) -> None:
        """Fold the norm into the weights."""
        with torch.no_grad():
            if self.norm is not None:
                scale, shift = self.norm.affine()
                self.weight.mul_(scale[:, None, None, None])
                self.bias = nn.Parameter(_folded(self.bias, scale, shift))
                self.norm = None
            if self.weight.shape[-1] > 1:
                self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)
            else:  # products of small maps are up to 1.3x faster with inputs in rows
                self.weight.data = self.weight.data.transpose(0, 1).contiguous().transpose(0, 1)

    def slots(self, axis: int) -> tuple[tuple[Tensor, int], ...]:
        """The tensors with output channels (axis 0), or with input channels (axis 1)."""
        if axis == 1:
            return ((self.weight, 1),)
        norm = [] if self.norm is None else [*self.norm.parameters(), *self.norm.buffers()]
        bias = [] if self.bias is None else [self.bias]
        return ((self.weight, 0), *((tensor, 0) for tensor in (*bias, *norm)))


def _folded(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return shift.clone() if bias is None else bias * scale + shift


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate of their mean over the map (MobileNetV3, section 5.3).

    In float32 at every precision: int8 products of one row take twice as long. During inference
    it works in place.
    """

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(width, squeezed), nn.Linear(squeezed, width)
        for layer in (self.reduce, self.expand):
            nn.init.trunc_normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BSSC: Tensor, squeezed: int) -> Tensor:
        c = x_BSSC.shape[-1]
        y = F.linear(
            x_BSSC.mean((1, 2)), self.reduce.weight[:squeezed, :c], self.reduce.bias[:squeezed]
        )
        y = F.linear(F.relu(y), self.expand.weight[:c, :squeezed], self.expand.bias[:c])
        gate = F.hardsigmoid(y)[:, None, None]
        return x_BSSC * gate if torch.is_grad_enabled() else x_BSSC.mul_(gate)

    def deploy(self) -> None:
        for layer in (self.reduce, self.expand):
            layer.weight.data = layer.weight.data.t().contiguous().t()

    def reorder(self) -> None:
        """Squeezed channels by importance."""
        order = importance(self.reduce.weight, 0) + importance(self.expand.weight, 1)
        slots = (self.reduce.weight, 0), (self.reduce.bias, 0), (self.expand.weight, 1)
        permute(order.argsort(descending=True), *slots)


def map_window(size: int, largest: int = 8) -> int:
    """The side of the windows in which a map of side `size` is pruned.

    The largest divisor of up to `largest` tokens; a side that has none above 2 is one window.
    """
    window = max(d for d in range(1, largest + 1) if size % d == 0)
    return window if window > 2 else size


def _halo_tokens(size: int, window: int, halo: int) -> NDArray[np.int64]:
    first = np.arange(0, size, window)
    line = (first[:, None] + np.arange(-halo, window + halo)).clip(0, size - 1)
    y, x = line[:, None, :, None], line[None, :, None, :]
    tokens: NDArray[np.int64] = (y * size + x).reshape(len(first) ** 2, -1)
    return tokens


@constant
def halo_tokens(size: int, window: int, halo: int) -> NDArray[np.int64]:
    """(windows, (window + 2 halo)**2) tokens of each window and its surroundings.

    Beyond the edge of the map stands the nearest token; `halo_inside` says where.
    """
    return _halo_tokens(size, window, halo)


@constant
def halo_inside(size: int, window: int, halo: int) -> NDArray[np.float32]:
    """(windows, (window + 2 halo)**2, 1): 1 where the token lies in the map, 0 beyond its edge."""
    first = np.arange(0, size, window)
    line = first[:, None] + np.arange(-halo, window + halo)
    line = ((line >= 0) & (line < size)).astype(np.float32)
    inside = line[:, None, :, None] * line[None, :, None, :]
    return inside.reshape(len(first) ** 2, -1, 1)


def on_kept_windows(
    run: Callable[[Tensor, Tensor | None], Tensor],
    x_BSSC: Tensor,
    order: Tensor,
    *,
    kept: int,
    window: int,
    halo: int,
) -> Tensor:
    """The map with `run` applied to the `kept` first windows of `order` (B, windows).

    `run(x, inside)` gets x (B * kept, window + 2 halo, window + 2 halo, C) and where its tokens lie
    in the map (B * kept, window + 2 halo, window + 2 halo, 1), None if all do; it returns what the
    inner (B * kept, window, window, C) become. Dropped windows pass unchanged.
    """
    size, c = x_BSSC.shape[2:]
    side = window + 2 * halo
    chosen = order[:, :kept]
    rows = kept_rows(size, window, halo, chosen)
    inside = None
    if halo:
        inside = halo_inside(size, window, halo, order.device)[chosen].view(-1, side, side, 1)
    y = run(x_BSSC.reshape(-1, c).index_select(0, rows).view(-1, side, side, c), inside)
    return written(x_BSSC, kept_rows(size, window, 0, chosen) if halo else rows, y)


def kept_rows(size: int, window: int, halo: int, chosen: Tensor) -> Tensor:
    """Of all tokens of a batch of maps, those of each one's `chosen` windows (B, kept)."""
    tokens = halo_tokens(size, window, halo, chosen.device)[chosen]
    if len(chosen) > 1:
        last = len(chosen) * size * size
        tokens = tokens + torch.arange(0, last, size * size, device=chosen.device)[:, None, None]
    return tokens.flatten()


def written(x_BSSC: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """The map with `y` in these rows; nobody else holds it during inference, autograd otherwise."""
    c = x_BSSC.shape[-1]
    flat = x_BSSC.reshape(-1, c)
    base = flat.clone() if torch.is_grad_enabled() else flat
    return base.index_copy_(0, rows, y.reshape(-1, c)).view(x_BSSC.shape)


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


# Kept windows with their surroundings, as a share of the map: from here on it is faster to expand
# and convolve the whole map, and to project the kept windows.
WHOLE = 1.0


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, (gate,) project; the input is added where shapes allow it.

    `expand` may be missing (then the depthwise convolution works on the input's channels). Padding
    of the depthwise convolution is zero after the expansion, in windows as in whole maps.
    """

    def __init__(
        self,
        width_in: int,
        hidden: int,
        width: int,
        kernel: int,
        *,
        stride: int = 1,
        squeezed: int = 0,
        expand: bool = True,
        residual: bool = True,
        activation: str = "hardswish",
        eps: float = 1e-5,
        norms: tuple[bool, bool, bool] = (True, True, True),
    ) -> None:
        super().__init__()
        kinds: list[dict[str, Any]] = [{"norm": n, "bias": not n, "eps": eps} for n in norms]
        conv = partial(ConvNorm, activation=activation)
        self.expand = conv(width_in, hidden, **kinds[0]) if expand else None
        self.depthwise = conv(hidden, hidden, kernel, stride=stride, depthwise=True, **kinds[1])
        self.gate = SqueezeExcite(hidden, squeezed) if squeezed else None
        self.project = ConvNorm(hidden, width, **kinds[2])
        self.residual = residual

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None = None,
        *,
        hidden: int,
        width: int,
        kernel: int,
        squeezed: int = 0,
        bits: int = 32,
        window: int = 0,
        kept: int = 0,
    ) -> Tensor:
        """The whole map or, if that is less, the `kept` first windows of `order` (B, windows)."""
        if window and kept < (x_BSSC.shape[1] // window) ** 2:
            assert order is not None
            sizes = {"hidden": hidden, "width": width, "kernel": kernel, "squeezed": squeezed}
            return self._on_windows(x_BSSC, order, kept=kept, window=window, bits=bits, **sizes)
        y = x_BSSC if self.expand is None else self.expand(x_BSSC, hidden, bits=bits)
        y = self.depthwise(y, hidden, kernel)
        if self.gate is not None:
            y = self.gate(y, squeezed)
        y = self.project(y, width, bits=bits)
        if self.residual and y.shape == x_BSSC.shape:
            y = y.add_(x_BSSC)
        return y  # type: ignore[no-any-return]

    def _on_windows(
        self,
        x_BSSC: Tensor,
        order: Tensor,
        *,
        kept: int,
        window: int,
        hidden: int,
        width: int,
        kernel: int,
        squeezed: int,
        bits: int,
    ) -> Tensor:
        """The kept windows; they see their surroundings, the gate sees the kept windows alone."""
        b, size, _, c = x_BSSC.shape
        halo = kernel // 2

        def project(y: Tensor) -> Tensor:
            if self.gate is not None:
                y = self.gate(y.reshape(b, -1, window, hidden), squeezed)
            return self.project(y.reshape(-1, window, window, hidden), width, bits=bits)  # type: ignore[no-any-return]

        def run(x: Tensor, inside: Tensor | None) -> Tensor:
            y = x if self.expand is None else self.expand(x, hidden, bits=bits)
            if inside is not None:
                y = y * inside if torch.is_grad_enabled() else y.mul_(inside)
            y = project(self.depthwise(y, hidden, kernel, pad=False))
            return y.add_(x[:, halo:-halo, halo:-halo]) if self.residual else y

        if kept * (window + 2 * halo) ** 2 < WHOLE * size**2:
            return on_kept_windows(run, x_BSSC, order, kept=kept, window=window, halo=halo)
        y = x_BSSC if self.expand is None else self.expand(x_BSSC, hidden, bits=bits)
        y = self.depthwise(y, hidden, kernel).reshape(-1, hidden)
        rows = kept_rows(size, window, 0, order[:, :kept])
        y = project(y.index_select(0, rows)).view(-1, width)
        y = y.add_(x_BSSC.reshape(-1, c).index_select(0, rows)) if self.residual else y
        return written(x_BSSC, rows, y)

    def reorder(self) -> None:
        """Hidden channels by importance."""
        if self.gate is not None:
            self.gate.reorder()
        if self.expand is None:  # they are the channels of the map
            return
        hidden = [*self.expand.slots(0), *self.depthwise.slots(0), *self.project.slots(1)]
        total = importance(self.expand.weight, 0) + importance(self.depthwise.weight, 0)
        total += importance(self.project.weight, 1)
        if self.gate is not None:
            gate = self.gate
            hidden += [(gate.reduce.weight, 1), (gate.expand.weight, 0), (gate.expand.bias, 0)]
        permute(total.argsort(descending=True), *hidden)
