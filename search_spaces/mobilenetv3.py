"""MobileNetV3 with elastic sizes and per-block window-activation pruning.

MobileNetV3: Howard et al., ICCV 2019, https://arxiv.org/abs/1905.02244, tables 1 and 2. Elastic
kernels are those of once-for-all, Cai et al., ICLR 2020, https://arxiv.org/abs/1908.09791.
Pruning: SparseViT, Chen et al., CVPR 2023, https://arxiv.org/abs/2303.17605, on the windows of
inverted residuals, which see their surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from nas.layers.conv import ConvNorm
from nas.layers.elastic import ElasticLinear, ElasticModule
from nas.layers.inverted_residual import InvertedResidual
from nas.layers.maps import MapModule, MapScore
from nas.layers.windows import kept_windows, map_window
from nas.network.inputs import Images
from nas.space.architecture import Architecture, Stage
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.family import BITS, Origin
from nas.space.layer import Layer, Part
from nas.space.task import Task

# Shape suffixes: B batch, S side of the map, C width.
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


class Stem(ElasticModule):
    """A 3x3 convolution of stride 2 with norm and hard swish."""

    def __init__(self, *, width: int, **_: int) -> None:
        super().__init__()
        self.conv = ConvNorm(3, width, 3, stride=2, activation="hardswish")

    def forward(self, images: Tensor, *, width: int) -> tuple[Tensor, None]:
        return self.conv(images.permute(0, 2, 3, 1), width).contiguous(), None


class Bottleneck(MapModule):
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
        **_: int,
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

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        in_width: int,
        stride: int,
        expand: int,
        hardswish: int,
        **sizes: int,
    ) -> tuple[Tensor, Tensor | None]:
        return self.residual(x_BSSC, order, **sizes), order


class Head(MapModule):
    """The last convolution, mean over the map, and two linear layers with hard swish between."""

    def __init__(self, *, width: int, hidden: int, features: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, hidden, activation="hardswish")
        self.features = ElasticLinear(hidden, features)
        self.fc = ElasticLinear(features, classes)

    def forward(
        self,
        x_BSSC: Tensor,
        _: Tensor | None,
        *,
        width: int,
        hidden: int,
        features: int,
        classes: int,
    ) -> tuple[Tensor]:
        mean_BC = self.conv(x_BSSC, hidden).mean((1, 2))
        return (self.fc(F.hardswish(self.features(mean_BC))),)


class State(NamedTuple):
    """What later layers depend on."""

    size: int  # side of the map
    in_width: int  # channels of the map
    width: int  # of the stage
    sparsity: int  # of the last block of this stage


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

    @property
    def multiple(self) -> int:
        return 1

    def stem(self, resolution: int, width: int) -> Part:
        layer = Layer.of("stem", Stem, self.example(resolution), width=self.first)
        return Part((layer,), State(-(-resolution // 2), self.first, width, 0))

    def transition(self, stage: int, state: State, width: int) -> Part:
        return Part((), state._replace(width=width, sparsity=0))

    def block(self, stage: int, index: int, state: State, block: Block) -> Part | None:
        kind, (size, in_width, width, sparsity) = self.kinds[stage], state
        stride = 1 if index else kind.stride
        if block.sparsity < sparsity:
            return None  # later blocks take a prefix of the same order
        shape, path = (size, size, in_width), f"stage{stage}_{index}"
        layers, windows = [], {}
        if stride == 1 and in_width == width:
            window = map_window(size)
            total = (size // window) ** 2
            kept = kept_windows(total, block.sparsity)
            windows = {"window": window, "kept": kept}
            if kept < total == kept_windows(total, sparsity):  # the first that leaves any out
                layers.append(Layer.of(f"score{stage}", MapScore, shape, window=window))
        elif block.sparsity:
            return None  # nothing could pass unchanged
        hidden = divisible(in_width * block.expansion) if kind.expand else in_width
        layers.append(
            Layer.of(
                path,
                Bottleneck,
                shape,
                in_width=in_width,
                hidden=hidden,
                width=width,
                kernel=block.kernel,
                stride=stride,
                squeezed=divisible(hidden / 4) if kind.gate else 0,
                expand=int(kind.expand),
                hardswish=int(kind.hardswish),
                bits=BITS[block.precision],
                **windows,
            )
        )
        return Part(tuple(layers), State(-(-size // stride), width, width, block.sparsity))

    def head(self, states: Sequence[State], task: Task) -> tuple[Layer, ...]:
        state = states[-1]
        size, width = state.size, state.in_width
        args = {
            "width": width,
            "hidden": 6 * width,
            "features": self.features,
            "classes": task.outputs,
        }
        return (Layer.of("head", Head, (size, size, width), **args),)

    def origin(self, path: str, name: str) -> Origin:
        *modules, leaf = name.split(".")
        norm = modules[-1] == "norm"
        if path == "stem":
            return f"{'bn1' if norm else 'conv_stem'}.{leaf}", None
        if path == "head":
            last = f"blocks.{len(self.kinds)}.0.{'bn1' if norm else 'conv'}"
            names = {"conv": last, "features": "conv_head", "fc": "classifier"}
            return f"{names[modules[0]]}.{leaf}", None
        stage, _, index = path.removeprefix("stage").partition("_")
        block = f"blocks.{stage}.{index}"
        operation = modules[1]
        if operation == "gate":
            return f"{block}.se.conv_{modules[2]}.{leaf}", None
        timms = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if not self.kinds[int(stage)].expand:
            timms = {"depthwise": "conv_dw", "project": "conv_pw"}
        place = list(timms).index(operation) + 1
        return f"{block}.{f'bn{place}' if norm else timms[operation]}.{leaf}", None


Entry = tuple[Space[Architecture], MobileNetV3]
_DENSE, _FLOAT, _EITHER = Choice(0), Choice("fp32"), Choice("int8", "fp32")
_FIFTHS = Choice(80, 60, 40, 20, 0)


def stage(
    width: Choice,
    depth: Choice,
    kernel: Choice,
    expansions: Sequence[Choice],
    sparsity: Choice = _DENSE,
    precision: Choice = _FLOAT,
    *,
    first: Choice = _DENSE,
) -> Space[Stage]:
    """One choice of expansions for each block; `first` is the sparsity of the first block."""
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
    stages = (
        stage(
            Choice(divisible(row.width * multiplier)),
            Choice(len(row.expansions)),
            Choice(row.kernel),
            [Choice(expansion) for expansion in row.expansions],
        )
        for row in rows
    )
    return Space(Architecture, resolution=Choice(224), stages=Fixed(*stages)), parts


# What an expansion of the paper may shrink to.
_SMALLER = {1.0: (), 2.3: (2.0,), 2.5: (2.0,), 3.0: (2.0,), 3.67: (2.0, 3.0), 4.0: (2.0, 3.0)}


def paper(rows: Sequence[Row], parts: MobileNetV3) -> Entry:
    """A space below a model of the paper: three quarters of its widths, fewer blocks."""
    stages = []
    for row, kind in zip(rows, parts.kinds):
        width, blocks = row.width, len(row.expansions)
        stages.append(
            stage(
                Choice(*sorted({divisible(0.75 * width), width})),
                Choice(*range(max(1, blocks - 2), blocks + 1)),
                Choice(*range(3, row.kernel + 1, 2)),
                [Choice(*_SMALLER.get(e, (3.0, 4.0)), e) for e in row.expansions],
                _FIFTHS,
                first=_FIFTHS if kind.stride == 1 and width == parts.first else _DENSE,
            )
        )
    resolutions = Choice(128, 160, 192, 224)
    return Space(Architecture, resolution=resolutions, stages=Fixed(*stages)), parts


_DEBUG_HALF = Choice(50, 0)
DEBUG = Space(
    Architecture,
    resolution=Choice(32, 48),
    stages=Fixed(
        stage(Choice(8), Choice(1), Choice(3), [Choice(1.0)], _DENSE, _EITHER, first=_DEBUG_HALF),
        stage(
            Choice(8, 16), Choice(1, 2), Choice(3, 5), [Choice(1.0, 2.0)] * 2, _DEBUG_HALF, _EITHER
        ),
        stage(
            Choice(16, 24),
            Choice(1, 2),
            Choice(3),
            [Choice(2.0), Choice(1.0, 2.0)],
            _DEBUG_HALF,
            _EITHER,
        ),
    ),
)
MICRO = Space(
    Architecture,
    resolution=Choice(112, 160, 224),
    stages=Fixed(
        stage(Choice(16), Choice(1), Choice(3), [Choice(1.0)], first=_FIFTHS),
        stage(
            Choice(16, 24), Choice(1, 2), Choice(3), [Choice(2.0, 4.0), Choice(2.0, 3.0)], _FIFTHS
        ),
        stage(Choice(32, 40), Choice(1, 2, 3), Choice(3, 5), [Choice(2.0, 3.0)] * 3, _FIFTHS),
        stage(
            Choice(64, 80),
            Choice(1, 2, 3),
            Choice(3, 5),
            [Choice(3.0, 6.0), *[Choice(2.0, 3.0)] * 2],
            _FIFTHS,
        ),
        stage(Choice(88, 112), Choice(1, 2), Choice(3, 5, 7), [Choice(3.0, 6.0)] * 2, _FIFTHS),
    ),
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
