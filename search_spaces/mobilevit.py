"""MobileViT with elastic sizes, pruned by windows of its maps and of its patches.

Mehta and Rastegari, ICLR 2022, https://arxiv.org/abs/2110.02178, section 3.1 and table 4. Every
stage begins with an inverted residual. What follows in it are more of them, which prune windows of
the map, or the layers of a MobileViT block (figure 1b): local features, one attention for each of
the 2x2 pixels of a patch across all patches, and fusion with what entered the block. Its layers
prune windows of patches: patches are sorted by window once, each layer takes a prefix of them, and
what is left behind waits unchanged for the end of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas.layers.conv import ConvNorm, Fusion
from nas.layers.elastic import ElasticLayerNorm, ElasticModule, classifier
from nas.layers.inverted_residual import InvertedResidual, ResidualBlock
from nas.layers.maps import MapModule, PooledHead, StridedStem, fold, resized, unfold
from nas.layers.transformer import TransformerModule
from nas.layers.windows import map_size, sorted_by_window, still_there, taken
from nas.network.inputs import Images
from nas.network.pruning import MapState, Pruning, prune_map
from nas.size import Sides, Size, area, divided, each, sides
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, EITHER, FIFTHS, FLOAT, HALF, TENTHS, stages
from nas.space.domains import Choice, Repeat, Space
from nas.space.family import BITS
from nas.space.layer import Layer, Part
from nas.space.origins import ATTENTION, Origin, Renaming, renamed
from nas.space.task import Task

# Shape suffixes: B batch, SS height and width of the map, P pixels of a patch, N patches, C
# channels. Outside MobileViT blocks travel the map x_BSSC and the order of its windows, once
# scored. Inside them travel the tokens x_BPNC, the patch that each came from, once sorted, the
# tokens left behind (last left, first in the tuple), and the map that entered the block.

PATCH = 2  # side of a patch in pixels of the map
PIXELS = PATCH * PATCH


@dataclass(frozen=True)
class Residual:
    """An inverted residual; the first of a stage that changes the map cannot prune."""

    expansion: float
    kernel: int
    sparsity: int  # percent of the windows of the map that pass unchanged
    precision: str  # fp32, or int8 for the pointwise convolutions


@dataclass(frozen=True)
class Block:
    """A transformer layer; the convolutions around all of them run as the nearest layer does."""

    heads: int
    mlp_ratio: float
    sparsity: int  # percent of the windows of patches that pass unchanged
    precision: str  # fp32, or int8 for linear layers and dense convolutions


class Stem(StridedStem):
    """A strided 3x3 convolution."""

    def __init__(self, *, width: int) -> None:
        super().__init__(width, "silu")


class MobileBlock(ResidualBlock):
    """An inverted residual on the map, or on the `kept` most active of its windows."""

    def __init__(self, *, inputs: int, width: int, hidden: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.residual = InvertedResidual(
            inputs,
            hidden,
            width,
            kernel,
            stride=stride,
            residual=stride == 1 and inputs == width,
            activation="silu",
        )


def whole(size: Size) -> Size:
    """The size of a map once it is resized to whole patches."""
    return each(lambda side: side + side % PATCH, size)


def grid_of(grid: Size, patches: int) -> Size:
    """The grid of so many patches; 0, which rows of square grids have, is that of a square."""
    return grid or isqrt(patches)


class Enter(MapModule):
    """A 3x3 and a pointwise convolution, resize to whole patches, unfold (section 3.1)."""

    def __init__(self, *, width: int, inner: int) -> None:
        super().__init__()
        self.local = ConvNorm(width, width, 3, activation="silu")
        self.project = ConvNorm(width, inner, norm=False)

    def forward(
        self, x_BSSC: Tensor, order: None, *, width: int, inner: int, bits: int
    ) -> tuple[Tensor, None, Tensor, None]:
        """Return the tokens of the block, none sorted or left behind, and the map that entered."""
        size = map_size(x_BSSC)
        y = self.project(self.local(x_BSSC, width, bits=bits), inner, bits=bits)
        y = resized(y, whole(size)) if whole(size) != size else y
        return unfold(y, PATCH), None, x_BSSC, None


# The tokens, the patch each came from (once sorted), the map that entered, the tokens left behind.
Tokens = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


class TokenModule(ElasticModule):
    """A layer inside a MobileViT block."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Any, ...]:
        """Draw tokens, none sorted or left behind, without the map that entered."""
        x = torch.randn(batch, *input_shape)
        return x, None, x.new_empty(0), None


