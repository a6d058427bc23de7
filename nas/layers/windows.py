"""Windows of a feature map: their tokens, their scores, and which of them are kept.

Window-activation pruning after SparseViT (Chen et al., CVPR 2023, section 3): windows are scored
by the L2 norm of their activations, the best are gathered, run, and scattered back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.layers import mode


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


def _real(size: int, window: int, shift: int) -> NDArray[np.bool_]:
    side = padded(size, window)
    y, x = np.divmod(_window_tokens(size, window, shift), side)
    real: NDArray[np.bool_] = (y < size) & (x < size)
    return real


@constant
def real_tokens(size: int, window: int, shift: int) -> NDArray[np.float32]:
    """(windows, window**2, 1): 1 for the tokens of `window_tokens` that are real, 0 for padding."""
    return _real(size, window, shift).astype(np.float32)[..., None]


@lru_cache(maxsize=1024)
def most_real(size: int, window: int, shift: int, maps: int, windows: int) -> int:
    """How many real tokens so many windows of so many maps have at most."""
    counts = _real(size, window, shift).sum(1).tolist() * maps
    return int(sum(sorted(counts)[-windows:]))


def descending(scores: Tensor) -> Tensor:
    """The order of scores along the last axis, the largest first; of equal ones the first.

    ONNX's TopK does so by itself, and its exporter knows no stable sort.
    """
    settings = {} if mode.exporting() else {"stable": True}
    return scores.argsort(dim=-1, descending=True, **settings)


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


def sorted_by_window(x_BSSC: Tensor, window: int) -> Tensor:
    """(batch, S * S): the tokens of each image, those of its most active windows first."""
    size = x_BSSC.shape[1]
    (order,) = window_orders(x_BSSC, size, window, (0,))
    return window_tokens(size, window, 0, x_BSSC.device)[order].flatten(1)


def taken(x_BPNC: Tensor, index_BN: Tensor) -> Tensor:
    """The patches of each image in the order of `index_BN`."""
    b, p, n, c = x_BPNC.shape
    first = torch.arange(0, b * p * n, n, device=x_BPNC.device).view(b, p, 1)
    rows = (index_BN[:, None] + first).flatten()
    return x_BPNC.reshape(-1, c).index_select(0, rows).view(b, p, -1, c)


def still_there(source: Tensor | None, kept: int, total: int) -> Tensor:
    """Which of `total` tokens of the first image are left, (G, G); all before they are sorted.

    `source` (B, total) says which token stands at each place once they are.
    """
    mask = torch.full((total,), source is None)
    if source is not None:
        mask[source[0, :kept].cpu()] = True
    return mask.view(isqrt(total), -1)


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
        orders.append(descending(scores))
    return orders


@constant
def halo_tokens(size: int, window: int, halo: int) -> NDArray[np.int64]:
    """(windows, (window + 2 halo)**2) tokens of each window and its surroundings.

    Beyond the edge of the map stands the nearest token; `halo_inside` says where.
    """
    first = np.arange(0, size, window)
    line = (first[:, None] + np.arange(-halo, window + halo)).clip(0, size - 1)
    y, x = line[:, None, :, None], line[None, :, None, :]
    tokens: NDArray[np.int64] = (y * size + x).reshape(len(first) ** 2, -1)
    return tokens


@constant
def halo_inside(size: int, window: int, halo: int) -> NDArray[np.float32]:
    """(windows, (window + 2 halo)**2, 1): 1 where the token lies in the map, 0 beyond its edge."""
    first = np.arange(0, size, window)
    line = first[:, None] + np.arange(-halo, window + halo)
    line = ((line >= 0) & (line < size)).astype(np.float32)
    inside = line[:, None, :, None] * line[None, :, None, :]
    return inside.reshape(len(first) ** 2, -1, 1)


def on_kept_windows(
    run: Callable[[Tensor, Tensor | None], Tensor],
    x_BSSC: Tensor,
    order: Tensor,
    *,
    kept: int,
    window: int,
    halo: int,
) -> Tensor:
    """The map with `run` applied to the `kept` first windows of `order` (B, windows).

    `run(x, inside)` gets x (B * kept, window + 2 halo, window + 2 halo, C) and where its tokens lie
    in the map (B * kept, window + 2 halo, window + 2 halo, 1), None if all do; it returns what the
    inner (B * kept, window, window, C) become. Dropped windows pass unchanged.
    """
    size, c = x_BSSC.shape[2:]
    side = window + 2 * halo
    chosen = order[:, :kept]
    rows = kept_rows(size, window, halo, chosen)
    inside = None
    if halo:
        inside = halo_inside(size, window, halo, order.device)[chosen].view(-1, side, side, 1)
    y = run(x_BSSC.reshape(-1, c).index_select(0, rows).view(-1, side, side, c), inside)
    return written(x_BSSC, kept_rows(size, window, 0, chosen) if halo else rows, y)


def kept_rows(size: int, window: int, halo: int, chosen: Tensor) -> Tensor:
    """Of all tokens of a batch of maps, those of each one's `chosen` windows (B, kept)."""
    tokens = halo_tokens(size, window, halo, chosen.device)[chosen]
    if len(chosen) > 1:
        last = len(chosen) * size * size
        tokens = tokens + torch.arange(0, last, size * size, device=chosen.device)[:, None, None]
    return tokens.flatten()


def written(x_BSSC: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """The map with `y` in these rows."""
    c = x_BSSC.shape[-1]
    base = overwritable(x_BSSC.reshape(-1, c))
    return base.index_copy_(0, rows, y.reshape(-1, c)).view(x_BSSC.shape)


def overwritable(map_: Tensor) -> Tensor:
    """A map to write windows into: itself, since nobody else holds it; a copy for autograd."""
    return map_.clone() if mode.recording() else map_
