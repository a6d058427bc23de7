"""Inverted residuals that prune windows, and the convolutions' modules that only they need.

Inverted residuals: MobileNetV2, Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381;
squeeze-and-excitation: MobileNetV3, Howard et al., ICCV 2019.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers import mode
from nas.layers.conv import ConvNorm
from nas.layers.elastic import importance, permute
from nas.layers.maps import MapModule
from nas.layers.windows import (
    kept_rows,
    map_size,
    on_kept_windows,
    windows_in,
    with_halo,
    written,
)
from nas.size import Size, area, sides

# Shape suffixes: B batch, SS height and width of the map, C width.


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """The product with what nobody else holds: in place where autograd allows it."""
    return x * factor if mode.recording() else x.mul_(factor)


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
        """Return the map times its gate, which is computed through `squeezed` channels."""
        c = x_BSSC.shape[-1]
        y = F.linear(
            x_BSSC.mean((1, 2)), self.reduce.weight[:squeezed, :c], self.reduce.bias[:squeezed]
        )
        y = F.linear(F.relu(y), self.expand.weight[:c, :squeezed], self.expand.bias[:c])
        gate = F.hardsigmoid(y)[:, None, None]
        return _scaled(x_BSSC, gate)

    def deploy(self) -> None:
        """Lay the weights out for products of one row."""
        for layer in (self.reduce, self.expand):
            layer.weight.data = layer.weight.data.t().contiguous().t()

    def reorder(self) -> None:
        """Sort squeezed channels by importance."""
        order = importance(self.reduce.weight, 0) + importance(self.expand.weight, 1)
        slots = (self.reduce.weight, 0), (self.reduce.bias, 0), (self.expand.weight, 1)
        permute(order.argsort(descending=True), *slots)


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
        kernel: int | None = None,
        squeezed: int = 0,
        bits: int = 32,
        window: Size = 0,
        kept: int = 0,
    ) -> Tensor:
        """The whole map or, if that is less, the `kept` first windows of `order` (B, windows).

        The `kernel` is by default the largest.
        """
        kernel = kernel or self.depthwise.weight.shape[-1]
        if window and kept < windows_in(map_size(x_BSSC), window):
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
        window: Size,
        hidden: int,
        width: int,
        kernel: int,
        squeezed: int,
        bits: int,
    ) -> Tensor:
        """The kept windows; they see their surroundings, the gate sees the kept windows alone."""
        (b, _, _, c), size = x_BSSC.shape, map_size(x_BSSC)
        halo, (down, across) = kernel // 2, sides(window)

        def project(y: Tensor) -> Tensor:
            if self.gate is not None:
                y = self.gate(y.reshape(b, -1, across, hidden), squeezed)
            return self.project(y.reshape(-1, down, across, hidden), width, bits=bits)  # type: ignore[no-any-return]

        def run(x: Tensor, inside: Tensor | None) -> Tensor:
            y = x if self.expand is None else self.expand(x, hidden, bits=bits)
            if inside is not None:
                y = _scaled(y, inside)
            y = project(self.depthwise(y, hidden, kernel, pad=False))
            return y.add_(x[:, halo:-halo, halo:-halo]) if self.residual else y

        if kept * area(with_halo(window, halo)) < WHOLE * area(size):
            return on_kept_windows(run, x_BSSC, order, kept=kept, window=window, halo=halo)
        y = x_BSSC if self.expand is None else self.expand(x_BSSC, hidden, bits=bits)
        y = self.depthwise(y, hidden, kernel).reshape(-1, hidden)
        rows = kept_rows(size, window, 0, order[:, :kept])
        y = project(y.index_select(0, rows)).view(-1, width)
        y = y.add_(x_BSSC.reshape(-1, c).index_select(0, rows)) if self.residual else y
        return written(x_BSSC, rows, y)

    def reorder(self) -> None:
        """Sort hidden channels by importance."""
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


class ResidualBlock(MapModule):
    """An inverted residual as a layer; a family's __init__ makes `residual`."""

    residual: InvertedResidual

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        hidden: int,
        width: int,
        kernel: int,
        bits: int,
        squeezed: int = 0,
        window: Size = 0,
        kept: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the map after the residual, which runs on the `kept` most active windows."""
        sizes = {"hidden": hidden, "width": width, "kernel": kernel, "squeezed": squeezed}
        y = self.residual(x_BSSC, order, **sizes, bits=bits, window=window, kept=kept)
        return y, order


class FusedResidual(nn.Module):
    """Expand by a dense 3x3 convolution, project (FusedMBConv, or with 3x3 the stem's ConvBlock).

    EfficientNetV2, Tan and Le, ICML 2021, figure 2. The input is added where shapes allow it.
    """

    def __init__(
        self,
        width_in: int,
        hidden: int,
        width: int,
        *,
        stride: int,
        project: int,
        residual: bool,
        activation: str,
        eps: float,
    ) -> None:
        super().__init__()
        self.expand = ConvNorm(width_in, hidden, 3, stride=stride, activation=activation, eps=eps)
        self.project = ConvNorm(hidden, width, project, eps=eps)
        self.halo = 1 + project // 2
        self.residual = residual

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None = None,
        *,
        hidden: int,
        width: int,
        bits: int = 32,
        window: Size = 0,
        kept: int = 0,
    ) -> Tensor:
        """The whole map or, if that is less, the `kept` first windows of `order` (B, windows)."""
        if not window or kept == windows_in(map_size(x_BSSC), window):
            y = self.project(self.expand(x_BSSC, hidden, bits=bits), width, bits=bits)
            return y + x_BSSC if self.residual else y  # type: ignore[no-any-return]
        assert order is not None
        halo = self.halo

        def run(x: Tensor, inside: Tensor) -> Tensor:
            y = self.expand(x * inside, hidden, bits=bits, pad=False)
            if halo > 1:
                y = self.project(y * inside[:, 1:-1, 1:-1], width, bits=bits, pad=False)
            else:
                y = self.project(y, width, bits=bits)
            return y + x[:, halo:-halo, halo:-halo]  # type: ignore[no-any-return]

        return on_kept_windows(run, x_BSSC, order, kept=kept, window=window, halo=halo)  # type: ignore[arg-type]

    def reorder(self) -> None:
        """Sort hidden channels by importance."""
        total = importance(self.expand.weight, 0) + importance(self.project.weight, 1)
        slots = (*self.expand.slots(0), *self.project.slots(1))
        permute(total.argsort(descending=True), *slots)
