"""Variation of pictures for training, together with what is laid out over them."""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor

from nas.data import Tensors
from nas.data.imagefolder import over_pictures, piece_at
from nas.tasks.segmentation import IGNORED

_SCALES = (0.5, 2.0)  # as usual in segmentation (e.g. DeepLab v3, Chen et al., 2017)


def scale_crop_and_flip(batch: Tensors, rng: Random) -> Tensors:
    """Pictures at half to twice their size, cropped to it again, and half of them mirrored.

    Every tensor (samples, ..., height, width) that is laid out over the pictures gets the same.
    What lies beyond a picture is the mean colour, and of integers the label that does not count.
    """
    laid_out = over_pictures(batch)
    pieces: dict[str, list[Tensor]] = {name: [] for name in laid_out}
    for i in range(len(batch["images"])):
        scale = math.exp(rng.uniform(*map(math.log, _SCALES)))
        y, x, flip = rng.random(), rng.random(), rng.random() < 0.5
        for name in laid_out:
            own = batch[name][i : i + 1]
            pieces[name].append(_scaled(own.flip(-1) if flip else own, scale, y, x))
    return {**batch, **{name: torch.cat(own) for name, own in pieces.items()}}


def _scaled(sample: Tensor, scale: float, y: float, x: float) -> Tensor:
    """A sample (1, ..., height, width) at a scale: cut out, or surrounded by nothing, at a place.

    `y` and `x` say how much of the room above and on the left is used, from 0 to 1.
    """
    height, width = sample.shape[-2:]
    down, across = (
        max(1, round(side / scale if scale >= 1 else side * scale)) for side in (height, width)
    )
    top, left = round(y * (height - down)), round(x * (width - across))
    part = (..., slice(top, top + down), slice(left, left + across))
    if scale >= 1:
        return piece_at(sample[part], (height, width))
    whole = torch.full_like(sample, 0 if sample.is_floating_point() else IGNORED)
    whole[part] = piece_at(sample, (down, across))
    return whole
