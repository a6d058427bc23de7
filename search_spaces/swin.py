"""Swin Transformer with elastic sizes and per-block window-activation pruning.

Swin: Liu et al., ICCV 2021, https://arxiv.org/abs/2103.14030. A block here is the paper's pair of
successive blocks (figure 3b): one with regular, one with shifted windows, which share their
choices. Pruning: SparseViT, Chen et al., CVPR 2023, https://arxiv.org/abs/2303.17605.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers import mode
from nas.layers.elastic import ElasticLayerNorm, ElasticModule, classifier
from nas.layers.transformer import TransformerModule
from nas.layers.windows import (
    descending,
    map_size,
    most_real,
    overwritable,
    padded,
    real_tokens,
    shift_mask,
    window_orders,
    window_tokens,
    windows_in,
)
from nas.network.fused import SMALL_HEAD, Fused, with_head
from nas.network.inputs import Images
from nas.network.pruning import Pruning
from nas.size import Size, area, divided, each, sides
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, EITHER, FIFTHS, FLOAT, HALF, TENTHS, stages
from nas.space.domains import Choice, Repeat, Space
from nas.space.family import BITS
from nas.space.layer import Layer, Part
from nas.space.origins import ATTENTION, Origin, Renaming, renamed
from nas.space.task import Task
from nas.tasks.segmentation import Segmentation

# Shape suffixes: B batch, SS height and width of the (padded) map, W windows, N tokens of a window,
# C width. Between layers travel the map x_BSSC and, once they are scored, the two orders of its
# windows (regular, shifted).

Order = Tensor | None
# At most so many windows run together at inference. Of 8, 16, 24, 32, 48, 64 and all at once, it
# was the fastest or within 4 % of it for Swin-T at 224 and 448 px, Swin-B and swin:micro on an
# Intel Xeon, whatever the width and so whatever fits into a cache. All at once took up to 6 % more.
CHUNK = 32
# With pruning it depends on the data which tokens are padding. Leaving some out before the MLP
# costs a sort and a copy: on an AMD EPYC as much as was saved at 3-7 % of the tokens, less at
# 14-38 % (blocks 1.07-1.24x faster, widths 128 to 384). Not measured on GPUs, nor done there.
WORTH = 0.1


@dataclass(frozen=True)
class Block:
    """One regular and one shifted window block."""

    heads: int
    mlp_ratio: int
    sparsity: int  # percent of the windows that pass unchanged
    precision: str  # fp32, or int8 for the linear layers


def pad_map(x_BSSC: Tensor, size: Size, window: int) -> Tensor:
    """A map of this size padded below and right to whole windows."""
    height, width = sides(padded(size, window))
    below, right = height - x_BSSC.shape[1], width - x_BSSC.shape[2]
    return F.pad(x_BSSC, (0, 0, 0, right, 0, below)) if below or right else x_BSSC


def real_part(x_BSSC: Tensor, size: Size) -> Tensor:
    """The map of this size in one that may be padded."""
    height, width = sides(size)
    return x_BSSC[:, :height, :width]


def shift_of(size: Size, window: int) -> Size:
    """How far shifted windows are moved: not along a side that is one window (official code)."""
    return each(lambda side: window // 2 if side > window else 0, size)


class MapModule(ElasticModule):
    """A layer whose input is a map and (here not needed) the orders of its windows."""

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: int) -> tuple[Order, ...]:
        """Draw a map without orders."""
        return torch.randn(batch, *input_shape), None, None


class PatchEmbed(ElasticModule):
    """Non-overlapping patches as a strided convolution, then (where asked for) a LayerNorm."""

    def __init__(self, *, width: int, patch: int, norm: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.norm = ElasticLayerNorm(width) if norm else nn.Identity()

    def forward(
        self, images: Tensor, *, width: int, patch: int, window: int
    ) -> tuple[Tensor, None, None]:
        """Return the map of images (B, 3, height, width), padded to whole windows."""
        below, right = (-side % patch for side in images.shape[-2:])
        images = F.pad(images, (0, right, 0, below)) if below or right else images
        x = F.conv2d(images, self.weight[:width], self.bias[:width], stride=patch)
        x = self.norm(x.permute(0, 2, 3, 1).contiguous())
        return pad_map(x, map_size(x), window), None, None


class Merge(MapModule):
    """Concatenate 2x2 neighbours, normalise, project to the next width."""

    def __init__(self, *, in_width: int, width: int) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(4, in_width))
        self.norm_bias = nn.Parameter(torch.zeros(4, in_width))
        self.reduction = nn.Parameter(torch.empty(width, 4, in_width))
        nn.init.trunc_normal_(self.reduction, std=0.02)

    def forward(
        self, x_BSSC: Tensor, regular: Order, shifted: Order, *, width: int, size: Size, window: int
    ) -> tuple[Tensor, None, None]:
        """Return a map of half the size, padded to whole windows, which have no order yet."""
        b, _, _, c = x_BSSC.shape
        half = divided(size, 2)
        x, (down, across) = real_part(x_BSSC, size), sides(half)
        below, right = (side % 2 for side in sides(size))
        x = F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x
        x = x.reshape(b, down, 2, across, 2, c).permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(b, down, across, -1)
        weight, bias = self.norm_weight[:, :c].reshape(-1), self.norm_bias[:, :c].reshape(-1)
        x = F.layer_norm(x, (4 * c,), weight, bias)
        x = F.linear(x, self.reduction[:width, :, :c].reshape(width, -1))
        return pad_map(x, half, window), None, None


class WindowScore(MapModule):
    """Order the windows of both partitions by their activation, for the blocks that follow."""

    def forward(
        self, x_BSSC: Tensor, _: Order, __: Order, *, size: Size, window: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the map as it is, and both orders (B, windows), most active first."""
        shift = shift_of(padded(size, window), window)
        orders = window_orders(x_BSSC, size, window, (0, shift) if shift else (0,))
        return x_BSSC, orders[0], orders[-1]


