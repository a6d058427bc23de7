"""Masked autoencoding: to draw the hidden patches of a picture from those that are left.

MAE: He et al., CVPR 2022, https://arxiv.org/abs/2111.06377; what the paper leaves open is as in its
official code. Families of tokens encode the visible patches alone. Families of maps have no smaller
map to run on (the windows of their last stages span the picture), so their input is masked instead,
and one linear layer draws the patches (SimMIM: Xie et al., CVPR 2022,
https://arxiv.org/abs/2111.09886).
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data import Dataset, Tensors
from nas.errors import UnknownNameError, UsageError
from nas.families import families, load_space
from nas.network.network import Network
from nas.size import Size, area, sides
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.task import Task
from nas.tasks.embedding import Embedding
from nas.training.objectives import Made, Objective
from nas.training.objectives.mae.encoders import MaskedInputs, VisiblePatches

_PIXELS = ("normalised", "plain")
_DEPTH = 2  # of the decoder

# Shape suffixes: B batch, L patches, P numbers of a patch.


class MaskedAutoencoder(Objective):
    """The pixels of hidden patches, each normalised by its own mean and deviation.

    `masked` is the share of the patches that is hidden, in percent. `width` and `depth` are those
    of the decoder of families of tokens: by default half as wide as the largest network, two blocks
    deep (the paper's are 512 and 8, and one block is as good for fine-tuning, table 1a). All
    networks of a space share it. `pixels=plain` are not normalised (table 1d): where most patches
    hold nothing but noise, normalising makes that noise as large as what can be drawn.
    """

    meaning = (
        "the mean squared error of the pixels of hidden patches, each patch normalised by its own "
        "mean and deviation (unless pixels=plain): 1 is a guess of the mean everywhere, 0 a "
        "perfect drawing"
    )

    def __init__(
        self,
        space: SearchSpace,
        *,
        masked: int = 75,
        width: int = 0,
        depth: int = 0,
        pixels: str = "normalised",
    ) -> None:
        super().__init__(space)
        if pixels not in _PIXELS:
            raise UnknownNameError("form of pixels", pixels, _PIXELS)
        self.plain = pixels == "plain"
        if hasattr(space.parts, "hiding"):
            self.encoder: Any = VisiblePatches(space, masked, width, depth or _DEPTH)
        elif _makes_maps(space):
            self.encoder = MaskedInputs(space)
            if width or depth:
                raise UsageError(
                    f"{space.family} draws patches by one layer, which has no width and no depth",
                    "leave out `width` and `depth`",
                )
        else:
            able = [name for name in families() if _can(name)]
            raise UsageError(
                f"mae hides patches of pictures, which {space.family} has not",
                f"use a space of {', '.join(able)}",
            )
        self.masked = masked
        _, grid = self.encoder.patches(space.largest)
        if not 0 < self.visible(grid) < area(grid):
            left = "every one" if masked < 50 else "none"
            raise UsageError(
                f"masked={masked} (percent) leaves {left} of {area(grid)} patches to be seen",
                "e.g. --objective mae,masked=75",
            )

    @classmethod
    def task(cls, posed: Task) -> Task:
        """The features that a classifier would read."""
        return Embedding()

    def prepare(self, network: Network) -> None:
        """Give networks of tokens positions that are not learned."""
        self.encoder.prepare(network)

    def visible(self, grid: Size) -> int:
        """How many patches of a grid are not hidden."""
        return area(grid) * (100 - self.masked) // 100

    def forward(
        self, network: Network, architecture: Architecture, batch: Tensors, rng: Random
    ) -> Made:
        """Drawn patches and the right ones (B, L, P), and which were hidden (B, L)."""
        images = batch[self.space.parts.takes]
        side, grid = self.encoder.patches(architecture)
        noise = torch.Generator().manual_seed(rng.getrandbits(63))
        order = torch.rand(len(images), area(grid), generator=noise).argsort(1).to(images.device)
        visible = max(1, self.visible(grid))  # small pictures, which come first, may have few
        drawn: Tensor = self.encoder(network, architecture, images, order, visible)
        hidden = torch.ones_like(order, dtype=torch.float32)
        hidden.scatter_(1, order[:, :visible], 0.0)
        right = patches_of(images.float(), side, grid)
        return drawn.float(), right if self.plain else normalised(right), hidden

    def loss(self, made: Made, batch: Tensors) -> Tensor:
        """The mean squared error over hidden patches alone."""
        drawn, right, hidden = made
        errors: Tensor = (drawn - right).square().mean(2) * hidden
        return errors.sum() / hidden.sum().clamp(min=1)

    def distil(self, small: Made, large: Made) -> Tensor:
        """The same error of the smaller network.

        The right pixels are there at every size, so nothing is learned of the larger one's guess.
        """
        return self.loss(small, {})

    @torch.no_grad()
    def pictures(self, network: Network, data: Dataset) -> dict[str, Tensor]:
        """Pictures of the search split, each as it is masked, as it is drawn, and as it is."""
        architecture = network.architecture
        images = data.first(data.search, 6, architecture.resolution)[self.space.parts.takes]
        drawn, _, hidden = self(network, architecture, {self.space.parts.takes: images}, Random(0))
        side, grid = self.encoder.patches(architecture)
        own = patches_of(images, side, grid)
        if not self.plain:
            spread = (own.var(2, keepdim=True) + 1e-6).sqrt()
            drawn = drawn * spread + own.mean(2, keepdim=True)
        shown = own.lerp(drawn, hidden[..., None])
        grey = own * (1 - hidden[..., None])
        rows = [_picture(x, side, grid) for x in (grey, shown, own)]
        strips = torch.cat([torch.cat(list(row), 1) for row in rows], 0)
        how = "" if self.plain else " (with the right mean and deviation of each hidden patch)"
        caption = f"Pictures as they are masked, as they are drawn{how}, and as they are"
        return {caption: data.colours(strips)}


def patches_of(images: Tensor, side: int, grid: Size) -> Tensor:
    """(B, L, P): each patch row by row, the channels of a pixel side by side.

    What is missing at the right and at the bottom counts as zero.
    """
    (b, c, height, width), (down, across) = images.shape, sides(grid)
    below, right = down * side - height, across * side - width
    images = F.pad(images, (0, right, 0, below)) if below or right else images
    x = images.reshape(b, c, down, side, across, side).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, down * across, -1)


def normalised(patches_BLP: Tensor) -> Tensor:
    """Patches of mean 0 and deviation 1 (that of a sample, without bias)."""
    mean = patches_BLP.mean(2, keepdim=True)
    return (patches_BLP - mean) / (patches_BLP.var(2, keepdim=True) + 1e-6).sqrt()


def _picture(patches_BLP: Tensor, side: int, grid: Size) -> Tensor:
    """(B, height, width, channels) of patches, as `patches_of` makes them."""
    b, (down, across) = len(patches_BLP), sides(grid)
    x = patches_BLP.view(b, down, across, side, side, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, down * side, across * side, -1)


def _makes_maps(space: SearchSpace) -> bool:
    return space.parts.takes == "images" and hasattr(space.parts, "to_map")


def _can(family: str) -> bool:
    space = load_space(f"{family}:debug")
    return hasattr(space.parts, "hiding") or _makes_maps(space)


OBJECTIVE = MaskedAutoencoder
