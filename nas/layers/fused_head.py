"""The fused head: maps of several scales become one, which is refined and answers for each pixel.

EfficientViT-Seg: Cai et al., ICCV 2023, https://arxiv.org/abs/2205.14756, section 3.2, figure 3,
and what the official code says more exactly. Each layer is a row of its own: a map through a 1x1
convolution to the head's width and side, inverted residuals, the classifier, and the resize of its
logits to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas.layers.conv import ConvNorm
from nas.layers.inverted_residual import FusedResidual, InvertedResidual
from nas.layers.maps import MapModule, resized
from nas.layers.windows import map_size
from nas.size import Size, sides

# Shape suffixes: B batch, SS height and width of the map, C width. Between layers travel the map
# x_BSSC and the order of its windows, once scored; before they are fused, behind them the maps that
# wait.

# By `large`: as in the published B and L models.
ACTIVATION = ("hardswish", "gelu_tanh")
NORM_EPS = (1e-5, 1e-7)
RESIZES = ("bilinear", "bicubic")  # by `cubic`


class Lateral(MapModule):
    """A map at the head's width and size: 1x1 convolution, norm, resize.

    `size` is that of the map without padding, `side` that of the head's map.
    """

    def __init__(self, *, in_width: int, width: int, large: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_width, width, eps=NORM_EPS[large])

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        width: int,
        size: Size,
        side: Size,
        cubic: int,
        bits: int,
    ) -> tuple[Tensor, None]:
        """Return the map, whose windows have no order."""
        return self.brought(x_BSSC, width, size, side, cubic, bits), None

    def brought(
        self, x_BSSC: Tensor, width: int, size: Size, side: Size, cubic: int, bits: int
    ) -> Tensor:
        """A map at the head's width and size, in memory of its own."""
        height, across = sides(size)
        x = x_BSSC if map_size(x_BSSC) == size else x_BSSC[:, :height, :across]
        y: Tensor = self.conv(x, width, bits=bits)
        return y if size == side else resized(y, side, RESIZES[cubic])


class AddedLateral(Lateral):
    """The same for the newest of the maps that wait, added to the head's map."""

    def forward(  # type: ignore[override]
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        waiting_BSSC: Tensor,
        *,
        width: int,
        size: Size,
        side: Size,
        cubic: int,
        bits: int,
    ) -> tuple[Tensor, None]:
        """Return the sum, whose windows have no order."""
        return self.brought(waiting_BSSC, width, size, side, cubic, bits).add_(x_BSSC), None

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: Any) -> tuple[Any, ...]:
        """Draw the head's map, and one that waits."""
        x = torch.randn(batch, *sides(sizes["side"]), sizes["width"])
        return x, None, torch.randn(batch, *input_shape)


class Refinement(MapModule):
    """MBConv or FusedMBConv on the `kept` most active windows; the others pass unchanged."""

    def __init__(self, *, width: int, hidden: int, fused: int, large: int) -> None:
        super().__init__()
        settings: dict[str, Any] = {"activation": ACTIVATION[large], "eps": NORM_EPS[large]}
        self.body: FusedResidual | InvertedResidual
        if fused:
            settings |= {"stride": 1, "project": 1, "residual": True}
            self.body = FusedResidual(width, hidden, width, **settings)
        else:
            self.body = InvertedResidual(width, hidden, width, 3, **settings)

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        width: int,
        hidden: int,
        window: Size,
        kept: int,
        bits: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the map after the block, and the order of its windows."""
        sizes = {"width": width, "hidden": hidden, "window": window, "kept": kept}
        return self.body(x_BSSC, order, **sizes, bits=bits), order


class PixelClassifier(MapModule):
    """A 1x1 convolution to logits, behind one with norm and activation to `hidden` if not 0."""

    def __init__(self, *, width: int, hidden: int, classes: int, large: int) -> None:
        super().__init__()
        self.expand = None
        if hidden:
            self.expand = ConvNorm(width, hidden, activation=ACTIVATION[large], eps=NORM_EPS[large])
        self.fc = ConvNorm(hidden or width, classes, norm=False, bias=True)

    def forward(self, x_BSSC: Tensor, order: Tensor | None, *, hidden: int) -> tuple[Tensor, None]:
        """Return logits (B, S, S, classes)."""
        return self.fc(x_BSSC if self.expand is None else self.expand(x_BSSC, hidden)), None


class ToPicture(MapModule):
    """Logits of a map at the size of the picture, bilinear."""

    def forward(self, x_BSSC: Tensor, order: None, *, side: Size) -> tuple[Tensor]:
        """Return logits (B, classes, height, width)."""
        return (resized(x_BSSC, side).permute(0, 3, 1, 2),)
