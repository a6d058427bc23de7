"""Random search: uniform draws from inside the limits (Li and Talwalkar, UAI 2019)."""

from __future__ import annotations

import numpy as np

from nas.strategy.constraints import Region
from nas.strategy.searchers import Known, Propose
from nas.trellis.graph import Ints


def propose(region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
    """Draw `n` paths (n, positions) uniformly, whatever is known."""
    return region.within.sample(n, rng)


def make() -> Propose:
    """The searcher, which has no settings."""
    return propose
