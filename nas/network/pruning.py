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

    @classmethod
    def of_tokens(cls, grid: int, window: int, before: int, sparsity: int) -> Pruning:
        """The same on a grid of tokens; one that windows do not divide is scored token by token."""
        return cls.of(grid, window if grid % window == 0 else 1, before, sparsity)

    @property
    def tokens(self) -> int:
        """Tokens of the windows that are kept."""
        return self.kept * self.window**2


def map_window(size: int, largest: int = 8) -> int:
    """The side of the windows in which a map of side `size` is pruned.

    The largest divisor of up to `largest` tokens; a side that has none above 2 is one window.
    """
    window = max(d for d in range(1, largest + 1) if size % d == 0)
    return window if window > 2 else size


class MapState(NamedTuple):
    """What the blocks of a convolutional stage depend on."""

    size: int  # side of the map
    in_width: int  # channels of the map
    width: int  # of the stage
    sparsity: int  # of the last block of this stage

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the map."""
        return self.size, self.size, self.in_width

    def entered(self, width: int) -> MapState:
        """At the start of a stage of this width."""
        return self._replace(width=width, sparsity=0)

    def after(self, stride: int, sparsity: int) -> MapState:
        """After a block of the stage."""
        return MapState(-(-self.size // stride), self.width, self.width, sparsity)


def prune_map(
    stage: int, state: MapState, sparsity: int, stride: int, largest: int = 8
) -> tuple[tuple[Layer, ...], dict[str, int]] | None:
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
