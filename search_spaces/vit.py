"""Plain vision transformers (ViT, DeiT) with elastic sizes and window-activation pruning.

ViT: Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929. DeiT, with its distillation
token: Touvron et al., ICML 2021, https://arxiv.org/abs/2012.12877. CLIP: Radford et al., ICML 2021,
https://arxiv.org/abs/2103.00020. Patch tokens are grouped into
small windows; class and distillation token always stay. Nothing after a block reads a dropped
token again (the head reads the other two), so dropped tokens are simply left behind: tokens are
sorted by window once, and every later block takes a prefix of them. A head that reads a map gets
them back, as they were when they were left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers.elastic import ElasticLayerNorm, ElasticModule, classifier
from nas.layers.positions import sines_and_cosines
from nas.layers.transformer import TransformerModule
from nas.layers.windows import sorted_by_window, still_there
from nas.network.inputs import Images
from nas.network.pruning import Pruning
from nas.size import Size, area, divided, sides, size_of
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, EITHER, FIFTHS, FLOAT, HALF, TENTHS, stages
from nas.space.domains import Choice, Repeat, Space
from nas.space.family import BITS
from nas.space.layer import Layer, Part
from nas.space.origins import ATTENTION, Origin, Renaming, renamed
from nas.space.task import Task

# What the size `clip` of a layer says: as in ViT, or as in CLIP (Radford et al., ICML 2021, section
# 2.4), whose layers are older than the exact GELU in OpenAI's own weights.
PLAIN, CLIP, QUICK = 0, 1, 2
EPS, ACTIVATION = (1e-6, 1e-5, 1e-5), ("gelu", "gelu", "quick_gelu")

# Shape suffixes: B batch, N tokens (class token first, then any distillation token), C width, GG
# height and width of the grid of patches. Between layers travel the tokens x_BNC and, once sorted,
# the patch that each of them came from.


@dataclass(frozen=True)
class Block:
    """A transformer block."""

    heads: int
    mlp_ratio: float
    sparsity: int  # percent of the windows of patch tokens that are dropped
    precision: str  # fp32, or int8 for the linear layers


class TokenModule(ElasticModule):
    """A layer whose input is tokens and (here not needed) the patches they came from."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Any, ...]:
        """Draw tokens that are not sorted."""
        return torch.randn(batch, *input_shape), None


class PatchEmbed(ElasticModule):
    """Patches projected to tokens, one or two tokens of no patch, learned positions.

    ViT, equation 1; at another resolution the positions are resized (section 3.2). In `clip` the
    projection has no bias, and a norm follows.
    """

    def __init__(
        self, *, width: int, patch: int, grid: Size, distilled: int, clip: int = PLAIN
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width)) if clip == PLAIN else None
        self.norm = nn.Identity() if clip == PLAIN else ElasticLayerNorm(width, eps=EPS[clip])
        self.position = nn.Parameter(torch.empty(*sides(grid), width))
        learned = [self.weight, self.position]
        for token in ("class", "distillation")[: 1 + distilled]:
            for name in (f"{token}_token", f"{token}_position"):
                self.register_parameter(name, nn.Parameter(torch.empty(width)))
                learned.append(getattr(self, name))
        for parameter in learned:
            nn.init.trunc_normal_(parameter, std=0.02)

    class_token: Tensor
    class_position: Tensor
    distillation_token: Tensor
    distillation_position: Tensor

    def forward(
        self, images: Tensor, *, width: int, patch: int, grid: Size, distilled: int
    ) -> tuple[Tensor, None]:
        """Return the tokens (B, N, width) of images (B, 3, height, width), not sorted yet."""
        b, (down, across) = len(images), sides(grid)
        below, right = down * patch - images.shape[-2], across * patch - images.shape[-1]
        images = F.pad(images, (0, right, 0, below)) if below or right else images
        # As a product with gathered patches: 1.2-1.5x faster than a convolution with this stride.
        patches = images.reshape(b, 3, down, patch, across, patch).permute(0, 2, 4, 1, 3, 5)
        x = F.linear(patches.reshape(b, down * across, -1), self.weight[:width].flatten(1))
        position = resized(self.position[..., :width], grid)
        x = x + (position if self.bias is None else position + self.bias[:width]).view(-1, width)
        first = [(self.class_token + self.class_position)[:width]]
        if distilled:
            first.append((self.distillation_token + self.distillation_position)[:width])
        return self.norm(torch.cat([torch.stack(first).expand(b, -1, -1), x], dim=1)), None

    def fix_positions(self) -> None:
        """Take sines and cosines as positions, which are not learned (MAE, MoCo v3)."""
        *grid, width = self.position.shape
        with torch.no_grad():
            self.position.copy_(sines_and_cosines(size_of(*grid), width))
        self.position.requires_grad_(False)
        for name, parameter in self.named_parameters():
            if name.endswith("_position"):
                parameter.data.zero_()
                parameter.requires_grad_(False)

    def freeze_projection(self) -> None:
        """Take the projection of patches out of what is trained (MoCo v3)."""
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def inherit(self, large: nn.Module) -> None:
        """Positions of another grid are resized once, here, instead of in every inference."""
        assert isinstance(large, PatchEmbed)
        *grid, width = self.position.shape
        with torch.no_grad():
            for name, own in self.named_parameters():
                if name != "position":
                    own.copy_(large.get_parameter(name)[:width])
            self.position.copy_(resized(large.position[..., :width], size_of(*grid)))


