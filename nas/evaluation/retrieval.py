"""How often a picture finds its caption among those of others, and a caption its picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def recalls(similarities: Tensor, counts: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """The share in percent of rows whose own column is among so many of the largest.

    `similarities` (n, n) has what belongs together on its diagonal. A column that is as near as
    their own counts before it, so that vectors that are all the same find nothing.
    """
    own = similarities.diagonal()[:, None]
    before = (similarities >= own).sum(1) - 1
    return {count: float(100 * (before < count).double().mean()) for count in counts}
