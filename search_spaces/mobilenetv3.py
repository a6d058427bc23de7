"""MobileNetV3 with elastic sizes and per-block window-activation pruning.

MobileNetV3: Howard et al., ICCV 2019, https://arxiv.org/abs/1905.02244, tables 1 and 2. Elastic
kernels are those of once-for-all, Cai et al., ICLR 2020, https://arxiv.org/abs/1908.09791.
Pruning: SparseViT, Chen et al., CVPR 2023, https://arxiv.org/abs/2303.17605, on the windows of
inverted residuals, which see their surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from nas.layers.elastic import ElasticLinear, classifier
from nas.layers.inverted_residual import InvertedResidual, ResidualBlock
from nas.layers.maps import PooledHead, StridedStem
from nas.network.inputs import Images
from nas.network.pruning import MapState, prune_map
from nas.size import Size, divided
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, EITHER, FIFTHS, FLOAT, HALF, stages
from nas.space.domains import Choice, Repeat, Space
from nas.space.family import BITS
from nas.space.layer import Layer, Part
from nas.space.origins import Origin, Renaming, renamed
from nas.space.task import Task

# Shape suffixes: B batch, SS height and width of the map, C width.
# Between layers travel the map x_BSSC and the order of its windows, once scored.


@dataclass(frozen=True)
class Block:
    """One inverted residual; the first of a stage brings the map to the stage's size and width."""

    kernel: int
    expansion: float  # hidden channels per channel of the block's input
    sparsity: int  # percent of the windows that pass unchanged
    precision: str  # fp32, or int8 for the pointwise convolutions


