"""Plain vision transformers (ViT, DeiT) with elastic sizes and window-activation pruning.

ViT: Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929. DeiT: Touvron et al., ICML
2021. Patch tokens are grouped into small windows; the class token always stays. Nothing after a
block reads a dropped token again (the head reads the class token), so dropped tokens are simply
left behind: tokens are sorted by window once, and every later block takes a prefix of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic import (
    ElasticAttention,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticMlp,
    ElasticModule,
)
from nas.family import Layer, Part
from nas.space import Architecture, Choice, Fixed, Repeat, Space, Stage
from nas.windows import kept_windows, window_orders, window_tokens

# Shape suffixes: B batch, N tokens (class token first), C width, G side of the grid of patches.
# Between layers travel the tokens x_BNC and, once sorted, the patch that each of them came from.


@dataclass(frozen=True)
class Block:
    """A transformer block."""

    heads: int
    mlp_ratio: int
    sparsity: int  # percent of the windows of patch tokens that are dropped


class TokenModule(ElasticModule):
    """A layer whose input is tokens and (here not needed) the patches they came from."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Any, ...]:
        return torch.randn(batch, *input_shape), None


class PatchEmbed(ElasticModule):
    """Patches as a strided convolution, a class token, learned positions."""

    def __init__(self, *, width: int, patch: int, grid: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        self.class_token = nn.Parameter(torch.empty(width))
        self.class_position = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(width, grid, grid))
        for parameter in (self.weight, self.class_token, self.class_position, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor, *, width: int, patch: int, grid: int) -> tuple[Tensor, None]:
        extra = grid * patch - images.shape[-1]
        images = F.pad(images, (0, extra, 0, extra)) if extra else images
        x = F.conv2d(images, self.weight[:width], self.bias[:width], stride=patch)
        x = (x + _resized(self.position[:width], grid)).flatten(2).mT
        first = (self.class_token + self.class_position)[:width]
        return torch.cat([first.expand(len(x), 1, -1), x], dim=1), None

    def inherit(self, large: nn.Module) -> None:
        """Positions of another grid are resized once, here, instead of in every inference."""
        assert isinstance(large, PatchEmbed)
        width, grid, _ = self.position.shape
        with torch.no_grad():
            for name in ("weight", "bias", "class_token", "class_position"):
                getattr(self, name).copy_(getattr(large, name)[:width])
            self.position.copy_(_resized(large.position[:width], grid))


def _resized(position_CGG: Tensor, grid: int) -> Tensor:
    if position_CGG.shape[-1] == grid:
        return position_CGG
    size = (grid, grid)
    return F.interpolate(position_CGG[None], size, mode="bicubic", antialias=True)[0]


class WindowSort(TokenModule):
    """Sort the patch tokens by the activation of their window, most active first."""

    def __init__(self, **_: int) -> None:
        super().__init__()

    def forward(
        self, x_BNC: Tensor, source: None, *, grid: int, window: int
    ) -> tuple[Tensor, Tensor]:
        b, _, c = x_BNC.shape
        patches = x_BNC[:, 1:]
        (order,) = window_orders(patches.reshape(b, grid, grid, c), grid, window, (0,))
        index = window_tokens(grid, window, 0, x_BNC.device)[order].flatten(1)
        patches = patches.gather(1, index[..., None].expand(-1, -1, c))
        return torch.cat([x_BNC[:, :1], patches], dim=1), index


class TransformerBlock(TokenModule):
    """Pre-norm attention and MLP on the first `tokens` tokens; the others are left behind."""

    def __init__(self, *, width: int, heads: int, head_dim: int, hidden: int, **_: int) -> None:
        super().__init__()
        self.norm1 = ElasticLayerNorm(width, eps=1e-6)
        self.attention = ElasticAttention(width, heads, head_dim)
        self.norm2 = ElasticLayerNorm(width, eps=1e-6)
        self.mlp = ElasticMlp(width, hidden)

    def forward(
        self,
        x_BNC: Tensor,
        source: Tensor | None,
        *,
        width: int,
        heads: int,
        head_dim: int,
        hidden: int,
        tokens: int,
        grid: int,
    ) -> tuple[Tensor, Tensor | None]:
        x = x_BNC[:, :tokens]
        x = x + self.attention(self.norm1(x), heads)
        return x + self.mlp(self.norm2(x), hidden), source

    def kept(self, *state: Any, **sizes: int) -> Tensor:
        _, source = state
        grid = sizes["grid"]
        mask = torch.full((grid * grid,), source is None)
        if source is not None:
            mask[source[0, : sizes["tokens"] - 1]] = True
        return mask.view(grid, grid)