class PatchSort(TokenModule):
    """Sort the patches by the activation of their window, most active first."""

    def forward(
        self,
        x_BPNC: Tensor,
        source: None,
        entered: Tensor,
        left: None,
        *,
        window: Size,
        grid: Size = 0,
    ) -> Tokens:
        """Return the tokens in that order, and which patch each is of."""
        b, _, n, _ = x_BPNC.shape
        shape = b, *sides(grid_of(grid, n)), 1
        activity = torch.linalg.vector_norm(x_BPNC.abs().sum(-1), dim=1)
        patches = sorted_by_window(activity.view(shape), window)
        return taken(x_BPNC, patches), patches, entered, left


class TransformerLayer(TransformerModule, TokenModule):
    """Pre-norm attention and MLP on the first `patches` patches; the others are left behind."""

    def __init__(self, *, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__(width, heads, head_dim, hidden, activation="silu")

    def forward(
        self,
        x_BPNC: Tensor,
        source: Tensor | None,
        entered: Tensor,
        left: Tensor | None,
        *,
        heads: int,
        hidden: int,
        patches: int,
        bits: int,
    ) -> Tokens:
        """Return the tokens of the patches that stay, and those left behind so far."""
        if patches < x_BPNC.shape[2]:
            dropped = x_BPNC[:, :, patches:]
            left = dropped if left is None else torch.cat([dropped, left], 2)
            x_BPNC = x_BPNC[:, :, :patches]
        x = self.transform(x_BPNC.flatten(0, 1), heads, hidden, bits)
        return x.view(x_BPNC.shape), source, entered, left

    def kept(
        self,
        x_BPNC: Tensor,
        source: Tensor | None,
        *others: Tensor | None,
        patches: int,
        grid: Size = 0,
    ) -> Tensor:
        """Mark the patches that stay, of the grid of all."""
        total = x_BPNC.shape[2] if source is None else source.shape[1]
        return still_there(source, patches, grid_of(grid, total))


class Exit(TokenModule):
    """Norm, fold, pointwise convolution, and 3x3 fusion with what entered (section 3.1)."""

    def __init__(self, *, width: int, inner: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(inner)
        self.project = ConvNorm(inner, width, activation="silu")
        self.fuse = Fusion(2 * width, width, 3, activation="silu")

    def forward(
        self,
        x_BPNC: Tensor,
        source: Tensor | None,
        entered_BSSC: Tensor,
        left: Tensor | None,
        *,
        width: int,
        size: Size,
        bits: int,
    ) -> tuple[Tensor, None]:
        """Return the map, whose windows have no order."""
        x = x_BPNC if left is None else torch.cat([x_BPNC, left], 2)
        x = self.norm(x)
        x = x if source is None else taken(x, source.argsort(1))
        if whole(size) != size:
            y = self.project(resized(fold(x, PATCH, whole(size)), size), width, bits=bits)
        else:  # pointwise: the same before and after folding, and fewer channels to fold
            y = fold(self.project(x, width, bits=bits), PATCH, size)
        return self.fuse(torch.cat([entered_BSSC, y], -1), width, bits=bits), None

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: Any) -> tuple[Any, ...]:
        """Draw tokens and the map that entered; some tokens are left behind if the sizes say so."""
        p, kept, c = input_shape
        total = area(divided(sizes["size"], PATCH))
        left = torch.randn(batch, p, total - kept, c) if kept < total else None
        source = None if left is None else torch.rand(batch, total).argsort(1)
        entered = torch.randn(batch, *sides(sizes["size"]), sizes["width"])
        return torch.randn(batch, *input_shape), source, entered, left


class Head(PooledHead):
    """Pointwise convolution, mean over the map, linear classifier."""

    def __init__(self, *, width: int, features: int, classes: int) -> None:
        super().__init__(width, features, "silu")
        self.fc = classifier(features, classes)

    def forward(self, x_BSSC: Tensor, order: Tensor | None, *, features: int) -> tuple[Tensor]:
        """Return logits (B, classes)."""
        return (self.fc(self.pooled(x_BSSC, features)),)


# Where timm's checkpoints keep our tensors; a colon stands after a convolution that has a norm.
TIMM: tuple[Renaming, ...] = (
    (r"^stem\.conv", "stem:"),
    (r"^head\.conv", "final_conv:"),
    (r"^layer(\d+)_(\d+)", lambda m: f"stages.{m[1]}.1.transformer.{int(m[2]) - 1}"),
    (r"^residual(\d+)_(\d+)\.residual\.project", r"stages.\1.\2.conv3_1x1:"),
    (r"^residual(\d+)_(\d+)\.residual", r"stages.\1.\2"),
    (r"^enter(\d+)\.project", r"stages.\1.1.conv_1x1"),
    (r"^(?:enter|exit)(\d+)", r"stages.\1.1"),
    ("expand", "conv1_1x1:"),
    ("depthwise", "conv2_kxk:"),
    ("project", "conv_proj:"),
    ("local", "conv_kxk:"),
    ("fuse", "conv_fusion:"),
    (r":\.norm", ".bn"),
    (":", ".conv"),
    *ATTENTION,
)


class State(NamedTuple):
    """What later layers depend on."""

    stage: int
    size: Size  # of the map
    inputs: int  # channels of the map
    width: int  # of the maps of this stage
    sparsity: int = 0  # of the last block of this stage
    patches: int = 0  # that the last layer ran on; 0 outside MobileViT blocks
    bits: int = 0  # of the last layer


class Inner(NamedTuple):
    """Tokens of a MobileViT block are `times / over` as wide as the stage's maps."""

    times: int
    over: int
    head_dim: int


@dataclass(frozen=True)
class MobileViT(Images):
    """The parts of a MobileViT at fixed ratios of widths, head and window sizes."""

    inner: tuple[Inner | None, ...]  # by stage; None where it has no MobileViT block
    stem_part: int = 1  # the width of the first stage over that of the stem
    window: int = 8  # at most, in pixels, for inverted residuals
    patch_window: int = 2  # in patches, for transformer layers

    def stem(self, resolution: Size, width: int) -> Part:
        """Emit the strided convolution."""
        inputs = width // self.stem_part
        layer = Layer.of("stem", Stem, self.example(resolution), width=inputs)
        return Part((layer,), State(0, divided(resolution, 2), inputs, width))

    def transition(self, stage: int, state: State, width: int) -> Part:
        """Emit the end of the MobileViT block before, if there was one."""
        return Part(self._exit(state), State(stage, state.size, state.width, width))

    def block(self, stage: int, index: int, state: State, block: Residual | Block) -> Part | None:
        """Emit an inverted residual or a transformer layer, after what scores or sorts for it."""
        make = self._residual if isinstance(block, Residual) else self._layer
        return make(index, state, block)  # type: ignore[arg-type]

    def _residual(self, index: int, state: State, block: Residual) -> Part | None:
        stride = 2 if index == 0 < state.stage else 1
        here = MapState(state.size, state.inputs, state.width, state.sparsity)
        pruned = prune_map(state.stage, here, block.sparsity, stride, self.window)
        if pruned is None:
            return None
        scores, windows = pruned
        layer = Layer.of(
            f"residual{state.stage}_{index}",
            MobileBlock,
            here.shape,
            inputs=state.inputs,
            width=state.width,
            hidden=int(state.inputs * block.expansion),
            kernel=block.kernel,
            stride=stride,
            bits=BITS[block.precision],
            **windows,
        )
        size = divided(state.size, stride)
        after = state._replace(size=size, inputs=state.width, sparsity=block.sparsity)
        return Part((*scores, layer), after)

    def _layer(self, index: int, state: State, block: Block) -> Part | None:
        if block.sparsity < state.sparsity:
            return None  # later blocks take a prefix of the same order
        stage, bits = state.stage, BITS[block.precision]
        inner, head_dim = self._inner(state)
        grid = divided(state.size, PATCH)
        oblong: dict[str, Any] = {"grid": grid} if isinstance(grid, Sides) else {}
        pruning = Pruning.of_tokens(grid, self.patch_window, state.sparsity, block.sparsity)
        layers = []
        if not state.patches:
            shape = (*sides(state.size), state.width)
            sizes = {"width": state.width, "inner": inner, "bits": bits}
            layers.append(Layer.of(f"enter{stage}", Enter, shape, **sizes))
        shape = (PIXELS, state.patches or area(grid), inner)
        if pruning.starts:
            layers.append(
                Layer.of(f"sort{stage}", PatchSort, shape, window=pruning.window, **oblong)
            )
        layer = Layer.of(
            f"layer{stage}_{index}",
            TransformerLayer,
            shape,
            width=inner,
            heads=block.heads,
            head_dim=head_dim,
            hidden=int(inner * block.mlp_ratio),
            patches=pruning.tokens,
            bits=bits,
            **oblong,
        )
        after = state._replace(sparsity=block.sparsity, patches=pruning.tokens, bits=bits)
        return Part((*layers, layer), after)

    def _inner(self, state: State) -> tuple[int, int]:
        """Width and head size of the tokens of a MobileViT block."""
        inner = self.inner[state.stage]
        assert inner is not None, f"stage {state.stage} has no MobileViT block"
        return state.width * inner.times // inner.over, inner.head_dim

    def _exit(self, state: State) -> tuple[Layer, ...]:
        if not state.patches:
            return ()
        inner, _ = self._inner(state)
        sizes = {"width": state.width, "inner": inner, "bits": state.bits}
        shape = (PIXELS, state.patches, inner)
        return (Layer.of(f"exit{state.stage}", Exit, shape, size=state.size, **sizes),)

    def to_map(self, state: State) -> tuple[tuple[Layer, ...], Size, int]:
        """Emit the end of the last MobileViT block."""
        return self._exit(state), state.size, state.inputs

    def head(self, state: State, task: Task) -> tuple[Layer, ...]:
        """Emit the end of the last MobileViT block, and the classifier."""
        sizes = {"width": state.width, "features": 4 * state.width, "classes": task.outputs}
        layer = Layer.of("head", Head, (*sides(state.size), state.width), **sizes)
        return (*self._exit(state), layer)

    def origin(self, path: str, name: str) -> Origin:
        """Look the tensor up in `TIMM`."""
        return renamed(TIMM, path, name), None


Entry = tuple[Space[Architecture], MobileViT]
# Pruned inverted residuals also expand the surroundings of their windows: one thread of a CPU needs
# 1.1-1.6 times as long at 20 %, 0.9-1.1 at 40 %, 0.6-0.9 at 60 %, 0.35-0.5 at 80 %.
_COARSE = Choice(80, 60, 0)


# An inverted residual and a transformer layer, with what most of them have.
residual = partial(Space, Residual, kernel=Choice(3), sparsity=DENSE, precision=FLOAT)
transformer = partial(Space, Block, sparsity=DENSE, precision=FLOAT)


def stage(width: Choice, first: Space[Residual], later: Space[Any], depth: Choice) -> Space[Stage]:
    """An inverted residual, then `depth` more of them or transformer layers."""
    blocks = Repeat((first, *([later] * depth.values[-1])), Choice(*(1 + d for d in depth.values)))
    return Space(Stage, width=width, blocks=blocks)


@dataclass(frozen=True)
class Published:
    """A model of the paper (table 4): channels, token widths, expansion."""

    widths: tuple[int, ...]
    inner: tuple[int, ...]
    expansion: int
    stem: int = 16

    def parts(self) -> MobileViT:
        """With four heads at the full width of the tokens, as in the official code."""
        inner = (Inner(c, w, c // 4) for w, c in zip(self.widths[2:], self.inner))
        return MobileViT((None, None, *inner), stem_part=self.widths[0] // self.stem)


SIZES = {
    "xxs": Published((16, 24, 48, 64, 80), (64, 80, 96), 2),
    "xs": Published((32, 48, 64, 80, 96), (96, 120, 144), 4),
    "s": Published((32, 64, 96, 128, 160), (144, 192, 240), 4),
}
_MORE = (0, 2, 2, 4, 3)  # blocks after the first of each stage


def model(size: Published) -> Entry:
    """A model of the paper: its one architecture."""
    first = residual(expansion=Choice(size.expansion))
    layer = transformer(heads=Choice(4), mlp_ratio=Choice(2))
    domains = (
        stage(Choice(width), first, first if i < 2 else layer, Choice(_MORE[i]))
        for i, width in enumerate(size.widths)
    )
    return stages(Choice(256), *domains), size.parts()


def paper(size: Published) -> Entry:
    """A space below a model of the paper: from three quarters of its width, half its expansion."""
    e = size.expansion
    expansion = Choice(e / 2, 3 * e / 4, e)
    first, convolution = (residual(expansion=expansion, sparsity=s) for s in (DENSE, _COARSE))
    layer = transformer(heads=Choice(2, 3, 4), mlp_ratio=Choice(1, 1.5, 2), sparsity=TENTHS)
    domains = []
    for i, (width, more) in enumerate(zip(size.widths, _MORE)):
        widths, depth = Choice(3 * width // 4 // 4 * 4, width), range(max(0, more - 2), more + 1)
        later = convolution if i < 2 else layer
        domains.append(stage(widths, first, later, Choice(*(depth[1:] if i > 1 else depth))))
    return stages(Choice(160, 192, 224, 256), *domains), size.parts()


_debug = {"precision": EITHER, "sparsity": HALF}
_FIRST = residual(expansion=Choice(1, 2), kernel=Choice(3, 5), precision=EITHER)
_LATER = residual(expansion=Choice(1, 2), kernel=Choice(3, 5), **_debug)
_LAYER = transformer(heads=Choice(1, 2), mlp_ratio=Choice(1, 1.5, 2), **_debug)
DEBUG = stages(
    Choice(16, 24),
    stage(Choice(4, 8), _FIRST, _LATER, Choice(0, 1)),
    stage(Choice(8, 12), _FIRST, _LAYER, Choice(1, 2)),
    stage(Choice(12), _FIRST, _LAYER, Choice(1)),
)
_FIRST, _LATER = (residual(expansion=Choice(1, 2), sparsity=s) for s in (DENSE, _COARSE))
_LAYER = transformer(heads=Choice(2, 4), mlp_ratio=Choice(1, 2), sparsity=FIFTHS)
_MICRO = (
    stage(Choice(12, 16), _FIRST, _LATER, Choice(0)),
    stage(Choice(16, 24), _FIRST, _LATER, Choice(0, 1, 2)),
    stage(Choice(36, 48), _FIRST, _LAYER, Choice(1, 2)),
    stage(Choice(48, 64), _FIRST, _LAYER, Choice(2, 3, 4)),
)

_MICRO_PARTS = MobileViT((None, None, Inner(4, 3, 16), Inner(5, 4, 20)))
_HALF_WIDER = Inner(3, 2, 6)
PRESETS = {
    "debug": (DEBUG, MobileViT((None, _HALF_WIDER, _HALF_WIDER), 2, window=4, patch_window=1)),
    "micro": (stages(Choice(112, 168, 224), *_MICRO), _MICRO_PARTS),
    "micro-320": (stages(Choice(160, 224, 320), *_MICRO), _MICRO_PARTS),
    **{name: paper(size) for name, size in SIZES.items()},
}
MODELS = {f"mobilevit_{name}": model(size) for name, size in SIZES.items()}
