"""Positions that are not learned: sines and cosines of the row and the column of a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.size import Size, sides


def sines_and_cosines(grid: Size, width: int) -> Tensor:
    """(rows, columns, width): for each patch of a grid sines and cosines of where it is.

    The first half of the channels is of the column, the second of the row, as in the code of MAE
    (He et al., CVPR 2022), whose wavelengths go from 2 pi to 10,000 times as much.
    """
    count = -(-width // 4)
    periods = 10_000 ** (torch.arange(count, dtype=torch.float64) / count)

    def line(side: int) -> Tensor:
        angles = torch.arange(side, dtype=torch.float64)[:, None] / periods
        return torch.cat([angles.sin(), angles.cos()], 1)

    height, across = sides(grid)
    columns = line(across).expand(height, -1, -1)
    rows = line(height)[:, None].expand(-1, across, -1)
    return torch.cat([columns, rows], 2)[..., :width].float()
