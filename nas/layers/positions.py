"""Positions that are not learned: sines and cosines of the row and the column of a patch."""

from __future__ import annotations

import torch
from torch import Tensor


def sines_and_cosines(grid: int, width: int) -> Tensor:
    """(grid, grid, width): for each patch of a square grid sines and cosines of where it is.

    The first half of the channels is of the column, the second of the row, as in the code of MAE
    (He et al., CVPR 2022), whose wavelengths go from 2 pi to 10,000 times as much.
    """
    count = -(-width // 4)
    places = torch.arange(grid, dtype=torch.float64)
    angles = places[:, None] / 10_000 ** (torch.arange(count, dtype=torch.float64) / count)
    line = torch.cat([angles.sin(), angles.cos()], 1)
    columns = line.expand(grid, -1, -1)
    return torch.cat([columns, columns.transpose(0, 1)], 2)[..., :width].float()
