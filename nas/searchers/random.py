"""Random search: uniform draws from inside the limits (Li and Talwalkar, UAI 2019)."""

from __future__ import annotations

import numpy as np

from nas.graph import Ints
from nas.region import Region
from nas.searchers import Known, Propose


def propose(region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
    return region.sample(n, rng)


def make() -> Propose:
    return propose
