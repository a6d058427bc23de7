"""EfficientViT (MIT) with elastic sizes and window-activation pruning.

EfficientViT: Cai et al., ICCV 2023, https://arxiv.org/abs/2205.14756; the classification models B0
to B3, L1 and L2 of the official code, and its segmenters (see `nas.network.fused`). Stage 0 runs at
half the resolution; each later stage begins with a strided block. The last stages are made of
linear-attention blocks (figure 2). Pruning after SparseViT, Chen et al., CVPR 2023,
https://arxiv.org/abs/2303.17605.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers import mode
from nas.layers.activations import ACTIVATIONS
from nas.layers.attention import linear_attention
from nas.layers.conv import ConvNorm, pointwise
from nas.layers.elastic import ElasticLayerNorm, ElasticLinear, classifier, importance, permute
from nas.layers.inverted_residual import FusedResidual, InvertedResidual
from nas.layers.maps import MapModule, PooledHead, StridedStem, channels_first
from nas.layers.precision import Quantizer
from nas.layers.windows import (
    kept_rows,
    map_size,
    on_kept_windows,
    windows_in,
    with_halo,
)
from nas.network.fused import SMALL_HEAD, Fused, head_stage, with_head
from nas.network.inputs import Images
from nas.network.pruning import MapState, prune_map
from nas.size import Size, area, divided, sides
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, EITHER, FIFTHS, FLOAT, HALF, TENTHS, stages
from nas.space.domains import Choice, Repeat, Space
from nas.space.family import BITS
from nas.space.layer import Layer, Part
from nas.space.origins import Origin, Renaming, renamed
from nas.space.task import Task
from nas.tasks.segmentation import Segmentation

# Shape suffixes: B batch, SS height and width of the map, N tokens, C width, H heads, D head_dim,
# G = 3 H groups (of each head: query, key, value). Between layers travel the map x_BSSC and the
# order of its windows, once scored.

REACH = 2  # how far the 5x5 aggregation sees
# By `large`: the B models, and the L models.
ACTIVATION = ("hardswish", "gelu_tanh")
NORM_EPS = (1e-5, 1e-7)


@dataclass(frozen=True)
class Block:
    """A strided or residual convolution block, or a linear-attention block."""

    heads: int  # 0: a convolution block
    expansion: int  # hidden channels of its convolutions, in widths of their input
    sparsity: int  # percent of the windows that pass unchanged
    precision: str  # fp32, or int8 for the linear layers and dense convolutions


class Stem(StridedStem):
    """A strided 3x3 convolution."""

    def __init__(self, *, width: int, large: int) -> None:
        super().__init__(width, ACTIVATION[large], NORM_EPS[large])


class ConvBlock(MapModule):
    """MBConv or FusedMBConv on the `kept` most active windows; the others pass unchanged.

    With a stride it enters a stage and works on the whole map. `entry`: the stem's kind, which does
    not expand (DSConv, ConvBlock).
    """

    def __init__(
        self,
        *,
        width_in: int,
        width: int,
        hidden: int,
        stride: int,
        entry: int,
        fused: int,
        biased: int,
        large: int,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {
            "stride": stride,
            "residual": stride == 1,
            "activation": ACTIVATION[large],
            "eps": NORM_EPS[large],
        }
        self.body: FusedResidual | InvertedResidual
        if fused:
            settings["project"] = 3 if entry else 1
            self.body = FusedResidual(width_in, hidden, width, **settings)
        else:
            settings["norms"] = (not biased, not biased, True)
            self.body = InvertedResidual(width_in, hidden, width, 3, expand=not entry, **settings)

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        hidden: int,
        width: int,
        bits: int,
        window: Size = 0,
        kept: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the map after the block, and the order of its windows."""
        sizes = {"hidden": hidden, "width": width, "window": window, "kept": kept}
        return self.body(x_BSSC, order, **sizes, bits=bits), order


