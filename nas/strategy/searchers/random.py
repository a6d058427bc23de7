"""Random search: uniform draws from inside the limits (Li and Talwalkar, UAI 2019)."""

from __future__ import annotations

import numpy as np

from nas.strategy.constraints import Region
from nas.strategy.searchers import Known, Propose
from nas.trellis.graph import Ints


def propose(region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
    return region.sample(n, rng)


def make() -> Propose:
    return propose
