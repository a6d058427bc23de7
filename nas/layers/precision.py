"""Linear layers and dense convolutions in float32 or int8, with the same call for both.

Int8 follows Jacob et al. (CVPR 2018, https://arxiv.org/abs/1712.05877, equations 1-7): with inputs
x = s (q - z) clipped to a calibrated range and weights w = s_o q_o symmetric per output channel,
products are accumulated exactly in int32 and scaled once. The bias is rounded to the accumulator's
unit. Depthwise convolutions stay in float32: no CPU runtime here has a faster kernel for them
whose output is not int8 too.

In training mode everything runs in float32, unless a quantizer has a `rounding`, which then
computes the product (`nas.training.rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import EvaluationError
from nas.layers import mode

LOW, HIGH = -128, 127  # of activations; weights use -127 to 127
_EXACT_FLOAT32 = 2**24 // (255 * 127)  # products that a float32 sums without rounding

Product = Callable[[Tensor, Tensor], Tensor]  # of inputs and weights, linear in both
# An operation in training: inputs, weights, bias, range (which may move in place), product.
Rounding = Callable[[Tensor, Tensor, Tensor | None, Tensor, Product], Tensor]


class Quantizer(nn.Module):
    """Where the input of one operation is clipped before it is rounded to int8.

    `clip` holds (low, high), set by calibration; both are 0 before it. An `observer` sees every
    input. With `fixed` weights, what was computed from them is kept in `packed`. Training is in
    int8 if there is a `rounding`.
    """

    clip: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("clip", torch.zeros(2))
        self.observer: Callable[[Tensor], None] | None = None
        self.fixed = False
        self.packed: Packed | None = None
        self.rounding: Rounding | None = None

    def deploy(self) -> None:
        """Keep what is computed from the weights: they no longer change."""
        self.fixed = True

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.packed = None  # of the weights before
        super()._load_from_state_dict(*arguments)

    @property
    def rounds(self) -> bool:
        """Whether int8 is int8 now, and not float32 because it is trained as such."""
        return self.rounding is not None or not self.training


def scale_zero(low: float, high: float) -> tuple[float, int]:
    """The int8 unit and zero point of values clipped to [low, high]; 0.0 stays exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    if not 0 < high - low < math.inf:
        raise EvaluationError(
            "an int8 layer has no calibrated range",
            "calibrate first: nas.calibrate(network, images)",
        )
    scale = (high - low) / (HIGH - LOW)
    return scale, round(LOW - low / scale)


def rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """The integers nearest to x / scale + zero within int8, ties to even, still as floats."""
    return x.div(scale).round_().add_(zero).clamp_(LOW, HIGH)


class Packed(NamedTuple):
    """Weights (out, ...) as int8, their units times the input's, and the bias in those units."""

    weight: Tensor
    unit: Tensor
    bias: Tensor  # int32; holds the zero point's share as well
    scale: float
    zero: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, clip: Tensor) -> Packed:
        """Rounded weights for inputs clipped to (low, high); raises without a range."""
        scale, zero = scale_zero(*clip.tolist())
        flat = weight.detach().float().flatten(1)
        unit = flat.abs().amax(1) / 127
        if bias is not None:  # a channel of nearly nothing but bias must not overflow int32
            unit = torch.maximum(unit, bias.detach().abs() / (2.0**30 * scale))
        unit.clamp_(min=1e-14)
        q = (flat / unit[:, None]).round_()
        unit = unit * scale
        shift = torch.zeros_like(unit) if bias is None else (bias.detach() / unit).round_()
        bias32 = shift.sub_(zero * q.sum(1)).to(torch.int32)
        return cls(q.to(torch.int8).view(weight.shape), unit, bias32, scale, zero)

    def own_bias(self) -> Tensor:
        """The bias in the accumulator's units, without the share of the zero point."""
        return self.bias + self.zero * self.weight.flatten(1).sum(1, dtype=torch.int32)


def _packed(weight: Tensor, bias: Tensor | None, quantizer: Quantizer) -> Packed:
    if quantizer.packed is None or quantizer.packed.weight.shape != weight.shape:
        packed = Packed.of(weight, bias, quantizer.clip)
        if not quantizer.fixed:
            return packed
        quantizer.packed = packed
    return quantizer.packed


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    quantizer: Quantizer,
    bits: int = 32,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """x (..., in) times `weight` (out, in) transposed, plus `bias` (out,), plus `residual`.

    During inference a contiguous `residual` (..., out) may be overwritten with the result.
    """
    if quantizer.observer is not None:
        quantizer.observer(x)
    if bits == 32 or not quantizer.rounds:
        if residual is not None and _overwritable(residual, x):
            return _accumulated(x, weight, bias, residual)
        y = F.linear(x, weight, bias)
    elif quantizer.training and quantizer.rounding is not None:
        y = quantizer.rounding(x, weight, bias, quantizer.clip, F.linear)
    else:
        packed = _packed(weight, bias, quantizer)
        y = _linear_qdq(x, packed) if mode.exporting() else _linear_int8(x, packed)
    return y if residual is None else residual + y


