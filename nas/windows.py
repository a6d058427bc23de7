"""Windows of a feature map: their tokens, their scores, and which of them are kept.

Window-activation pruning after SparseViT (Chen et al., CVPR 2023, section 3): windows are scored
by the L2 norm of their activations, the best are gathered, run, and scattered back.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def kept_windows(total: int, sparsity_percent: int) -> int:
    """How many of `total` windows stay at a sparsity in percent: rounded up, at least one."""
    return max(1, -(-total * (100 - sparsity_percent) // 100))


def padded(size: int, window: int) -> int:
    """The side of a map of side `size` once padded to whole windows."""
    return -(-size // window) * window


@lru_cache(maxsize=256)
def window_tokens(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Indices (windows, window**2) of the tokens of each window in a padded, flattened map.

    With a `shift` the map is first rolled up and left by that many tokens (Swin, section 3.2).
    """
    side = padded(size, window)
    index = torch.arange(side * side, device=device).view(side, side)
    if shift:
        index = index.roll((-shift, -shift), (0, 1))
    n = side // window
    return index.view(n, window, n, window).transpose(1, 2).reshape(n * n, window * window)


@lru_cache(maxsize=256)
def shift_mask(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, window**2, window**2): -100 between tokens that the roll made neighbours, else 0."""
    side = padded(size, window)
    line = torch.arange(side, device=device)
    region = (line >= side - window).long() + (line >= side - shift).long()
    regions = (3 * region[:, None] + region[None, :]).flatten()
    # Tokens in rolled order: position i of the rolled map holds token `window_tokens` says.
    unrolled = window_tokens(size, window, 0, device)
    label = regions[unrolled]
    return -100.0 * (label[:, :, None] != label[:, None, :]).float()


@lru_cache(maxsize=256)
def relative_index(window: int, device: torch.device) -> Tensor:
    """(window**2, window**2) indices into a ((2 * window - 1)**2)-row relative position table."""
    line = torch.arange(window, device=device)
    y, x = (t.flatten() for t in torch.meshgrid(line, line, indexing="ij"))
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def window_order(x_BSSC: Tensor, size: int, window: int, shift: int) -> Tensor:
    """(batch, windows): the windows of each image, most active first.

    The score of a window is the L2 norm over its tokens of the channel mean of |x|; tokens beyond
    the real `size` of a padded map count as zero..
    """
    b, side, _, _ = x_BSSC.shape
    activity = torch.linalg.vector_norm(x_BSSC, ord=1, dim=-1)
    if side > size:
        activity = F.pad(activity[:, :size, :size], (0, side - size, 0, side - size))
    tokens = window_tokens(size, window, shift, x_BSSC.device)
    scores = torch.linalg.vector_norm(activity.flatten(1)[:, tokens], dim=-1)
    return scores.argsort(dim=1, descending=True)
