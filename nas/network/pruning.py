"""Which windows a block keeps, and where a stage starts to leave some out.

Window-activation pruning after SparseViT (Chen et al., CVPR 2023, section 3). Sparsity does not
fall within a stage: later blocks take a prefix of one order of windows.
"""

from __future__ import annotations

from typing import NamedTuple

from nas.layers.maps import MapScore
from nas.space.layer import Layer


def kept_windows(total: int, sparsity_percent: int) -> int:
    """How many of `total` windows stay at a sparsity in percent: rounded up, at least one."""
    return max(1, -(-total * (100 - sparsity_percent) // 100))


class Pruning(NamedTuple):
    """The windows of a block on a square map."""

    window: int  # side of a window in tokens
    total: int
    kept: int
    starts: bool  # the first block of its stage that leaves any out: the order is needed from here

    @classmethod
    def of(cls, size: int, window: int, before: int, sparsity: int) -> Pruning:
        """At sides `size` and `window`, after a block of sparsity `before` (percent)."""
        total = (size // window) ** 2
        kept = kept_windows(total, sparsity)
        return cls(window, total, kept, kept < total == kept_windows(total, before))


def map_window(size: int, largest: int = 8) -> int:
    """The side of the windows in which a map of side `size` is pruned.

    The largest divisor of up to `largest` tokens; a side that has none above 2 is one window.
    """
    window = max(d for d in range(1, largest + 1) if size % d == 0)
    return window if window > 2 else size


def prune_map(
    stage: int, shape: tuple[int, ...], before: int, sparsity: int, largest: int = 8
) -> tuple[tuple[Layer, ...], dict[str, int]]:
    """The score of the windows where the stage starts to prune; a block's `window` and `kept`.

    `shape` is that of the map that enters the block, `before` the sparsity of the block before it.
    """
    pruning = Pruning.of(shape[0], map_window(shape[0], largest), before, sparsity)
    sizes = {"window": pruning.window}
    score = Layer.of(f"score{stage}", MapScore, shape, **sizes)
    return (score,) if pruning.starts else (), sizes | {"kept": pruning.kept}
