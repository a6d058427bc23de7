"""Elastic convolutions on channel-last maps.

A map is (B, S, S, C), where SS are its height and width, contiguous: a pointwise convolution is a
linear layer on it, and a window is a gather of its rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers import mode
from nas.layers.activations import activate
from nas.layers.precision import Quantizer, conv2d, linear

# Shape suffixes: B batch, SS height and width of the map, C width.


class BatchNorm(nn.Module):
    """BatchNorm over the leading channels; a subnet needs statistics of its own.

    If it is `frozen`, training uses them, too, instead of those of a batch.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.eps = eps
        self.momentum = 0.1
        self.frozen = False

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x_BSSC: Tensor) -> Tensor:
        """Return the map with each channel normalised, by its batch while training."""
        c = x_BSSC.shape[-1]
        y = F.batch_norm(
            x_BSSC.permute(0, 3, 1, 2),
            self.running_mean[:c],
            self.running_var[:c],
            self.weight[:c],
            self.bias[:c],
            self.training and not self.frozen,
            self.momentum,
            self.eps,
        )
        return y.permute(0, 2, 3, 1)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The scale and shift (channels,) that do the same in evaluation mode."""
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
        self.activation = activation

    def forward(
        self,
        x_BSSC: Tensor,
        outputs: int | None = None,
        kernel: int | None = None,
        bits: int = 32,
        pad: bool = True,
    ) -> Tensor:
        """The map (B, S', S', outputs); `outputs` and `kernel` are by default the largest.

        Without `pad` only places are computed whose whole surroundings are in the map.
        """
        weight, bias = self._sliced(outputs or len(self.weight), x_BSSC.shape[-1], kernel)
        norm = self.norm
        rounds = not self.training if self.input is None else self.input.rounds
        if norm is not None and bits == 8 and rounds:
            scale, shift = (t[: len(weight)] for t in norm.affine())
            weight, bias = weight * scale[:, None, None, None], _folded(bias, scale, shift)
            norm = None
        y = self._convolve(x_BSSC, weight, bias, bits, pad)
        y = y if norm is None else norm(y)
        return activate(self.activation, y)

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
        if kernel == self.stride == 1 and self.input is not None:
            return pointwise(x_BSSC, weight, bias, self.input, bits)
        x = x_BSSC.permute(0, 3, 1, 2)
        if self.input is None:
            y = F.conv2d(x, weight, bias, self.stride, padding, groups=len(weight))
        else:
            y = conv2d(x, weight, bias, self.input, bits, self.stride, padding)
        return y.permute(0, 2, 3, 1)

    def inherit(self, large: ConvNorm) -> None:
        """Copy leading channels, the centre of kernels, statistics and int8 ranges of `large`."""
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
        """The tensors that have output channels (axis 0) or input channels (axis 1), and where."""
        if axis == 1:
            return ((self.weight, 1),)
        norm = [] if self.norm is None else [*self.norm.parameters(), *self.norm.buffers()]
        bias = [] if self.bias is None else [self.bias]
        return ((self.weight, 0), *((tensor, 0) for tensor in (*bias, *norm)))


class Fusion(ConvNorm):
    """A convolution of two maps of equal width side by side, elastic in the width of both."""

    def _sliced(
        self, outputs: int, inputs: int, kernel: int | None
    ) -> tuple[Tensor, Tensor | None]:
        whole = self.weight.shape[1]
        weight, bias = super()._sliced(outputs, whole, kernel)
        if inputs < whole:
            weight = torch.cat([half[:, : inputs // 2] for half in weight.chunk(2, 1)], 1)
        return weight, bias


def pointwise(
    x_BSSC: Tensor, weight: Tensor, bias: Tensor | None, quantizer: Quantizer, bits: int
) -> Tensor:
    """A 1x1 convolution by `weight` (out, in) or (out, in, 1, 1).

    It runs as a product; ONNX gets a convolution, for which runtimes have a fast path.
    """
    square = weight.ndim == 4
    if bits == 32 and mode.exporting():
        kernel = weight if square else weight[..., None, None]
        y = conv2d(x_BSSC.permute(0, 3, 1, 2), kernel, bias, quantizer)
        return y.permute(0, 2, 3, 1)
    weight = weight.flatten(1) if square else weight
    if bits == 8 or bias is None:
        return linear(x_BSSC, weight, bias, quantizer, bits)
    # Faster by 5 % than a bias that the product starts from.
    return linear(x_BSSC, weight, None, quantizer).add_(bias)


def _folded(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return shift.clone() if bias is None else bias * scale + shift
