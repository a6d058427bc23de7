"""Variation of pictures for training, together with what is laid out over them."""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor

from nas.data import Tensors
from nas.data.imagefolder import piece_at
from nas.tasks.segmentation import IGNORED

_SCALES = (0.5, 2.0)  # as usual in segmentation (e.g. DeepLab v3, Chen et al., 2017)


def scale_crop_and_flip(batch: Tensors, rng: Random) -> Tensors:
    """Pictures at half to twice their size, cropped to their side, and half of them mirrored.

    Every tensor (samples, ..., side, side) that is laid out over the pictures gets the same. What
    lies beyond a picture is the mean colour, and of integers the label that does not count.
    """
    count, side = len(batch["images"]), batch["images"].shape[-1]
    laid_out = [name for name, x in batch.items() if x.ndim > 2 and x.shape[-2:] == (side, side)]
    pieces: dict[str, list[Tensor]] = {name: [] for name in laid_out}
    for i in range(count):
        scale = math.exp(rng.uniform(*map(math.log, _SCALES)))
        y, x, flip = rng.random(), rng.random(), rng.random() < 0.5
        for name in laid_out:
            own = batch[name][i : i + 1]
            pieces[name].append(_scaled(own.flip(-1) if flip else own, scale, y, x))
    return {**batch, **{name: torch.cat(own) for name, own in pieces.items()}}


def _scaled(sample: Tensor, scale: float, y: float, x: float) -> Tensor:
    """A sample (1, ..., side, side) at a scale: cut out, or surrounded by nothing, at a place.

    `y` and `x` say how much of the room above and on the left is used, from 0 to 1.
    """
    side = sample.shape[-1]
    if scale >= 1:
        crop = max(1, round(side / scale))
        top, left = round(y * (side - crop)), round(x * (side - crop))
        return piece_at(sample[..., top : top + crop, left : left + crop], side)
    small = max(1, round(side * scale))
    top, left = round(y * (side - small)), round(x * (side - small))
    whole = torch.full_like(sample, 0 if sample.is_floating_point() else IGNORED)
    whole[..., top : top + small, left : left + small] = piece_at(sample, small)
    return whole
