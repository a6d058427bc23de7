"""Which windows a block keeps, and where a stage starts to leave some out.

Window-activation pruning after SparseViT (Chen et al., CVPR 2023, section 3). Sparsity does not
fall within a stage: later blocks take a prefix of one order of windows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nas.layers.maps import MapScore
from nas.layers.windows import windows_in
from nas.size import Size, area, divided, each, sides
from nas.space.layer import Layer


def kept_windows(total: int, sparsity_percent: int) -> int:
    """How many of `total` windows stay at a sparsity in percent: rounded up, at least one."""
    return max(1, -(-total * (100 - sparsity_percent) // 100))


class Pruning(NamedTuple):
    """The windows of a block on a map."""

    window: Size  # of a window in tokens
    total: int
    kept: int
    starts: bool  # the first block of its stage that leaves any out: the order is needed from here

    @classmethod
    def of(cls, size: Size, window: Size, before: int, sparsity: int) -> Pruning:
        """Of a map of this size, after a block of sparsity `before` (percent)."""
        total = windows_in(size, window)
        kept = kept_windows(total, sparsity)
        return cls(window, total, kept, kept < total == kept_windows(total, before))

    @classmethod
    def of_tokens(cls, grid: Size, window: int, before: int, sparsity: int) -> Pruning:
        """The same on a grid of tokens; a side that windows do not divide has them of one token."""
        own = each(lambda side: window if side % window == 0 else 1, grid)
        return cls.of(grid, own, before, sparsity)

    @property
    def tokens(self) -> int:
        """Tokens of the windows that are kept."""
        return self.kept * area(self.window)


def map_window(size: Size, largest: int = 8) -> Size:
    """The size of the windows in which a map of a size is pruned.

    The largest divisor of each side of up to `largest` tokens; a side that has none above 2 is as
    long as one window.
    """

    def along(side: int) -> int:
        window = max(d for d in range(1, largest + 1) if side % d == 0)
        return window if window > 2 else side

    return each(along, size)


class MapState(NamedTuple):
    """What the blocks of a convolutional stage depend on."""

    size: Size  # of the map
    in_width: int  # channels of the map
    width: int  # of the stage
    sparsity: int  # of the last block of this stage

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the map."""
        return *sides(self.size), self.in_width

    def entered(self, width: int) -> MapState:
        """At the start of a stage of this width."""
        return self._replace(width=width, sparsity=0)

    def after(self, stride: int, sparsity: int) -> MapState:
        """After a block of the stage."""
        return MapState(divided(self.size, stride), self.width, self.width, sparsity)


def prune_map(
    stage: int, state: MapState, sparsity: int, stride: int, largest: int = 8
) -> tuple[tuple[Layer, ...], dict[str, Any]] | None:
    """The score of the windows where the stage starts to prune; a block's `window` and `kept`.

    Windows have a side of up to `largest`. None where a sparsity is not allowed: it falls within
    the stage, or the block changes the map's shape, so that nothing could pass unchanged.
    """
    passes = stride == 1 and state.in_width == state.width
    if sparsity < state.sparsity or (sparsity and not passes):
        return None
    if not passes:
        return (), {}
    window = map_window(state.size, largest)
    pruning = Pruning.of(state.size, window, state.sparsity, sparsity)
    score = Layer.of(f"score{stage}", MapScore, state.shape, window=window)
    return (score,) if pruning.starts else (), {"window": window, "kept": pruning.kept}