def _linear_int8(x: Tensor, packed: Packed) -> Tensor:
    q = rounded(x.flatten(0, -2), packed.scale, packed.zero)
    total = _integer_product(q, packed.weight.t()).add_(packed.bias)
    return total.float().mul_(packed.unit).view(*x.shape[:-1], -1)


def _overwritable(residual: Tensor, x: Tensor) -> bool:
    """Not what autograd needs; under autocast x is of another type than the residual."""
    if mode.recording() or mode.exporting():
        return False
    return residual.is_contiguous() and residual.dtype == x.dtype


def _accumulated(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Spares copying the bias and adding afterwards: 3-12 % of the time at 50-800 tokens."""
    if bias is not None:
        residual.add_(bias)
    rows = residual.view(-1, residual.shape[-1])
    torch.addmm(rows, x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    return residual


def _integer_product(q: Tensor, weight: Tensor) -> Tensor:
    """Exact int32 (m, n) of integers q (m, k), given as floats, and int8 `weight` (k, n)."""
    if q.device.type == "cpu":
        return torch._int_mm(q.to(torch.int8), weight)
    return (q.double() @ weight.double()).to(torch.int32)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    quantizer: Quantizer,
    bits: int = 32,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Dense convolution of x (B, in, S, S) with `weight` (out, in, k, k)."""
    if quantizer.observer is not None:
        quantizer.observer(x)
    if bits == 32 or not quantizer.rounds:
        return F.conv2d(x, weight, bias, stride, padding)
    if quantizer.training and quantizer.rounding is not None:
        product = partial(F.conv2d, stride=stride, padding=padding)
        return quantizer.rounding(x, weight, bias, quantizer.clip, product)
    packed = _packed(weight, bias, quantizer)
    return (_conv_qdq if mode.exporting() else _conv_int8)(x, packed, stride, padding)


def _conv_int8(x: Tensor, packed: Packed, stride: int, padding: int) -> Tensor:
    # Integers in floats, in a type that adds them without rounding: what int32 would give.
    products = packed.weight[0].numel()
    exact = torch.float32 if products <= _EXACT_FLOAT32 else torch.float64
    q = rounded(x, packed.scale, packed.zero).sub_(packed.zero).to(exact)
    total = F.conv2d(q, packed.weight.to(exact), None, stride, padding).float()
    return total.add_(packed.own_bias()[:, None, None]).mul_(packed.unit[:, None, None])


# ONNX: QuantizeLinear and DequantizeLinear around a float operator, which runtimes fuse into their
# int8 kernels (ONNX Runtime: QGemm); the numbers are the same. Activations are uint8 there, which
# x86 kernels prefer.

_UINT8 = 128  # what is added to an int8 zero point to make it that of uint8


def _op(
    name: str, inputs: list[Tensor], dtype: torch.dtype, shape: torch.Size, **attributes: Any
) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape, version=19)


def _dequantized(q: Tensor, unit: Tensor, axis: int) -> Tensor:
    zero = torch.zeros(len(unit), dtype=q.dtype)
    return _op("DequantizeLinear", [q, unit, zero], torch.float32, q.shape, axis=axis)


def _activation_qdq(x: Tensor, packed: Packed) -> Tensor:
    unit = torch.tensor(packed.scale), torch.tensor(packed.zero + _UINT8, dtype=torch.uint8)
    q = _op("QuantizeLinear", [x, *unit], torch.uint8, x.shape)
    return _op("DequantizeLinear", [q, *unit], torch.float32, x.shape)


def _linear_qdq(x: Tensor, packed: Packed) -> Tensor:
    weight = _dequantized(packed.weight.t().contiguous(), packed.unit / packed.scale, 1)
    bias = _dequantized(packed.own_bias(), packed.unit, 0)
    return _activation_qdq(x, packed) @ weight + bias


def _conv_qdq(x: Tensor, packed: Packed, stride: int, padding: int) -> Tensor:
    weight = _dequantized(packed.weight, packed.unit / packed.scale, 0)
    bias = _dequantized(packed.own_bias(), packed.unit, 0)
    return F.conv2d(_activation_qdq(x, packed), weight, bias, stride, padding)