def divisible(channels: float) -> int:
    """The multiple of 8 nearest to `channels` that is at least 8 and 90 % of it.

    The rounding of the paper's code (MobileNetV2, Sandler et al., CVPR 2018).
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class Stem(StridedStem):
    """A 3x3 convolution of stride 2 with norm and hard swish."""

    def __init__(self, *, width: int) -> None:
        super().__init__(width, "hardswish")


class Bottleneck(ResidualBlock):
    """Expand, depthwise convolution, squeeze-and-excite, project (figure 4 of the paper).

    The input is added where the shapes allow it, and only there windows can be pruned: the `kept`
    most active are computed, with `kernel // 2` tokens of surroundings, the gate being that of the
    kept windows alone; the others pass unchanged. `expand=0` is a depthwise-separable block.
    """

    def __init__(
        self,
        *,
        in_width: int,
        hidden: int,
        width: int,
        kernel: int,
        stride: int,
        squeezed: int,
        expand: int,
        hardswish: int,
    ) -> None:
        super().__init__()
        self.residual = InvertedResidual(
            in_width,
            hidden,
            width,
            kernel,
            stride=stride,
            squeezed=squeezed,
            expand=bool(expand),
            residual=stride == 1,
            activation="hardswish" if hardswish else "relu",
        )


class Head(PooledHead):
    """The last convolution, mean over the map, and two linear layers with hard swish between."""

    def __init__(self, *, width: int, hidden: int, features: int, classes: int) -> None:
        super().__init__(width, hidden, "hardswish")
        self.features = ElasticLinear(hidden, features)
        self.fc = classifier(features, classes)

    def forward(self, x_BSSC: Tensor, _: Tensor | None, *, hidden: int) -> tuple[Tensor]:
        """Return logits (B, classes)."""
        return (self.fc(F.hardswish(self.features(self.pooled(x_BSSC, hidden)))),)


# Where timm's checkpoints keep our tensors.
TIMM: tuple[Renaming, ...] = (
    (r"^stem\.conv\.norm", "bn1"),
    (r"^stem\.conv", "conv_stem"),
    (r"^head\.features", "conv_head"),
    (r"^head\.fc", "classifier"),
    (r"^stage(\d+)_(\d+)", r"blocks.\1.\2"),
    (r"residual\.gate\.(\w+)", r"se.conv_\1"),
    (r"residual\.expand\.norm", "bn1"),
    (r"residual\.depthwise\.norm", "bn2"),
    (r"residual\.project\.norm", "bn3"),
    (r"residual\.expand", "conv_pw"),
    (r"residual\.depthwise", "conv_dw"),
    (r"residual\.project", "conv_pwl"),
)
# Blocks without `expand` number their norms from 1, and their projection is no `pwl`.
SEPARABLE: tuple[Renaming, ...] = (
    (r"residual\.depthwise\.norm", "bn1"),
    (r"residual\.project\.norm", "bn2"),
    (r"residual\.project", "conv_pw"),
    *TIMM,
)


class Kind(NamedTuple):
    """What is fixed for all blocks of a stage; the stride is that of the first."""

    stride: int
    gate: bool = False
    hardswish: bool = True
    expand: bool = True  # if not, the hidden channels are the input's


@dataclass(frozen=True)
class MobileNetV3(Images):
    """The parts of a MobileNetV3 with these kinds of stages and this many features."""

    kinds: tuple[Kind, ...]
    features: int
    first: int = 16  # channels of the stem

    def stem(self, resolution: Size, width: int) -> Part:
        """Emit the strided convolution."""
        layer = Layer.of("stem", Stem, self.example(resolution), width=self.first)
        return Part((layer,), MapState(divided(resolution, 2), self.first, width, 0))

    def transition(self, stage: int, state: MapState, width: int) -> Part:
        """Emit nothing: the first block of the stage strides."""
        return Part((), state.entered(width))

    def block(self, stage: int, index: int, state: MapState, block: Block) -> Part | None:
        """Emit an inverted residual, after the score where the stage starts to prune."""
        kind, in_width = self.kinds[stage], state.in_width
        stride = 1 if index else kind.stride
        pruned = prune_map(stage, state, block.sparsity, stride)
        if pruned is None:
            return None
        scores, windows = pruned
        hidden = divisible(in_width * block.expansion) if kind.expand else in_width
        layer = Layer.of(
            f"stage{stage}_{index}",
            Bottleneck,
            state.shape,
            in_width=in_width,
            hidden=hidden,
            width=state.width,
            kernel=block.kernel,
            stride=stride,
            squeezed=divisible(hidden / 4) if kind.gate else 0,
            expand=int(kind.expand),
            hardswish=int(kind.hardswish),
            bits=BITS[block.precision],
            **windows,
        )
        return Part((*scores, layer), state.after(stride, block.sparsity))

    def to_map(self, state: MapState) -> tuple[tuple[Layer, ...], Size, int]:
        """Emit nothing: a map is what there is."""
        return (), state.size, state.in_width

    def head(self, state: MapState, task: Task) -> tuple[Layer, ...]:
        """Emit the classifier on the last map."""
        width = state.in_width
        sizes = {"hidden": 6 * width, "features": self.features, "classes": task.outputs}
        return (Layer.of("head", Head, state.shape, width=width, **sizes),)

    def origin(self, path: str, name: str) -> Origin:
        """Look the tensor up in `TIMM`; the head's convolution is timm's last stage."""
        if path == "head" and name.startswith("conv."):
            name = name.replace("conv.norm", "bn1")
            return f"blocks.{len(self.kinds)}.0.{name}", None
        stage = path.removeprefix("stage").partition("_")[0]
        expands = not stage.isdecimal() or self.kinds[int(stage)].expand
        return renamed(TIMM if expands else SEPARABLE, path, name), None


Entry = tuple[Space[Architecture], MobileNetV3]


def stage(
    width: Choice,
    depth: Choice,
    kernel: Choice,
    expansions: Sequence[Choice],
    sparsity: Choice = DENSE,
    precision: Choice = FLOAT,
    *,
    first: Choice = DENSE,
) -> Space[Stage]:
    """Return the domain of a stage; each block has its choice of expansions.

    `first` is the sparsity of the first block.
    """
    items = (
        Space(
            Block,
            kernel=kernel,
            expansion=expansion,
            sparsity=sparsity if i else first,
            precision=precision,
        )
        for i, expansion in enumerate(expansions)
    )
    return Space(Stage, width=width, blocks=Repeat(tuple(items), depth))


class Row(NamedTuple):
    """Blocks of one width in table 1 or 2."""

    width: int
    kernel: int
    expansions: tuple[float, ...]


LARGE = (
    Row(16, 3, (1.0,)),
    Row(24, 3, (4.0, 3.0)),
    Row(40, 5, (3.0, 3.0, 3.0)),
    Row(80, 3, (6.0, 2.5, 2.3, 2.3)),
    Row(112, 3, (6.0, 6.0)),
    Row(160, 5, (6.0, 6.0, 6.0)),
)
LARGE_PARTS = MobileNetV3(
    kinds=(
        Kind(1, hardswish=False, expand=False),
        Kind(2, hardswish=False),
        Kind(2, gate=True, hardswish=False),
        Kind(2),
        Kind(1, gate=True),
        Kind(2, gate=True),
    ),
    features=1280,
)
SMALL = (
    Row(16, 3, (1.0,)),
    Row(24, 3, (4.5, 3.67)),
    Row(40, 5, (4.0, 6.0, 6.0)),
    Row(48, 5, (3.0, 3.0)),
    Row(96, 5, (6.0, 6.0, 6.0)),
)
SMALL_PARTS = MobileNetV3(
    kinds=(
        Kind(2, gate=True, hardswish=False, expand=False),
        Kind(2, hardswish=False),
        Kind(2, gate=True),
        Kind(1, gate=True),
        Kind(2, gate=True),
    ),
    features=1024,
)


def model(rows: Sequence[Row], parts: MobileNetV3, multiplier: float = 1.0) -> Entry:
    """A model of the paper: its one architecture, at a multiple of its widths."""
    domains = (
        stage(
            Choice(divisible(row.width * multiplier)),
            Choice(len(row.expansions)),
            Choice(row.kernel),
            [Choice(expansion) for expansion in row.expansions],
        )
        for row in rows
    )
    return stages(Choice(224), *domains), parts


# What an expansion of the paper may shrink to.
_SMALLER = {1.0: (), 2.3: (2.0,), 2.5: (2.0,), 3.0: (2.0,), 3.67: (2.0, 3.0), 4.0: (2.0, 3.0)}


def paper(rows: Sequence[Row], parts: MobileNetV3) -> Entry:
    """A space below a model of the paper: three quarters of its widths, fewer blocks."""
    domains = []
    for row, kind in zip(rows, parts.kinds):
        width, blocks = row.width, len(row.expansions)
        domains.append(
            stage(
                Choice(*sorted({divisible(0.75 * width), width})),
                Choice(*range(max(1, blocks - 2), blocks + 1)),
                Choice(*range(3, row.kernel + 1, 2)),
                [Choice(*_SMALLER.get(e, (3.0, 4.0)), e) for e in row.expansions],
                FIFTHS,
                first=FIFTHS if kind.stride == 1 and width == parts.first else DENSE,
            )
        )
    return stages(Choice(128, 160, 192, 224), *domains), parts


_debug = partial(stage, sparsity=HALF, precision=EITHER)
_micro = partial(stage, sparsity=FIFTHS)
_NARROW = [Choice(2.0, 3.0)]
DEBUG = stages(
    Choice(32, 48),
    stage(Choice(8), Choice(1), Choice(3), [Choice(1.0)], precision=EITHER, first=HALF),
    _debug(Choice(8, 16), Choice(1, 2), Choice(3, 5), [Choice(1.0, 2.0)] * 2),
    _debug(Choice(16, 24), Choice(1, 2), Choice(3), [Choice(2.0), Choice(1.0, 2.0)]),
)
MICRO = stages(
    Choice(112, 160, 224),
    stage(Choice(16), Choice(1), Choice(3), [Choice(1.0)], first=FIFTHS),
    _micro(Choice(16, 24), Choice(1, 2), Choice(3), [Choice(2.0, 4.0), *_NARROW]),
    _micro(Choice(32, 40), Choice(1, 2, 3), Choice(3, 5), _NARROW * 3),
    _micro(Choice(64, 80), Choice(1, 2, 3), Choice(3, 5), [Choice(3.0, 6.0), *_NARROW * 2]),
    _micro(Choice(88, 112), Choice(1, 2), Choice(3, 5, 7), [Choice(3.0, 6.0)] * 2),
)

PRESETS = {
    "debug": (
        DEBUG,
        MobileNetV3(
            kinds=(
                Kind(1, hardswish=False, expand=False),
                Kind(1, gate=True, hardswish=False),
                Kind(2, gate=True),
            ),
            features=16,
            first=8,
        ),
    ),
    "micro": (MICRO, replace(LARGE_PARTS, kinds=LARGE_PARTS.kinds[:5], features=256)),
    "small": paper(SMALL, SMALL_PARTS),
    "large": paper(LARGE, LARGE_PARTS),
}
MODELS = {
    "mobilenetv3_large_100": model(LARGE, LARGE_PARTS),
    "mobilenetv3_large_075": model(LARGE, LARGE_PARTS, 0.75),
    "mobilenetv3_small_100": model(SMALL, SMALL_PARTS),
    "mobilenetv3_small_075": model(SMALL, SMALL_PARTS, 0.75),
    "mobilenetv3_small_050": model(SMALL, SMALL_PARTS, 0.5),
}