def resized(position_GGC: Tensor, grid: Size) -> Tensor:
    """Learned positions at another grid: bicubic, smoothed where the grid shrinks."""
    if position_GGC.shape[:2] == sides(grid):
        return position_GGC
    x = position_GGC.permute(2, 0, 1)[None]
    x = F.interpolate(x, sides(grid), mode="bicubic", antialias=True)
    return x[0].permute(1, 2, 0)


class WindowSort(TokenModule):
    """Sort the patch tokens by the activation of their window, most active first."""

    def forward(
        self, x_BNC: Tensor, source: None, *, first: int, grid: Size, window: Size
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens in that order, after the `first` of no patch, and each one's patch."""
        b, _, c = x_BNC.shape
        patches = x_BNC[:, first:]
        index = sorted_by_window(patches.reshape(b, *sides(grid), c), window)
        patches = patches.gather(1, index[..., None].expand(-1, -1, c))
        return torch.cat([x_BNC[:, :first], patches], dim=1), index


class Hide(TokenModule):
    """Leave out all patches but the first ones of a given order, e.g. a random one (MAE)."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Any, ...]:
        """Draw tokens and an order."""
        patches = input_shape[0] - sizes["first"]
        return torch.randn(batch, *input_shape), None, torch.rand(batch, patches).argsort(1)

    def forward(
        self, x_BNC: Tensor, source: None, order: Tensor, *, tokens: int, first: int
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens that stay, and the patch that each place of the order is of."""
        index = order[:, : tokens - first, None].expand(-1, -1, x_BNC.shape[2])
        return torch.cat([x_BNC[:, :first], x_BNC[:, first:].gather(1, index)], dim=1), order


class LeavingModule(TokenModule):
    """A layer that knows of tokens left behind: they wait behind the patches tokens came from."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: Any) -> tuple[Any, ...]:
        """Draw tokens, sorted if they are not all there are, and then those that were left."""
        x, patches = torch.randn(batch, *input_shape), area(sizes["grid"])
        behind = sizes["first"] + patches - input_shape[0]
        if not behind and "tokens" not in sizes:
            return x, None
        source = torch.rand(batch, patches).argsort(1)
        left = (torch.randn(batch, behind, input_shape[1]),) if behind else ()
        return x, source, *left


class Leave(LeavingModule):
    """Leave all but the first `tokens` tokens behind, of `first` and those of a grid."""

    def forward(
        self, x_BNC: Tensor, source: Tensor, *left: Tensor, tokens: int, first: int, grid: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens that stay, the patches of all, and those left, the newest in front."""
        waiting = torch.cat([x_BNC[:, tokens:], *left], 1)
        return x_BNC[:, :tokens].contiguous(), source, waiting


class ToMap(LeavingModule):
    """LayerNorm of all tokens, each patch where it was in the picture."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width, eps=1e-6)

    def forward(
        self, x_BNC: Tensor, source: Tensor | None, *left: Tensor, first: int, grid: Size
    ) -> tuple[Tensor, None]:
        """Return the map (B, G, G, C), whose windows have no order."""
        x = self.norm(torch.cat([x_BNC, *left], 1) if left else x_BNC)[:, first:]
        b, _, c = x.shape
        if source is not None:
            x = x.gather(1, source.argsort(1)[..., None].expand(-1, -1, c))
        return x.reshape(b, *sides(grid), c), None


class TransformerBlock(TransformerModule, TokenModule):
    """Pre-norm attention and MLP on the first `tokens` tokens; the others are left behind."""

    def __init__(
        self, *, width: int, heads: int, head_dim: int, hidden: int, clip: int = PLAIN
    ) -> None:
        super().__init__(width, heads, head_dim, hidden, EPS[clip], ACTIVATION[clip])

    def forward(
        self,
        x_BNC: Tensor,
        source: Tensor | None,
        *,
        heads: int,
        hidden: int,
        tokens: int,
        bits: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tokens that stay, and the patches they came from."""
        x = x_BNC if x_BNC.shape[1] == tokens else x_BNC[:, :tokens].contiguous()
        return self.transform(x, heads, hidden, bits), source

    def kept(
        self, x_BNC: Tensor, source: Tensor | None, *, tokens: int, first: int, grid: Size
    ) -> Tensor:
        """Mark the patches that stay, (G, G); `first` tokens belong to none."""
        return still_there(source, tokens - first, grid)


class Head(TokenModule):
    """LayerNorm and linear classifier on the class token.

    A distillation token has a classifier of its own; the mean of both answers (DeiT, section 4).
    """

    def __init__(self, *, width: int, classes: int, distilled: int, clip: int = PLAIN) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width, eps=EPS[clip])
        self.fc = classifier(width, classes)
        if distilled:
            self.distillation = classifier(width, classes)

    def forward(self, x_BNC: Tensor, source: Tensor | None, *, distilled: int) -> tuple[Tensor]:
        """Return logits (B, classes)."""
        x = self.norm(x_BNC[:, : 1 + distilled])
        logits = self.fc(x[:, 0])
        if distilled:
            logits = (logits + self.distillation(x[:, 1])) / 2
        return (logits,)


