"""Two views of each picture of a batch, for objectives that learn what both have in common.

A crop at any place, a flip, other brightness, contrast and colours, and a blur: the augmentation of
SimCLR (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709, appendix A) with the strengths of
MoCo v3, but the same for both views. Everything is drawn on the CPU from the numbers that are
handed in, and done to the whole batch where its tensor lives: a step gives the same views on every
device, up to rounding. Left out are hue, which needs the pixels before they were normalised, and
solarisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

_AREA = (0.2, 1.0)  # share of the picture that a crop keeps, as MoCo v2 and v3 have it for ResNets
_ASPECT = (3 / 4, 4 / 3)
_CHANGED, _GREYED, _BLURRED = 0.8, 0.2, 0.5  # shares of the samples
_BRIGHTNESS = _CONTRAST = 0.4
_SATURATION = 0.2
_SIGMA = (0.1 / 224, 2.0 / 224)  # of the blur, in sides of the picture
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


def two_views(images: Tensor, rng: Random) -> tuple[Tensor, Tensor]:
    """Two views (n, 3, h, w) of normalised pictures (n, 3, h, w), independent of each other.

    They have the data type of the pictures, whatever products are computed in.
    """
    with torch.autocast(images.device.type, enabled=False):
        return view(images, rng), view(images, rng)


def view(images: Tensor, rng: Random) -> Tensor:
    """A view of each of the normalised pictures (n, 3, h, w).

    Grey pictures, whose channels are equal, stay grey.
    """
    drawn = [_Draw(rng) for _ in range(len(images))]
    x = _coloured(_cropped(images, drawn), drawn)
    blurred = [i for i, own in enumerate(drawn) if own.sigma]
    if blurred:
        at = torch.tensor(blurred, device=x.device)
        x = x.index_copy(0, at, _blurred(x[at], [drawn[i].sigma for i in blurred]))
    return x


class _Draw:
    """What is done to one sample. All of it is drawn, whether or not it is used."""

    def __init__(self, rng: Random) -> None:
        area, aspect = rng.uniform(*_AREA), math.exp(rng.uniform(*map(math.log, _ASPECT)))
        self.height, self.width = (min(1.0, math.sqrt(area * own)) for own in (1 / aspect, aspect))
        self.y, self.x = (rng.uniform(-1, 1) * (1 - own) for own in (self.height, self.width))
        self.mirror = -1 if rng.random() < 0.5 else 1
        changed = rng.random() < _CHANGED
        self.shift = changed * rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
        self.contrast = 1 + changed * rng.uniform(-_CONTRAST, _CONTRAST)
        self.saturation = 1 + changed * rng.uniform(-_SATURATION, _SATURATION)
        if rng.random() < _GREYED:
            self.saturation = 0.0
        blurred = rng.random() < _BLURRED
        self.sigma = blurred * rng.uniform(*_SIGMA)


def _cropped(images: Tensor, drawn: Sequence[_Draw]) -> Tensor:
    """The rectangle drawn of each picture, at the size of the picture, perhaps mirrored."""
    boxes = [
        [[own.mirror * own.width, 0.0, own.x], [0.0, own.height, own.y]] for own in drawn
    ]  # maps each place of the view, from -1 to 1, to one of the picture
    grid = F.affine_grid(torch.tensor(boxes).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _coloured(x: Tensor, drawn: Sequence[_Draw]) -> Tensor:
    """Other saturation, contrast about the mean, and brightness, in standard deviations; in place.

    All three together are a product, and a sum with the grey picture and a constant.
    """

    def each(values: Iterable[float]) -> Tensor:
        return torch.tensor([*values]).to(x).view(-1, 1, 1, 1)

    grey = torch.einsum("nchw,c->nhw", x, torch.tensor(_GREY).to(x))[:, None]
    contrast = each(own.contrast for own in drawn)
    colour = contrast * each(own.saturation for own in drawn)
    mean = grey.mean((2, 3), keepdim=True)
    shift = each(own.shift for own in drawn) + (1 - contrast) * mean
    return x.mul_(colour).add_(grey.mul_(contrast - colour).add_(shift))


def _blurred(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Each picture under a Gaussian of its own width, in sides; borders are mirrored."""
    n, c, height, width = x.shape
    side = max(height, width)
    radius = min(math.ceil(3 * _SIGMA[1] * side), height - 1, width - 1)
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64)
    sigma = torch.tensor([[own * side] for own in sigmas], dtype=torch.float64)
    kernel = (-0.5 * (distance / sigma) ** 2).softmax(1).to(x).repeat_interleave(c, 0)
    x = F.pad(x, (radius,) * 4, mode="reflect").reshape(
        1, n * c, *(s + 2 * radius for s in (height, width))
    )
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * c)
    return F.conv2d(x, kernel[:, None, None, :], groups=n * c).view(n, c, height, width)