class Head(TokenModule):
    """LayerNorm and linear classifier on the class token."""

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width, eps=1e-6)
        self.fc = ElasticLinear(width, classes)

    def forward(
        self, x_BNC: Tensor, source: Tensor | None, *, width: int, classes: int
    ) -> tuple[Tensor]:
        return (self.fc(self.norm(x_BNC[:, 0])),)


class State(NamedTuple):
    """What later layers depend on."""

    grid: int
    width: int
    tokens: int
    sparsity: int


@dataclass(frozen=True)
class ViT:
    """The parts of a plain vision transformer at fixed patch, window and head size."""

    patch: int = 16
    window: int = 2
    head_dim: int = 64

    def stem(self, resolution: int, width: int) -> Part:
        grid = -(-resolution // self.patch)
        layer = Layer.of(
            "stem",
            PatchEmbed,
            (3, resolution, resolution),
            width=width,
            patch=self.patch,
            grid=grid,
        )
        return Part((layer,), State(grid, width, 1 + grid**2, 0))

    def transition(self, stage: int, state: State, width: int) -> Part:
        raise NotImplementedError("a plain vision transformer has one stage")

    def block(self, stage: int, index: int, state: State, block: Block) -> Part | None:
        if block.sparsity < state.sparsity:
            return None  # later blocks take a prefix of the same order
        # A grid that the windows do not divide is scored token by token.
        window = self.window if state.grid % self.window == 0 else 1
        total = (state.grid // window) ** 2
        kept = kept_windows(total, block.sparsity)
        layers = []
        if kept < total == kept_windows(total, state.sparsity):  # the first that leaves any out
            shape = (state.tokens, state.width)
            layers.append(Layer.of("sort", WindowSort, shape, grid=state.grid, window=window))
        tokens = 1 + kept * window**2
        layers.append(
            Layer.of(
                f"block{index}",
                TransformerBlock,
                (state.tokens, state.width),
                width=state.width,
                heads=block.heads,
                head_dim=self.head_dim,
                hidden=state.width * block.mlp_ratio,
                tokens=tokens,
                grid=state.grid,
            )
        )
        return Part(tuple(layers), state._replace(tokens=tokens, sparsity=block.sparsity))

    def head(self, state: State, classes: int) -> tuple[Layer, ...]:
        shape = (state.tokens, state.width)
        return (Layer.of("head", Head, shape, width=state.width, classes=classes),)


def space(
    *,
    resolution: Choice,
    width: Choice,
    depth: Choice,
    heads: Choice,
    mlp_ratio: Choice,
    sparsity: Choice,
) -> Space[Architecture]:
    block = Space(Block, heads=heads, mlp_ratio=mlp_ratio, sparsity=sparsity)
    stage = Space(Stage, width=width, blocks=Repeat(block, depth))
    return Space(Architecture, resolution=resolution, stages=Fixed(stage))


DEBUG = space(
    resolution=Choice(16, 24),
    width=Choice(8, 12),
    depth=Choice(1, 2, 3),
    heads=Choice(1, 2),
    mlp_ratio=Choice(1, 2),
    sparsity=Choice(50, 0),
)
MICRO = space(
    resolution=Choice(128, 160, 192, 224),
    width=Choice(96, 128),
    depth=Choice(4, 6, 8),
    heads=Choice(2, 4),
    mlp_ratio=Choice(2, 4),
    sparsity=Choice(80, 60, 40, 20, 0),
)
TINY = space(
    resolution=Choice(160, 192, 224),
    width=Choice(128, 160, 192),
    depth=Choice(8, 9, 10, 11, 12),
    heads=Choice(2, 3),
    mlp_ratio=Choice(2, 3, 4),
    sparsity=Choice(90, 80, 70, 60, 50, 40, 30, 20, 10, 0),
)

PRESETS = {
    "debug": (DEBUG, ViT(patch=4, head_dim=4)),
    "micro": (MICRO, ViT(head_dim=32)),
    "tiny": (TINY, ViT()),
}