class MeanHead(TokenModule):
    """Mean of the patch tokens, LayerNorm and linear classifier, as MAE's networks are tuned."""

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width, eps=1e-6)
        self.fc = classifier(width, classes)

    def forward(self, x_BNC: Tensor, source: Tensor | None, *, first: int) -> tuple[Tensor]:
        """Return logits (B, classes)."""
        return (self.fc(self.norm(x_BNC[:, first:].mean(1))),)


# Where timm's checkpoints keep our tensors.
TIMM: tuple[Renaming, ...] = (
    (r"^stem\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"^stem\.(\w+_)?position", "pos_embed"),
    (r"^stem\.norm", "norm_pre"),
    (r"^stem\.class_token", "cls_token"),
    (r"^stem\.distillation_token", "dist_token"),
    (r"^block(\d+)", r"blocks.\1"),
    (r"^(?:head|map)\.norm", "norm"),
    (r"^mean_head\.norm", "fc_norm"),
    (r"^mean_head\.fc", "head"),
    (r"^head\.fc", "head"),
    (r"^head\.distillation", "head_dist"),
    *ATTENTION,
)


class State(NamedTuple):
    """What later layers depend on."""

    grid: Size
    width: int
    tokens: int
    sparsity: int


@dataclass(frozen=True)
class ViT(Images):
    """The parts of a plain vision transformer at fixed patch, window and head size."""

    patch: int = 16
    window: int = 2
    head_dim: int = 64
    distilled: bool = False
    whole: bool = False  # tokens that are left behind are put back into a map
    pooled: bool = False  # the classifier reads the mean of the patches, not the class token
    hidden: int = 0  # percent of the patches that are left out behind the stem, and never put back
    clip: int = PLAIN  # or the form of CLIP

    @property
    def multiple(self) -> int:
        """Sides of images are whole patches."""
        return self.patch

    @property
    def smallest(self) -> int:
        """A picture holds one window."""
        return self.patch * self.window

    def for_maps(self) -> ViT:
        """These parts, but tokens that are left behind wait for the end."""
        return replace(self, whole=True)

    def hiding(self, masked: int) -> ViT:
        """These parts, but so many percent of the patches are left out in an order that is given.

        What blocks would prune is not pruned besides: the order is none of activity.
        """
        return replace(self, hidden=masked)

    @property
    def form(self) -> dict[str, int]:
        """The size of layers that says that they are of CLIP, where they are."""
        return {"clip": self.clip} if self.clip else {}

    @property
    def first(self) -> int:
        """Tokens before those of the patches."""
        return 1 + self.distilled

    def stem(self, resolution: Size, width: int) -> Part:
        """Emit the patch embedding."""
        grid = divided(resolution, self.patch)
        sizes = {"width": width, "patch": self.patch, "distilled": self.distilled}
        layer = Layer.of(
            "stem", PatchEmbed, self.example(resolution), grid=grid, **sizes, **self.form
        )
        total = self.first + area(grid)
        if not self.hidden:
            return Part((layer,), State(grid, width, total, 0))
        tokens = self.first + max(1, area(grid) * (100 - self.hidden) // 100)
        hide = Layer.of("hide", Hide, (total, width), tokens=tokens, first=self.first)
        return Part((layer, hide), State(grid, width, tokens, 0))

    def transition(self, stage: int, state: State, width: int) -> Part:
        """Refuse: the family has one stage."""
        raise NotImplementedError("a plain vision transformer has one stage")

    def block(self, stage: int, index: int, state: State, block: Block) -> Part | None:
        """Emit a transformer block, after the sort where the stage starts to prune."""
        if block.sparsity < state.sparsity:
            return None  # later blocks take a prefix of the same order
        pruning = Pruning.of_tokens(state.grid, self.window, state.sparsity, block.sparsity)
        shape = (state.tokens, state.width)
        place: dict[str, Any] = {"first": self.first, "grid": state.grid}
        tokens = state.tokens if self.hidden else self.first + pruning.tokens
        layers = []
        if pruning.starts and not self.hidden:
            layers.append(Layer.of("sort", WindowSort, shape, window=pruning.window, **place))
        if self.whole and tokens < state.tokens:
            layers.append(Layer.of(f"leave{index}", Leave, shape, tokens=tokens, **place))
            shape = (tokens, state.width)
        layer = Layer.of(
            f"block{index}",
            TransformerBlock,
            shape,
            width=state.width,
            heads=block.heads,
            head_dim=self.head_dim,
            hidden=int(state.width * block.mlp_ratio),
            tokens=tokens,
            bits=BITS[block.precision],
            **place,
            **self.form,
        )
        return Part((*layers, layer), state._replace(tokens=tokens, sparsity=block.sparsity))

    def to_map(self, state: State) -> tuple[tuple[Layer, ...], Size, int]:
        """Emit the last norm, and put back what was left behind."""
        sizes, shape = {"width": state.width, "first": self.first}, (state.tokens, state.width)
        layer = Layer.of("map", ToMap, shape, grid=state.grid, **sizes)
        return (layer,), state.grid, state.width

    def head(self, state: State, task: Task) -> tuple[Layer, ...]:
        """Emit the classifier on the class token, or on the mean of the patches."""
        if self.pooled:
            means = {"width": state.width, "classes": task.outputs, "first": self.first}
            return (Layer.of("head", MeanHead, (state.tokens, state.width), **means),)
        sizes = {"width": state.width, "classes": task.outputs, "distilled": self.distilled}
        return (Layer.of("head", Head, (state.tokens, state.width), **sizes, **self.form),)

    def origin(self, path: str, name: str) -> Origin:
        """Look the tensor up in `TIMM`, where one table holds the positions of all tokens."""
        rows = {"class_position": 0, "distillation_position": 1}
        path = "mean_head" if self.pooled and path == "head" else path
        if name in rows:
            return renamed(TIMM, path, name), lambda table, _: table[0, rows[name]]
        return renamed(TIMM, path, name), self._patch_positions if name == "position" else None

    def _patch_positions(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A checkpoint's positions (1, N, C) of the patches, resized to ours (G, G, C)."""
        patches = table[0, self.first :]
        side = isqrt(len(patches))
        grid = (side, side) if side**2 == len(patches) else shape[:2]  # published ones are square
        return resized(patches.reshape(*grid, -1), size_of(*shape[:2]))


Entry = tuple[Space[Architecture], ViT]


def space(
    resolution: Choice,
    width: Choice,
    depth: Choice,
    heads: Choice,
    mlp_ratio: Choice,
    *,
    sparsity: Choice = DENSE,
    precision: Choice = FLOAT,
) -> Space[Architecture]:
    """Return the domain of architectures of one stage of equal blocks."""
    block = Space(Block, heads=heads, mlp_ratio=mlp_ratio, sparsity=sparsity, precision=precision)
    return stages(resolution, Space(Stage, width=width, blocks=Repeat(block, depth)))


def paper(width: int, heads: int) -> Entry:
    """A space below a model of the papers: from two thirds of its width, depth and heads."""
    widths = Choice(*(width * sixths // 6 // 16 * 16 for sixths in (4, 5, 6)))
    resolutions, depths = Choice(160, 192, 224), Choice(8, 9, 10, 11, 12)
    head_counts, ratios = Choice(*range(-(-2 * heads // 3), heads + 1)), Choice(2, 3, 4)
    return space(resolutions, widths, depths, head_counts, ratios, sparsity=TENTHS), ViT()


def autoformer(width: Choice, depth: Choice, heads: Choice, mlp_ratio: Choice) -> Entry:
    """A space of AutoFormer, without its relative positions and its pooled head.

    Chen et al., ICCV 2021, https://arxiv.org/abs/2107.00651, table 2.
    """
    return space(Choice(224), width, depth, heads, mlp_ratio), ViT()


def model(
    patch: int, width: int, depth: int, heads: int, resolution: int = 224, **form: int
) -> Entry:
    """A model of the papers (ViT, table 1; DeiT, table 1): its one architecture.

    `form` are fields of `ViT`: `distilled`, `pooled`, `clip`.
    """
    domain = space(Choice(resolution), Choice(width), Choice(depth), Choice(heads), Choice(4))
    return domain, ViT(patch, head_dim=width // heads, **form)  # type: ignore[arg-type]


DEBUG = space(
    Choice(16, 24),
    Choice(8, 12),
    Choice(1, 2, 3),
    Choice(1, 2),
    Choice(1, 1.5, 2),
    sparsity=HALF,
    precision=EITHER,
)
MICRO = space(
    Choice(128, 160, 192, 224),
    Choice(96, 128),
    Choice(4, 5, 6),
    Choice(2, 3, 4),
    Choice(2, 4),
    sparsity=FIFTHS,
)

PRESETS = {
    "debug": (DEBUG, ViT(patch=4, head_dim=4)),
    "micro": (MICRO, ViT(patch=8, window=4, head_dim=32)),
    "tiny": paper(192, 3),
    "small": paper(384, 6),
    "base": paper(768, 12),
    "autoformer-tiny": autoformer(
        Choice(192, 216, 240), Choice(12, 13, 14), Choice(3, 4), Choice(3.5, 4)
    ),
    "autoformer-small": autoformer(
        Choice(320, 384, 448), Choice(12, 13, 14), Choice(5, 6, 7), Choice(3, 3.5, 4)
    ),
    "autoformer-base": autoformer(
        Choice(528, 576, 624), Choice(14, 15, 16), Choice(8, 9, 10), Choice(3, 3.5, 4)
    ),
}

_SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def named(name: str) -> Entry:
    """Return the model of a name of timm, e.g. `deit_tiny_distilled_patch16_224`."""
    _, size, *words, resolution = name.split("_")
    (patch,) = (int(word.removeprefix("patch")) for word in words if word.startswith("patch"))
    clip = (QUICK if "quickgelu" in words else CLIP) if "clip" in words else PLAIN
    return model(patch, *_SIZES[size], int(resolution), distilled="distilled" in words, clip=clip)


MODELS = {
    name: named(name)
    for name in (
        "vit_tiny_patch16_224",
        "vit_small_patch32_224",
        "vit_small_patch16_224",
        "vit_base_patch32_224",
        "vit_base_patch16_224",
        "vit_base_patch16_384",
        "vit_base_patch8_224",
        "vit_large_patch32_224",
        "vit_large_patch16_224",
        "vit_large_patch16_384",
        "vit_huge_patch14_224",
        "deit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit_small_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit_base_patch16_224",
        "deit_base_patch16_384",
        "deit_base_distilled_patch16_224",
        "deit_base_distilled_patch16_384",
        "vit_base_patch32_clip_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch32_clip_quickgelu_224",
        "vit_base_patch16_clip_quickgelu_224",
    )
}
# Those of pretraining without labels, by their names in the code of the authors: DINOv2 (Oquab et
# al., TMLR 2024), MAE as it is tuned, and MoCo v3 (Chen et al., ICCV 2021), whose S has 12 heads.
MODELS |= {
    "dinov2_vits14": model(14, *_SIZES["small"], 518),
    "dinov2_vitb14": model(14, *_SIZES["base"], 518),
    "dinov2_vitl14": model(14, *_SIZES["large"], 518),
    "mae_vit_base_patch16": model(16, *_SIZES["base"], pooled=True),
    "mae_vit_large_patch16": model(16, *_SIZES["large"], pooled=True),
    "mae_vit_huge_patch14": model(14, *_SIZES["huge"], pooled=True),
    "moco_v3_vit_small": model(16, 384, 12, 12),
    "moco_v3_vit_base": model(16, *_SIZES["base"]),
}
