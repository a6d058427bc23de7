"""A toy data set: a bright square of any size on a dark picture, with the mask of its pixels."""

from __future__ import annotations

import numpy as np

from nas.data import SPLITS, Dataset, Split
from nas.data.imagefolder import crop_and_flip
from toys.pixels import Pixels


class Squares(Split):
    def batch(self, indices, size):
        masks = np.stack([self._mask(i, size) for i in indices])
        noise = np.random.default_rng(0).integers(0, 120, (size, size))
        return {"images": (120 * masks + noise).astype(np.uint8)[:, None], "masks": masks}

    def _mask(self, index, size):
        rng = np.random.default_rng((SPLITS.index(self.name), index))
        mask = np.zeros((size, size), np.int64)
        (y, x), side = (rng.random(2) * size / 2).astype(int), size // (2 + index % 3)
        mask[y : y + side, x : x + side] = 1
        return mask


def load(argument, seed):
    splits = {name: Squares(name, 400) for name in SPLITS}
    return Dataset(
        "toys.squares", Pixels(), fingerprint="squares", mean=(0.4,), std=(0.2,),
        augment=crop_and_flip, **splits,
    )  # fmt: skip