class MultiScaleLinearAttention(nn.Module):
    """Linear attention at two scales: the tokens, and aggregates of 5x5 of them (section 3.1).

    Heads of `head_dim` channels at each scale, whatever the width. The aggregation (depthwise 5x5,
    then 1x1 within the query, key or value of a head) and the products stay in float32 at 8 bits.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, *, eps: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(heads, 3, head_dim, width))
        self.depthwise = nn.Parameter(torch.empty(heads, 3, head_dim, 5, 5))
        self.pointwise = nn.Parameter(torch.empty(heads, 3, head_dim, head_dim))
        for weight, inputs in ((self.qkv, width), (self.depthwise, 25), (self.pointwise, head_dim)):
            nn.init.trunc_normal_(weight, std=inputs**-0.5)
        # Its inputs are (heads, scales, head_dim), so that fewer heads are a prefix.
        self.project = ConvNorm(heads * 2 * head_dim, width, eps=norm_eps)
        self.input = Quantizer()
        self.eps = eps

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        heads: int,
        kept: int,
        window: Size,
        bits: int,
    ) -> Tensor:
        """Return the map with the attention added; tokens of kept windows attend to each other."""
        (b, _, _, c), size = x_BSSC.shape, map_size(x_BSSC)
        if kept == windows_in(size, window):
            qkv = self._qkv(x_BSSC, heads, bits)
            y = self._attend(qkv, self._spread(qkv, REACH), b)
            return self.project(y, c, bits=bits).add_(x_BSSC)  # type: ignore[no-any-return]
        assert order is not None
        inner = slice(REACH, -REACH)

        def in_windows(x: Tensor, inside: Tensor | None) -> Tensor:
            assert inside is not None
            qkv = self._qkv(x * inside, heads, bits)
            y = self._attend(qkv[:, inner, inner], self._spread(qkv, 0), b)
            y_inner: Tensor = self.project(y, c, bits=bits).reshape(-1, *sides(window), c)
            return y_inner.add_(x[:, inner, inner])

        def from_whole(x: Tensor, _: Tensor | None) -> Tensor:
            rows = kept_rows(size, window, 0, order[:, :kept])
            qkv = self._qkv(x_BSSC, heads, bits)
            qkv, spread = (
                part.reshape(-1, part.shape[-1]).index_select(0, rows).view(*x.shape[:3], -1)
                for part in (qkv, self._spread(qkv, REACH))
            )
            y: Tensor = self.project(self._attend(qkv, spread, b), c, bits=bits)
            return y.reshape(x.shape).add_(x)

        # Halos overlap: once they hold more than the map does, the map is less work.
        less = kept * area(with_halo(window, REACH)) < area(size)
        run, halo = (in_windows, REACH) if less else (from_whole, 0)
        return on_kept_windows(run, x_BSSC, order, kept=kept, window=window, halo=halo)

    def _qkv(self, x: Tensor, heads: int, bits: int) -> Tensor:
        weight = self.qkv[:heads, :, :, : x.shape[-1]].reshape(-1, x.shape[-1])
        return pointwise(x, weight, None, self.input, bits)

    def _spread(self, qkv: Tensor, padding: int) -> Tensor:
        """The depthwise 5x5 convolution."""
        groups = qkv.shape[-1]
        weight = self.depthwise.flatten(0, 2)[:groups, None]
        y = F.conv2d(qkv.permute(0, 3, 1, 2), weight, None, 1, padding, groups=groups)
        return y.permute(0, 2, 3, 1)

    def _attend(self, qkv: Tensor, spread: Tensor, b: int) -> Tensor:
        """What is projected, (b, rows, S, heads * 2 * head_dim).

        Takes the tokens of `b` images, maps or windows, and what the depthwise
        convolution made of them.
        """
        d = self.pointwise.shape[-1]
        heads = qkv.shape[-1] // (3 * d)
        tokens = channels_first(qkv, b).reshape(b, heads, 3, d, -1)
        scales = tokens, self._mixed(spread, b).reshape(tokens.shape)
        y = torch.stack([linear_attention(scale, self.eps) for scale in scales], 2)
        return y.reshape(b, heads * 2 * d, -1, spread.shape[2]).permute(0, 2, 3, 1)

    def _mixed(self, spread: Tensor, b: int) -> Tensor:
        """(b, G, D, N): each group's channels mixed, a grouped 1x1 convolution."""
        d = self.pointwise.shape[-1]
        groups = spread.shape[-1] // d
        weight = self.pointwise.flatten(0, 1)[:groups]
        if spread.is_meta or mode.exporting():  # counted and exported as what it is
            weight = weight.reshape(-1, d, 1, 1)
            y = F.conv2d(spread.permute(0, 3, 1, 2), weight, groups=groups).permute(0, 2, 3, 1)
            return channels_first(y, b).reshape(b, groups, d, -1)
        # 2-6x faster than grouped convolutions on CPUs.
        y = spread.reshape(-1, groups, d).transpose(0, 1) @ weight.mT
        return y.view(groups, b, -1, d).permute(1, 0, 3, 2)

    def deploy(self) -> None:
        """Products of small maps are up to 1.2x faster with the projection's inputs in rows."""
        shape = self.qkv.shape
        self.qkv.data = self.qkv.data.flatten(0, 2).t().contiguous().t().view(shape)

    def reorder(self) -> None:
        """Sort heads by importance."""
        heads = len(self.qkv)
        project = self.project.weight.view(len(self.project.weight), heads, -1)
        slots = ((self.qkv, 0), (self.depthwise, 0), (self.pointwise, 0), (project, 1))
        permute(sum(importance(*slot) for slot in slots).argsort(descending=True), *slots)  # type: ignore[union-attr]