def _windows(
    size: Size, window: int, shift: Size, chosen: Tensor | None, b: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What runs together in `b` maps: all windows, or of each map those `chosen` (B, kept).

    Their tokens (W, N), as rows of the maps one after the other; what attention adds between two
    (W, N, N); which are real (W, N, 1). Both are None where it is the same for all.
    """
    index = window_tokens(size, window, shift, device)
    mask = shift_mask(size, window, shift, device) if shift else None
    real = real_tokens(size, window, shift, device) if padded(size, window) != size else None

    def of_maps(table: Tensor | None) -> Tensor | None:
        if table is None or (chosen is None and b == 1):
            return table
        return table.repeat(b, 1, 1) if chosen is None else table[chosen].flatten(0, 1)

    if b > 1 or chosen is not None:
        index = index.expand(b, -1, -1) if chosen is None else index[chosen]
        if b > 1:
            whole = area(padded(size, window))
            first = torch.arange(0, b * whole, whole, device=device)
            index = index + first[:, None, None]
        index = index.reshape(-1, window * window)
    return index, of_maps(mask), of_maps(real)


class WindowBlock(TransformerModule):
    """Window attention and MLP on the `kept` most active windows; the others pass unchanged."""

    def __init__(self, *, width: int, heads: int, head_dim: int, hidden: int, window: int) -> None:
        super().__init__(width, heads, head_dim, hidden, window=window)

    def forward(
        self,
        x_BSSC: Tensor,
        regular: Order,
        shifted: Order,
        *,
        heads: int,
        hidden: int,
        size: Size,
        window: int,
        shift: Size,
        kept: int,
        bits: int,
    ) -> tuple[Tensor, Order, Order]:
        """Return the map; during inference windows are written where they were read."""
        b, _, _, c = x_BSSC.shape
        flat = x_BSSC.reshape(-1, c)
        chosen = None
        if kept < windows_in(map_size(x_BSSC), window):
            order = shifted if shift else regular
            assert order is not None
            chosen = order[:, :kept]
        index, mask, real = _windows(size, window, shift, chosen, b, x_BSSC.device)
        apart = real is not None and chosen is None  # the MLP looks at the map, without padding
        output = overwritable(flat)  # windows do not overlap
        bias = self.offsets(heads).to(x_BSSC.dtype)
        # Autograd saves less with one chunk. Chunks of equal size: a short last one is slow.
        chunks = 1 if mode.recording() else -(-len(index) // CHUNK)
        chunk = -(-len(index) // chunks)
        for start in range(0, len(index), chunk):
            rows = index[start : start + chunk].flatten()
            own = None if real is None else real[start : start + chunk].to(x_BSSC.dtype)
            added = bias if mask is None else bias + mask[start : start + chunk, None]
            x_WNC = flat.index_select(0, rows).view(-1, window * window, c)
            # Padding enters attention as zeros, as in the official code (pad after the norm).
            y_WNC = self.attended(x_WNC, heads, bits, added.to(bias.dtype), own)
            if not apart:
                y_WNC, rows = self._without_padding(y_WNC, rows, own, size, shift, b)
                y_WNC = self.transformed(y_WNC, hidden, bits)
            output = output.index_copy_(0, rows, y_WNC.view(-1, c).to(output.dtype))
        output = output.view(x_BSSC.shape)
        if apart:
            output = self._real_transformed(output, size, hidden, bits)
        return output, regular, shifted

    def _without_padding(
        self, y_WNC: Tensor, rows: Tensor, real: Tensor | None, size: Size, shift: Size, b: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens of kept windows and their rows without padding, or all, if that is faster."""
        w, n, c = y_WNC.shape
        most = w * n if real is None else most_real(size, self.window, shift, b, w)
        if real is None or real.is_cuda or most > (1 - WORTH) * w * n:
            return y_WNC, rows
        # Shapes are constants: as many as may be real, so with some padding in most cases.
        taken = descending(real.flatten())[:most]
        return y_WNC.view(-1, c).index_select(0, taken), rows.index_select(0, taken)

    def _real_transformed(self, x_BSSC: Tensor, size: Size, hidden: int, bits: int) -> Tensor:
        """The map after the MLP on its real tokens; of padding nothing is read from here on."""
        real = real_part(x_BSSC, size)
        if mode.recording() or mode.exporting():
            return pad_map(self.transformed(real, hidden, bits), size, self.window)
        lines = -(-CHUNK * self.window**2 // (len(real) * real.shape[2]))
        for rows in torch.split(real, lines, 1):
            rows.copy_(self.transformed(rows.contiguous(), hidden, bits))
        return x_BSSC

    def kept(
        self,
        x_BSSC: Tensor,
        regular: Order,
        shifted: Order,
        *,
        size: Size,
        window: int,
        shift: Size,
        kept: int,
    ) -> Tensor:
        """Mark the tokens of the windows that are kept, of the map without padding."""
        tokens = window_tokens(size, window, shift, x_BSSC.device)
        mask = torch.zeros(x_BSSC.shape[1] * x_BSSC.shape[2], dtype=torch.bool)
        order = shifted if shift else regular
        first = torch.arange(len(tokens)) if order is None else order[0]
        mask[tokens[first[:kept]].flatten()] = True
        return real_part(mask.view(1, *x_BSSC.shape[1:3]), size)[0]

    @classmethod
    def inputs(cls, batch: int, input_shape: Sequence[int], **sizes: Any) -> tuple[Order, ...]:
        """Draw a map and an order of its windows."""
        window = sizes["window"]
        total = windows_in(padded(sizes["size"], window), window)
        order = torch.rand(batch, total).argsort(1)
        return torch.randn(batch, *input_shape), order, order


class MapNorm(MapModule):
    """LayerNorm of the tokens of a map, which are real."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width)

    def forward(
        self, x_BSSC: Tensor, regular: Order, shifted: Order, *, size: Size
    ) -> tuple[Tensor, None]:
        """Return the map without padding; its windows have no order."""
        return self.norm(real_part(x_BSSC, size)), None


class Head(MapModule):
    """LayerNorm, mean over the tokens, linear classifier."""

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width)
        self.fc = classifier(width, classes)

    def forward(
        self, x_BSSC: Tensor, regular: Order, shifted: Order, *, size: Size
    ) -> tuple[Tensor]:
        """Return logits (B, classes)."""
        return (self.fc(self.norm(real_part(x_BSSC, size)).mean((1, 2))),)


# Where timm's checkpoints keep our tensors.
TIMM: tuple[Renaming, ...] = (
    (r"^stem\.norm", "patch_embed.norm"),
    (r"^stem", "patch_embed.proj"),
    (r"^(?:head|end)\.norm", "norm"),
    (r"^merge(\d+)\.norm_", r"layers.\1.downsample.norm."),
    (r"^merge(\d+)\.reduction", r"layers.\1.downsample.reduction.weight"),
    (r"^stage(\d+)_(\d+)_regular", lambda m: f"layers.{m[1]}.blocks.{2 * int(m[2])}"),
    (r"^stage(\d+)_(\d+)_shifted", lambda m: f"layers.{m[1]}.blocks.{2 * int(m[2]) + 1}"),
    (r"position$", "attn.relative_position_bias_table"),
    *ATTENTION,
)


class State(NamedTuple):
    """What later layers depend on."""

    size: Size  # of the feature map in tokens
    width: int
    sparsity: int  # of the last block of this stage


@dataclass(frozen=True)
class Swin(Images):
    """The parts of a Swin at fixed patch, window and head size."""

    patch: int = 4
    window: int = 7
    head_dim: int = 32
    patch_norm: bool = True

    @property
    def multiple(self) -> int:
        """Sides of images are whole patches."""
        return self.patch

    @property
    def smallest(self) -> int:
        """The first map holds one window."""
        return self.patch * self.window

    def stem(self, resolution: Size, width: int) -> Part:
        """Emit the patch embedding."""
        layer = Layer.of(
            "stem",
            PatchEmbed,
            self.example(resolution),
            width=width,
            patch=self.patch,
            window=self.window,
            norm=int(self.patch_norm),
        )
        return Part((layer,), State(divided(resolution, self.patch), width, 0))

    def transition(self, stage: int, state: State, width: int) -> Part:
        """Emit the patch merging."""
        sizes = {"in_width": state.width, "width": width}
        layer = self._layer(f"merge{stage}", Merge, state, **sizes)
        return Part((layer,), State(divided(state.size, 2), width, 0))

    def block(self, stage: int, index: int, state: State, block: Block) -> Part | None:
        """Emit both blocks of the pair, after the score where the stage starts to prune."""
        if block.sparsity < state.sparsity:
            return None  # later blocks take a prefix of the same order
        side = padded(state.size, self.window)
        pruning = Pruning.of(side, self.window, state.sparsity, block.sparsity)
        layers = [self._layer(f"score{stage}", WindowScore, state)] if pruning.starts else []
        for name, shift in (("regular", 0), ("shifted", shift_of(side, self.window))):
            layers.append(
                self._layer(
                    f"stage{stage}_{index}_{name}",
                    WindowBlock,
                    state,
                    width=state.width,
                    heads=block.heads,
                    head_dim=self.head_dim,
                    hidden=state.width * block.mlp_ratio,
                    shift=shift,
                    kept=pruning.kept,
                    bits=BITS[block.precision],
                )
            )
        return Part(tuple(layers), state._replace(sparsity=block.sparsity))

    def to_map(self, state: State) -> tuple[tuple[Layer, ...], Size, int]:
        """Emit the last norm."""
        side = padded(state.size, self.window)
        shape = (*sides(side), state.width)
        layer = Layer.of("end", MapNorm, shape, width=state.width, size=state.size)
        return (layer,), state.size, state.width

    def head(self, state: State, task: Task) -> tuple[Layer, ...]:
        """Emit the classifier on the last stage."""
        side = padded(state.size, self.window)
        sizes, shape = {"width": state.width, "classes": task.outputs}, (*sides(side), state.width)
        return (Layer.of("head", Head, shape, size=state.size, **sizes),)

    def _layer(self, path: str, module: type[ElasticModule], state: State, **sizes: Any) -> Layer:
        side = padded(state.size, self.window)
        shape = (*sides(side), state.width)
        return Layer.of(path, module, shape, size=state.size, window=self.window, **sizes)

    def origin(self, path: str, name: str) -> Origin:
        """Look the tensor up in `TIMM`; tables of positions are transposed."""
        transposed = (lambda table, _: table.T) if name == "position" else None
        return renamed(TIMM, path, name), transposed


Entry = tuple[Space[Architecture], Swin | Fused]


def stage(
    width: Choice,
    depth: Choice,
    heads: Choice,
    mlp: Choice,
    sparsity: Choice = DENSE,
    precision: Choice = FLOAT,
) -> Space[Stage]:
    """Return the domain of a stage whose `depth` counts pairs of blocks."""
    block = Space(Block, heads=heads, mlp_ratio=mlp, sparsity=sparsity, precision=precision)
    return Space(Stage, width=width, blocks=Repeat(block, depth))


def model(width: int, pairs: tuple[int, ...]) -> Entry:
    """A model of the paper (section 3.3): its one architecture."""
    domains = (
        stage(Choice(width * 2**i), Choice(depth), Choice(width * 2**i // 32), Choice(4))
        for i, depth in enumerate(pairs)
    )
    return stages(Choice(224), *domains), Swin()


def paper(width: int, pairs: int) -> Entry:
    """A space below a model of the paper: three quarters of its width, fewer pairs in stage 3."""
    depths = (Choice(1), Choice(1), Choice(*range(max(1, pairs - 3), pairs + 1)), Choice(1))
    domains = []
    for i, depth in enumerate(depths):
        widths = tuple(w * 2**i for w in (3 * width // 4 // 32 * 32, width))
        heads = Choice(*(w // 32 for w in widths))
        sparsity = TENTHS if i < 3 else DENSE
        domains.append(stage(Choice(*widths), depth, heads, Choice(2, 4), sparsity))
    return stages(Choice(160, 192, 224), *domains), Swin()


_RATIOS = Choice(2, 4)
DEBUG = stages(
    Choice(16, 24),
    stage(Choice(8, 12), Choice(1, 2), Choice(1, 2), Choice(1, 2), HALF, EITHER),
    stage(Choice(16), Choice(1), Choice(2), Choice(1, 2), HALF, EITHER),
)
MICRO = stages(
    Choice(112, 168, 224),
    stage(Choice(32, 48), Choice(1, 2), Choice(2, 3), _RATIOS, FIFTHS),
    stage(Choice(64, 96), Choice(1, 2), Choice(3, 6), _RATIOS, FIFTHS),
    stage(Choice(128, 192), Choice(1, 2, 3), Choice(6, 12), _RATIOS, FIFTHS),
)
# Windows about as wide as what is looked for in every stage: 16, 32 and 64 pixels. The last stage
# still has 16 of them, and no choice pads a map.
MICRO_WINDOW4 = stages(
    Choice(128, 192, 256),
    stage(Choice(32, 48), Choice(1, 2), Choice(2, 3), _RATIOS, FIFTHS),
    stage(Choice(64, 96), Choice(1, 2), Choice(3, 6), _RATIOS, FIFTHS),
    stage(Choice(128, 192), Choice(1, 2, 3), Choice(6, 12), _RATIOS, FIFTHS),
)
MICRO_PARTS = Swin(head_dim=16, patch_norm=False)
# Pictures of a segmenter are larger; no choice pads a map.
SEG_MICRO = stages(Choice(224, 336, 448), *dict(MICRO.domains)["stages"].items)  # type: ignore[attr-defined]

PRESETS = {
    "debug": (DEBUG, Swin(patch=2, window=3, head_dim=4)),
    "micro": (MICRO, MICRO_PARTS),
    "micro-window4": (MICRO_WINDOW4, Swin(window=4, head_dim=16, patch_norm=False)),
    "seg-micro": with_head(SEG_MICRO, MICRO_PARTS, SMALL_HEAD, task=Segmentation()),
    "tiny": paper(96, 3),
    "small": paper(96, 9),
    "base": paper(128, 9),
    "large": paper(192, 9),
}
MODELS = {
    f"swin_{size}_patch4_window7_224": model(width, pairs)
    for size, width, pairs in (
        ("tiny", 96, (1, 1, 3, 1)),
        ("small", 96, (1, 1, 9, 1)),
        ("base", 128, (1, 1, 9, 1)),
        ("large", 192, (1, 1, 9, 1)),
    )
}
