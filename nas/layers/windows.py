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

from nas.layers import mode
from nas.size import Size, area, each, sides, size_of


def padded(size: Size, window: Size) -> Size:
    """The size of a map once padded to whole windows."""
    return each(lambda side, own: -(-side // own) * own, size, window)


def windows_in(size: Size, window: Size) -> int:
    """How many whole windows a map of this size has."""
    return area(each(lambda side, own: side // own, size, window))


def map_size(x_BSSC: Tensor) -> Size:
    """The size of a map."""
    return size_of(x_BSSC.shape[1], x_BSSC.shape[2])


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


def _window_tokens(size: Size, window: Size, shift: Size) -> NDArray[np.int64]:
    (height, width), (down, across) = sides(padded(size, window)), sides(window)
    up, left = sides(shift)
    index = np.arange(height * width).reshape(height, width)
    index = np.roll(index, (-up, -left), (0, 1))
    windows = index.reshape(height // down, down, width // across, across).swapaxes(1, 2)
    return np.ascontiguousarray(windows.reshape(-1, down * across))


@constant
def window_tokens(size: Size, window: Size, shift: Size) -> NDArray[np.int64]:
    """Indices (windows, tokens) of the tokens of each window in a padded, flattened map.

    With a `shift` the map is first rolled up and left by that many tokens (Swin, section 3.2).
    """
    return _window_tokens(size, window, shift)


def _real(size: Size, window: Size, shift: Size) -> NDArray[np.bool_]:
    height, width = sides(size)
    y, x = np.divmod(_window_tokens(size, window, shift), sides(padded(size, window))[1])
    real: NDArray[np.bool_] = (y < height) & (x < width)
    return real


@constant
def real_tokens(size: Size, window: Size, shift: Size) -> NDArray[np.float32]:
    """(windows, tokens, 1): 1 for the tokens of `window_tokens` that are real, 0 for padding."""
    return _real(size, window, shift).astype(np.float32)[..., None]


@lru_cache(maxsize=1024)
def most_real(size: Size, window: Size, shift: Size, maps: int, windows: int) -> int:
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
def shift_mask(size: Size, window: Size, shift: Size) -> NDArray[np.float32]:
    """(windows, tokens, tokens): -100 where only the roll made tokens neighbours.

    As in the paper's code, and no stronger: a network whose logits differ by as much has learned to
    look across. Flush denormal numbers (`quiet_process`): exp(-100) is one, and they cost a factor
    of 2.9 in the products of shifted windows.
    """
    rows, columns = (
        (np.arange(side) >= side - own).astype(int) + (np.arange(side) >= side - by)
        for side, own, by in zip(*map(sides, (padded(size, window), window, shift)))
    )
    regions = (3 * rows[:, None] + columns[None, :]).ravel()
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


def sorted_by_window(x_BSSC: Tensor, window: Size) -> Tensor:
    """(batch, S * S): the tokens of each image, those of its most active windows first."""
    size = map_size(x_BSSC)
    (order,) = window_orders(x_BSSC, size, window, (0,))
    return window_tokens(size, window, 0, x_BSSC.device)[order].flatten(1)


def taken(x_BPNC: Tensor, index_BN: Tensor) -> Tensor:
    """The patches of each image in the order of `index_BN`."""
    b, p, n, c = x_BPNC.shape
    first = torch.arange(0, b * p * n, n, device=x_BPNC.device).view(b, p, 1)
    rows = (index_BN[:, None] + first).flatten()
    return x_BPNC.reshape(-1, c).index_select(0, rows).view(b, p, -1, c)


def still_there(source: Tensor | None, kept: int, grid: Size) -> Tensor:
    """Which tokens of a grid of the first image are left, (G, G); all before they are sorted.

    `source` (B, G * G) says which token stands at each place once they are.
    """
    mask = torch.full((area(grid),), source is None)
    if source is not None:
        mask[source[0, :kept].cpu()] = True
    return mask.view(sides(grid))


def window_orders(x_BSSC: Tensor, size: Size, window: Size, shifts: Sequence[Size]) -> list[Tensor]:
    """For each shift (batch, windows): the windows of each image, most active first.

    The score of a window is the L2 norm over its tokens of the channel mean of |x|; tokens beyond
    the real `size` of a padded map count as zero.
    """
    activity = x_BSSC.abs().sum(-1)  # 3-6 times as fast as the same by vector_norm
    if map_size(x_BSSC) != size:
        height, width = sides(size)
        beyond = (0, x_BSSC.shape[2] - width, 0, x_BSSC.shape[1] - height)
        activity = F.pad(activity[:, :height, :width], beyond)
    activity = activity.flatten(1)
    orders = []
    for shift in shifts:
        tokens = window_tokens(size, window, shift, x_BSSC.device)
        scores = torch.linalg.vector_norm(activity[:, tokens], dim=-1)
        orders.append(descending(scores))
    return orders


def _halo_lines(size: Size, window: Size, halo: int) -> list[NDArray[np.int64]]:
    """The rows, and the columns, of each row and column of windows with their surroundings."""
    return [
        np.arange(0, side, own)[:, None] + np.arange(-halo, own + halo)
        for side, own in zip(sides(size), sides(window))
    ]


@constant
def halo_tokens(size: Size, window: Size, halo: int) -> NDArray[np.int64]:
    """(windows, tokens) of each window and its surroundings, `halo` tokens on each side.

    Beyond the edge of the map stands the nearest token; `halo_inside` says where.
    """
    (height, width), (y, x) = sides(size), _halo_lines(size, window, halo)
    y, x = y.clip(0, height - 1)[:, None, :, None], x.clip(0, width - 1)[None, :, None, :]
    tokens: NDArray[np.int64] = (y * width + x).reshape(y.shape[0] * x.shape[1], -1)
    return tokens


@constant
def halo_inside(size: Size, window: Size, halo: int) -> NDArray[np.float32]:
    """(windows, tokens, 1): 1 where a token of `halo_tokens` lies in the map, 0 beyond its edge."""
    y, x = (
        ((line >= 0) & (line < side)).astype(np.float32)
        for side, line in zip(sides(size), _halo_lines(size, window, halo))
    )
    inside: NDArray[np.float32] = y[:, None, :, None] * x[None, :, None, :]
    return inside.reshape(len(y) * len(x), -1, 1)


def on_kept_windows(
    run: Callable[[Tensor, Tensor | None], Tensor],
    x_BSSC: Tensor,
    order: Tensor,
    *,
    kept: int,
    window: Size,
    halo: int,
) -> Tensor:
    """The map with `run` applied to the `kept` first windows of `order` (B, windows).

    `run(x, inside)` gets x (B * kept, window + 2 halo, window + 2 halo, C) and where its tokens lie
    in the map (B * kept, window + 2 halo, window + 2 halo, 1), None if all do; it returns what the
    inner (B * kept, window, window, C) become. Dropped windows pass unchanged.
    """
    size, c = map_size(x_BSSC), x_BSSC.shape[3]
    down, across = sides(with_halo(window, halo))
    chosen = order[:, :kept]
    rows = kept_rows(size, window, halo, chosen)
    inside = None
    if halo:
        inside = halo_inside(size, window, halo, order.device)[chosen].view(-1, down, across, 1)
    y = run(x_BSSC.reshape(-1, c).index_select(0, rows).view(-1, down, across, c), inside)
    return written(x_BSSC, kept_rows(size, window, 0, chosen) if halo else rows, y)


def with_halo(window: Size, halo: int) -> Size:
    """The size of a window with so many tokens of surroundings on each side."""
    return each(lambda side: side + 2 * halo, window)


def kept_rows(size: Size, window: Size, halo: int, chosen: Tensor) -> Tensor:
    """Of all tokens of a batch of maps, those of each one's `chosen` windows (B, kept)."""
    tokens = halo_tokens(size, window, halo, chosen.device)[chosen]
    if len(chosen) > 1:
        whole = area(size)
        first = torch.arange(0, len(chosen) * whole, whole, device=chosen.device)
        tokens = tokens + first[:, None, None]
    return tokens.flatten()


def written(x_BSSC: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """The map with `y` in these rows."""
    c = x_BSSC.shape[-1]
    base = overwritable(x_BSSC.reshape(-1, c))
    return base.index_copy_(0, rows, y.reshape(-1, c)).view(x_BSSC.shape)


def overwritable(map_: Tensor) -> Tensor:
    """A map to write windows into: itself, since nobody else holds it; a copy for autograd."""
    return map_.clone() if mode.recording() else map_