class AttentionBlock(MapModule):
    """Linear attention and MBConv on the `kept` most active windows; the others pass unchanged.

    In a kept window both see their surroundings: the attention's aggregation two tokens of the map
    before the block, the depthwise convolution one token of the map after the attention. Tokens of
    kept windows attend to each other only.
    """

    def __init__(
        self, *, width: int, heads: int, head_dim: int, hidden: int, large: int, eps: int
    ) -> None:
        super().__init__()
        norm_eps = NORM_EPS[large]
        self.attention = MultiScaleLinearAttention(
            width, heads, head_dim, eps=10.0**-eps, norm_eps=norm_eps
        )
        norms, activation = (False, False, True), ACTIVATION[large]
        self.local = InvertedResidual(
            width, hidden, width, 3, activation=activation, eps=norm_eps, norms=norms
        )

    def forward(
        self,
        x_BSSC: Tensor,
        order: Tensor | None,
        *,
        width: int,
        heads: int,
        hidden: int,
        window: Size,
        kept: int,
        bits: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the map after both, and the order of its windows."""
        sizes = {"kept": kept, "window": window, "bits": bits}
        x = self.attention(x_BSSC, order, heads=heads, **sizes)
        return self.local(x, order, hidden=hidden, width=width, **sizes), order


class Head(PooledHead):
    """1x1 convolution, mean over the map, linear layer, LayerNorm, linear classifier."""

    def __init__(self, *, width: int, hidden: int, features: int, classes: int, large: int) -> None:
        super().__init__(width, hidden, ACTIVATION[large])
        self.fc1 = ElasticLinear(hidden, features, bias=False)
        self.norm = ElasticLayerNorm(features, eps=NORM_EPS[large])
        self.fc2 = classifier(features, classes)
        self.activation = ACTIVATIONS[ACTIVATION[large]]

    def forward(self, x_BSSC: Tensor, order: Tensor | None) -> tuple[Tensor]:
        """Return logits (B, classes)."""
        return (self.fc2(self.activation(self.norm(self.fc1(self.pooled(x_BSSC))))),)


# Where timm's checkpoints keep our tensors; a colon stands after each convolution.
TIMM: tuple[Renaming, ...] = (
    (r"^stem\.conv", "stem.in_conv:"),
    (r"^head\.conv", "head.in_conv:"),
    (r"^head\.fc1", "head.classifier.0"),
    (r"^head\.norm", "head.classifier.1"),
    (r"^head\.fc2", "head.classifier.4"),
    (r"^stage0_(\d+)", r"stem.res\1"),
    (r"^stage(\d+)_(\d+)", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}"),
    (r"\.body", ".main"),
    (r"\.local", ".local_module.main"),
    (r"\.attention", ".context_module.main"),
    (r"main\.qkv", "main.qkv.conv.weight"),
    (r"context_module\.main\.depthwise", "context_module.main.aggreg.0.0.weight"),
    (r"context_module\.main\.pointwise", "context_module.main.aggreg.0.1.weight"),
    (r"context_module\.main\.project", "context_module.main.proj:"),
    ("expand", "inverted_conv:"),
    ("depthwise", "depth_conv:"),
    ("project", "point_conv:"),
    (r":\.norm", ".norm"),
    (":", ".conv"),
)
# The convolutions of blocks that are dense, in the stem and after it.
DENSE_STEM: tuple[Renaming, ...] = (("expand", "conv1:"), ("project", "conv2:"), *TIMM)
FUSED: tuple[Renaming, ...] = (("expand", "spatial_conv:"), *TIMM)


@dataclass(frozen=True)
class EfficientVit(Images):
    """The parts of an EfficientViT at fixed head size and classifier widths."""

    head_dim: int = 16
    head_widths: tuple[int, int] = (1024, 1280)
    fused: int = 0  # stages, from the first, whose convolutions are dense
    biased: int = 3  # the first stage where only a block's last convolution has a norm
    large: bool = False  # the L models' activation and norms
    window: int = 8  # the largest side of a window
    eps: int = 15  # 1e-15 is added to the attention's denominator: the official code; timm's is 5

    def stem(self, resolution: Size, width: int) -> Part:
        """Emit the strided convolution."""
        shape = self.example(resolution)
        layer = Layer.of("stem", Stem, shape, width=width, large=int(self.large))
        return Part((layer,), MapState(divided(resolution, 2), width, width, 0))

    def transition(self, stage: int, state: MapState, width: int) -> Part:
        """Emit nothing: the first block of the stage strides."""
        return Part((), state.entered(width))

    def block(self, stage: int, index: int, state: MapState, block: Block) -> Part | None:
        """Emit one block, after the score where the stage starts to prune."""
        path, stride = f"stage{stage}_{index}", 2 if stage and not index else 1
        pruned = prune_map(stage, state, block.sparsity, stride, self.window)
        if pruned is None:
            return None
        scores, windows = pruned
        sizes = {
            "width": state.width,
            "hidden": state.in_width * block.expansion,
            "bits": BITS[block.precision],
            "large": int(self.large),
        }
        kind = {
            "width_in": state.in_width,
            "entry": int(stage == 0),
            "fused": int(stage < self.fused),
            "biased": int(stage >= self.biased),
        }
        if block.heads:
            kind = {"heads": block.heads, "head_dim": self.head_dim, "eps": self.eps}
            layer = Layer.of(path, AttentionBlock, state.shape, **sizes, **kind, **windows)
        else:
            kind |= {"stride": stride}
            layer = Layer.of(path, ConvBlock, state.shape, **sizes, **kind, **windows)
        return Part((*scores, layer), state.after(stride, block.sparsity))

    def to_map(self, state: MapState) -> tuple[tuple[Layer, ...], Size, int]:
        """Emit nothing: a map is what there is."""
        return (), state.size, state.in_width

    def head(self, state: MapState, task: Task) -> tuple[Layer, ...]:
        """Emit the classifier on the last map."""
        hidden, features = self.head_widths
        layer = Layer.of(
            "head",
            Head,
            state.shape,
            width=state.width,
            hidden=hidden,
            features=features,
            classes=task.outputs,
            large=int(self.large),
        )
        return (layer,)

    def origin(self, path: str, name: str) -> Origin:
        """Look the tensor up in `TIMM`, or in the tables of stages whose convolutions are dense."""
        stage = path.removeprefix("stage").partition("_")[0]
        table = TIMM
        if stage.isdecimal() and int(stage) < self.fused:
            table = FUSED if int(stage) else DENSE_STEM
        scales = self._scales_first if name == "attention.project.weight" else None
        return renamed(table, path, name), scales

    def _scales_first(self, weight: Tensor, _: tuple[int, ...]) -> Tensor:
        """Theirs has the inputs of one scale after those of the other."""
        return weight.view(len(weight), 2, -1, self.head_dim).transpose(1, 2)


Entry = tuple[Space[Architecture], EfficientVit | Fused]
_CONV = Choice(0)  # heads of convolution blocks


def stage(
    width: Choice,
    depth: Choice,
    expansion: Choice,
    *,
    heads: Choice = _CONV,
    entry: Choice | None = None,
    sparsity: Choice = DENSE,
    precision: Choice = FLOAT,
) -> Space[Stage]:
    """Return the domain of a stage, in which `depth` counts the strided block.

    `entry` is the expansion of that block, None in stage 0, which has none.
    """
    block = partial(Space, Block, precision=precision)
    inner = block(heads=heads, expansion=expansion, sparsity=sparsity)
    blocks = [inner] * depth.values[-1]
    if entry is not None:
        blocks[0] = block(heads=_CONV, expansion=entry, sparsity=DENSE)
    return Space(Stage, width=width, blocks=Repeat(tuple(blocks), depth))


@dataclass(frozen=True)
class Paper:
    """A model of the official code: five stages, with the strided blocks counted in the depths."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    parts: EfficientVit
    expansions: tuple[int, ...] = (1, 4, 4, 4, 4)
    entries: tuple[int, ...] = (0, 4, 4, 4, 4)  # expansions of the strided blocks
    first_attention: int = 3  # the first stage of attention blocks

    def model(self, resolution: int = 224) -> tuple[Space[Architecture], EfficientVit]:
        """Return the domain of its one architecture, and its parts."""
        return self._space(Choice(resolution), lambda *values: Choice(values[-1]), DENSE)

    def space(self) -> Entry:
        """Return a space below it: narrower, with fewer blocks, heads and hidden channels."""
        return self._space(Choice(160, 192, 224), Choice, TENTHS)

    def segmenter(
        self, resolution: int, classes: int, width: int, depth: int, expansion: int, final: int
    ) -> Entry:
        """Return this model with a fused head, whose blocks are dense if its own are."""
        large = self.parts.large
        return with_head(
            *self.model(resolution),
            head_stage(Choice(width), Choice(depth), Choice(expansion)),
            final=final,
            fused=large,
            large=large,
            cubic=True,
            task=Segmentation(classes),
        )

    def _space(
        self, resolution: Choice, choice: Callable[..., Choice], sparsity: Choice
    ) -> tuple[Space[Architecture], EfficientVit]:
        domains = []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths)):
            expansion, entry = self.expansions[i], self.entries[i]
            heads = width // self.parts.head_dim
            domains.append(
                stage(
                    choice(3 * width // 4, width),
                    choice(*range(max(1 + (i > 0), depth - 2), depth + 1)),
                    choice(*_halves(expansion)),
                    heads=choice(heads // 2, heads) if i >= self.first_attention else _CONV,
                    entry=choice(*_halves(entry)) if i else None,
                    sparsity=sparsity if i < 4 else DENSE,
                )
            )
        return stages(resolution, *domains), self.parts


def _halves(expansion: int) -> tuple[int, ...]:
    return (expansion // 2, expansion) if expansion > 1 else (expansion,)


def _b(width: int, depths: tuple[int, ...], head_dim: int, head_widths: tuple[int, int]) -> Paper:
    widths = tuple(width * 2**i for i in range(5))
    return Paper(widths, depths, EfficientVit(head_dim, head_widths))


def _l(depths: tuple[int, ...]) -> Paper:
    return Paper(
        (32, 64, 128, 256, 512),
        depths,
        EfficientVit(32, (3072, 3200), fused=3, large=True),
        expansions=(1, 4, 4, 4, 6),
        entries=(0, 16, 16, 16, 24),
        first_attention=4,
    )


PAPERS = {
    "b0": _b(8, (1, 2, 2, 3, 3), 16, (1024, 1280)),
    "b1": _b(16, (1, 2, 3, 4, 5), 16, (1536, 1600)),
    "b2": _b(24, (1, 3, 4, 5, 7), 32, (2304, 2560)),
    "b3": _b(32, (1, 4, 6, 7, 10), 32, (2304, 2560)),
    "l1": _l((1, 2, 2, 7, 7)),
    "l2": _l((1, 3, 3, 9, 9)),
}

_debug = partial(stage, sparsity=HALF, precision=EITHER)
_micro = partial(stage, sparsity=FIFTHS)
_ONCE, _TWICE = Choice(1, 2), Choice(2, 4)  # expansions
DEBUG = stages(
    Choice(32, 48),
    _debug(Choice(4, 6), Choice(1), Choice(1)),
    _debug(Choice(8), Choice(1, 2), _ONCE, entry=_ONCE),
    _debug(Choice(12, 16), Choice(2, 3), _ONCE, heads=Choice(1, 2), entry=_ONCE),
)
MICRO = stages(
    Choice(112, 160, 224),
    _micro(Choice(8, 12), Choice(1), Choice(1)),
    _micro(Choice(16, 24), Choice(1, 2), _TWICE, entry=_TWICE),
    _micro(Choice(32, 48), Choice(2, 3), _TWICE, heads=Choice(2, 3), entry=_TWICE),
    _micro(Choice(64, 96), Choice(2, 3, 4), _TWICE, heads=Choice(3, 6), entry=_TWICE),
)

MICRO_PARTS = EfficientVit(16, (384, 384), biased=2)
# Pictures of a segmenter are larger; sides at which every map has windows of 7 or 8.
SEG_MICRO = stages(Choice(224, 336, 448), *dict(MICRO.domains)["stages"].items)  # type: ignore[attr-defined]
SEGMENTERS = {  # of the official code: resolution, classes; width, depth, expansion, `final`
    "b0_cityscapes": (1024, 19, 32, 1, 4, 4),
    "b1_cityscapes": (1024, 19, 64, 3, 4, 4),
    "b2_cityscapes": (1024, 19, 96, 3, 4, 4),
    "b3_cityscapes": (1024, 19, 128, 3, 4, 4),
    "l1_cityscapes": (1024, 19, 256, 3, 1, 0),
    "l2_cityscapes": (1024, 19, 256, 5, 1, 0),
    "b1_ade20k": (512, 150, 64, 3, 4, 0),
    "b2_ade20k": (512, 150, 96, 3, 4, 0),
    "b3_ade20k": (512, 150, 128, 3, 4, 0),
    "l1_ade20k": (512, 150, 128, 3, 4, 8),
    "l2_ade20k": (512, 150, 128, 3, 4, 8),
}

PRESETS = {
    "debug": (DEBUG, EfficientVit(4, (12, 16), biased=2, window=4)),
    "micro": (MICRO, MICRO_PARTS),
    "seg-micro": with_head(SEG_MICRO, MICRO_PARTS, SMALL_HEAD, task=Segmentation()),
    **{name: paper.space() for name, paper in PAPERS.items()},
}
MODELS = {
    **{f"efficientvit_{name}": paper.model() for name, paper in PAPERS.items()},
    **{
        f"efficientvit_seg_{name}": PAPERS[name[:2]].segmenter(*sizes)
        for name, sizes in SEGMENTERS.items()
    },
}
