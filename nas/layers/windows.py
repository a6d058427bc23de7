"""Windows of a feature map: their tokens, their scores, and which of them are kept.

Window-activation pruning after SparseViT (Chen et al., CVPR 2023, section 3): windows are scored
by the L2 norm of their activations, the best are gathered, run, and scattered back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def kept_windows(total: int, sparsity_percent: int) -> int:
    """How many of `total` windows stay at a sparsity in percent: rounded up, at least one."""
    return max(1, -(-total * (100 - sparsity_percent) // 100))


def padded(size: int, window: int) -> int:
    """The side of a map of side `size` once padded to whole windows."""
    return -(-size // window) * window


def constant(build: Callable[..., NDArray[Any]]) -> Callable[..., Tensor]:
    """Make `build(*sizes)` a tensor on the `device` given last, built once for each.

    It is built outside torch's modes: a table first needed during inference or export must also
    serve training.
    """

    @lru_cache(maxsize=1024)
    def cached(*arguments: Any) -> Tensor:
        *sizes, device = arguments
        with torch.inference_mode(False):
            tensor = torch.from_numpy(build(*sizes))
            return tensor if device.type == "cpu" else tensor.to(device)

    return cached


def _window_tokens(size: int, window: int, shift: int) -> NDArray[np.int64]:
    side = padded(size, window)
    index = np.arange(side * side).reshape(side, side)
    index = np.roll(index, (-shift, -shift), (0, 1))
    n = side // window
    windows = index.reshape(n, window, n, window).swapaxes(1, 2)
    return np.ascontiguousarray(windows.reshape(n * n, window * window))


@constant
def window_tokens(size: int, window: int, shift: int) -> NDArray[np.int64]:
    """Indices (windows, window**2) of the tokens of each window in a padded, flattened map.

    With a `shift` the map is first rolled up and left by that many tokens (Swin, section 3.2).
    """
    return _window_tokens(size, window, shift)


@constant
def shift_mask(size: int, window: int, shift: int) -> NDArray[np.float32]:
    """(windows, window**2, window**2): -100 where only the roll made tokens neighbours.

    As in the paper's code, and no stronger: a network whose logits differ by as much has learned to
    look across. Flush denormal numbers (`quiet_process`): exp(-100) is one, and they cost a factor
    of 2.9 in the products of shifted windows.
    """
    side = padded(size, window)
    line = np.arange(side)
    region = (line >= side - window).astype(int) + (line >= side - shift)
    regions = (3 * region[:, None] + region[None, :]).ravel()
    # Position i of the rolled map belongs to the same window as position i of the map itself.
    label = regions[_window_tokens(size, window, 0)]
    return np.where(label[:, :, None] != label[:, None, :], np.float32(-100), np.float32(0))


@constant
def relative_index(window: int) -> NDArray[np.int64]:
    """(window**2, window**2) indices into a ((2 * window - 1)**2)-row relative position table."""
    y, x = (t.ravel() for t in np.meshgrid(range(window), range(window), indexing="ij"))
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    index: NDArray[np.int64] = (dy + window - 1) * (2 * window - 1) + dx + window - 1
    return index


def window_orders(x_BSSC: Tensor, size: int, window: int, shifts: Sequence[int]) -> list[Tensor]:
    """For each shift (batch, windows): the windows of each image, most active first.

    The score of a window is the L2 norm over its tokens of the channel mean of |x|; tokens beyond
    the real `size` of a padded map count as zero.
    """
    side = x_BSSC.shape[1]
    activity = x_BSSC.abs().sum(-1)  # 3-6 times as fast as the same by vector_norm
    if side > size:
        activity = F.pad(activity[:, :size, :size], (0, side - size, 0, side - size))
    activity = activity.flatten(1)
    orders = []
    for shift in shifts:
        tokens = window_tokens(size, window, shift, x_BSSC.device)
        scores = torch.linalg.vector_norm(activity[:, tokens], dim=-1)
        # Of equal windows the first, everywhere: ONNX's TopK does so by itself, and its exporter
        # knows no stable sort.
        settings = {} if torch.onnx.is_in_onnx_export() else {"stable": True}
        orders.append(scores.argsort(dim=1, descending=True, **settings))
    return orders
