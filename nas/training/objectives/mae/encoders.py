"""How families encode a masked picture, and the decoder that draws its patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import UsageError
from nas.layers.elastic import ElasticLayerNorm, ElasticLinear
from nas.layers.positions import sines_and_cosines
from nas.layers.transformer import TransformerModule
from nas.network.network import Network
from nas.size import Size, divided, sides
from nas.space.architecture import Architecture
from nas.space.family import Parts, SearchSpace

# Shape suffixes: B batch, N tokens (those of no patch first), L patches, C width.

_HEAD_DIM = 32  # of the decoder


class HidingParts(Parts, Protocol):
    """Parts of a family of tokens whose networks can run on some patches of a picture alone.

    The layer `stem` has `fix_positions()`, and the layer `head` a norm that all tokens pass before
    they leave the encoder, `norm`.
    """

    patch: int  # pixels of a side
    first: int  # tokens of no patch, in front of the others

    def hiding(self, masked: int) -> Self:
        """The parts of networks that leave out so many percent of the patches behind the stem.

        They take the order of the patches (B, L) beside the pictures, and keep the first ones; what
        blocks would prune is not pruned besides.
        """


class VisiblePatches(nn.Module):
    """A network on the visible patches alone, and a small transformer that draws all of them.

    The decoder gets a learned token for each hidden patch; its positions are fixed, too.
    """

    def __init__(self, space: SearchSpace, masked: int, width: int, depth: int) -> None:
        super().__init__()
        widest = max(stage.width for stage in space.largest.stages)
        width = width or max(1, widest // 2 // _HEAD_DIM) * _HEAD_DIM
        if width % _HEAD_DIM:
            raise UsageError(
                f"the decoder's width is a multiple of {_HEAD_DIM}, got width={width}",
                f"width={-(-width // _HEAD_DIM) * _HEAD_DIM}",
            )
        parts: Any = space.parts
        self.parts, self.width = parts, width
        self.hiding = replace(space, parts=parts.hiding(masked))
        self.embed = ElasticLinear(widest, width)
        self.hidden_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        heads = width // _HEAD_DIM
        self.blocks = nn.ModuleList(
            TransformerModule(width, heads, _HEAD_DIM, 4 * width, eps=1e-6) for _ in range(depth)
        )
        self.norm = ElasticLayerNorm(width, eps=1e-6)
        self.draw = ElasticLinear(width, 3 * parts.patch**2)

    def prepare(self, network: Network) -> None:
        """Fix the positions of a network."""
        stem: Any = network.layers["stem"]
        stem.fix_positions()

    def patches(self, architecture: Architecture) -> tuple[int, Size]:
        """The side of a patch in pixels, and the grid of them."""
        side = self.parts.patch
        return side, divided(architecture.resolution, side)

    def latent(
        self, network: Network, architecture: Architecture, images: Tensor, order: Tensor
    ) -> Tensor:
        """(B, N, C): the tokens of no patch, and those of the visible patches in that order."""
        space = self.hiding
        body = space.layers(architecture)[: -len(space.head(architecture))]
        head: Any = network.layers["head"]
        x: Tensor = head.norm(network.through(body, (images, order))[0])
        return x

    def forward(
        self,
        network: Network,
        architecture: Architecture,
        images: Tensor,
        order: Tensor,
        visible: int,
    ) -> Tensor:
        """All patches as they are drawn (B, L, numbers of a patch)."""
        first = self.parts.first
        x = self.embed(self.latent(network, architecture, images, order))
        b, total = order.shape
        hidden = self.hidden_token.to(x.dtype).expand(b, total - visible, -1)
        patches = torch.cat([x[:, first:], hidden], 1)
        patches = patches.gather(1, order.argsort(1)[..., None].expand(-1, -1, self.width))
        _, grid = self.patches(architecture)
        places = sines_and_cosines(grid, self.width).view(-1, self.width)
        x = torch.cat([x[:, :first], patches + places.to(x)], 1)
        for block in self.blocks:
            x = block.transform(x, self.width // _HEAD_DIM, 4 * self.width, 32)  # type: ignore[operator]
        drawn: Tensor = self.draw(self.norm(x[:, first:]))
        return drawn


class MaskedInputs(nn.Module):
    """A network on the whole picture, whose hidden patches have the mean colour of the data.

    A patch is what one place of the last map stands for. Layers that make that map and are not in
    the network (a last norm) are part of the decoder.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = replace(space, parts=space.parts.for_maps())  # type: ignore[attr-defined]
        layers, _, width = self._end(space.largest)
        own = {layer.path for layer in space.layers(space.largest)}
        self.end = nn.ModuleDict({x.path: x.build() for x in layers if x.path not in own})
        side, _ = self.patches(space.largest)
        self.draw = ElasticLinear(width, 3 * side**2)
        self.side = side

    def prepare(self, network: Network) -> None:
        """Nothing is fixed."""

    def patches(self, architecture: Architecture) -> tuple[int, Size]:
        """The side of a patch in pixels, and the grid of them."""
        _, grid, _ = self._end(architecture)
        pairs = zip(sides(architecture.resolution), sides(grid))
        return getattr(self, "side", max(-(-own // count) for own, count in pairs)), grid

    def _end(self, architecture: Architecture) -> tuple[tuple[Any, ...], Size, int]:
        """The layers that make the last map, its size and its width."""
        parts: Any = self.space.parts
        end: tuple[tuple[Any, ...], Size, int] = parts.to_map(self.space.state(architecture))
        return end

    def forward(
        self,
        network: Network,
        architecture: Architecture,
        images: Tensor,
        order: Tensor,
        visible: int,
    ) -> Tensor:
        """All patches as they are drawn (B, L, numbers of a patch)."""
        space, (end, grid, _) = self.space, self._end(architecture)
        seen = torch.zeros(order.shape, device=images.device)
        seen = seen.scatter(1, order[:, :visible], 1.0).view(-1, 1, *sides(grid))
        mask = F.interpolate(seen, scale_factor=self.side)
        mask = mask[..., : images.shape[-2], : images.shape[-1]]
        body = space.layers(architecture)[: -len(space.head(architecture))]
        state = network.through(body, (images * mask,))
        for layer in end:
            module: Any = self.end[layer.path] if layer.path in self.end else network.module(layer)
            state = module.run(state, **layer.elastic)
        drawn: Tensor = self.draw(state[0]).flatten(1, 2)
        return drawn
