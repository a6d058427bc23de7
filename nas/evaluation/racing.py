"""Racing: a candidate that is worse than a rival with confidence is not evaluated to the end.

Both are compared image by image on growing parts of a split. An image on which they do as well as
each other says nothing; of the others, a candidate that is as good as its rival wins at least half
in expectation, so the exact one-sided sign test (McNemar's test of paired outcomes) says how
unlikely so few wins are. Where outcomes are no hits, many small losses may be worth less than a few
large wins: the mean difference is then compared with its own noise (Student's one-sided t-test of
pairs), which holds nearly, unless what decides happens on a few images in a hundred. After
Hoeffding races (Maron and Moore, NIPS 1993) and F-Race (Birattari et al., GECCO 2002), with pairs
instead of bounds on each mean: images are hard or easy for both, and pairs cancel that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from nas.errors import UsageError

Outcomes = NDArray[Any]  # (images,) bool hits, or floats from 0 to 1; higher is better


@dataclass(frozen=True, eq=False)
class Raced:
    """What was seen of a candidate: all outcomes, or those until it was dropped."""

    outcomes: Outcomes
    dropped: bool

    @property
    def images(self) -> int:
        """The number of images that the candidate has seen."""
        return len(self.outcomes)


@dataclass(frozen=True)
class Race:
    """Looks at a candidate after `sizes[0]` images, after `sizes[1]`, ...; the last is all of them.

    `error` bounds the probability of dropping a candidate that is not worse than its rival: each
    look before the last spends an equal share of it (Bonferroni). The bound holds in two senses.
    Images are drawn at random and the rival was chosen without them: for one that is no worse in
    truth. The order of the images is random and the rival chosen in any way, such as the best of
    many on these very images: for one that would be no worse on all of them.
    """

    sizes: tuple[int, ...]
    error: float = 0.05

    def __post_init__(self) -> None:
        steps = np.diff((0, *self.sizes))
        if not self.sizes or (steps < 1).any():
            raise UsageError(f"a race needs sizes that grow, got {self.sizes}", "e.g. (64, 128)")
        if not 0 < self.error < 1:
            raise UsageError(f"the error of a race is between 0 and 1, got {self.error}", "0.05")

    @classmethod
    def doubling(cls, images: int, first: int = 64, error: float = 0.05) -> Race:
        """Looks after `first` images and whenever they have doubled, up to all `images`."""
        sizes = []
        while first < images:
            sizes.append(first)
            first *= 2
        return cls((*sizes, images), error)

    def run(self, outcomes: Callable[[int, int], Outcomes], rival: Outcomes | None = None) -> Raced:
        """Race one candidate; `outcomes(start, stop)` evaluates it on images [start, stop).

        `rival` (sizes[-1],) holds the rival's outcomes; without one all images are evaluated.
        """
        if rival is not None and len(rival) != self.sizes[-1]:
            raise UsageError(
                f"a race over {self.sizes[-1]} images against {len(rival)} outcomes of a rival",
                "evaluate the rival on all images",
            )
        level = self.error / max(1, len(self.sizes) - 1)
        parts: list[Outcomes] = []
        for start, stop in zip((0, *self.sizes), self.sizes):
            parts.append(outcomes(start, stop))
            seen = np.concatenate(parts)
            if rival is None or stop == self.sizes[-1]:
                continue
            if chance_of_no_worse(seen, rival[:stop]) <= level:
                return Raced(seen, True)
        return Raced(seen, False)


def chance_of_no_worse(outcomes: Outcomes, rival: Outcomes) -> float:
    """How likely outcomes at most as good as these are, of one that is as good as its rival."""
    if outcomes.dtype == rival.dtype == bool:
        return sign_test(int((outcomes > rival).sum()), int((outcomes < rival).sum()))
    return mean_test(outcomes.astype(np.float64) - rival.astype(np.float64))


def mean_test(differences: NDArray[np.float64]) -> float:
    """The probability of a mean as low as that of differences (n,), if it is 0 in truth."""
    mean, spread = float(differences.mean()), float(differences.std())
    if len(differences) < 2 or spread == 0:
        return float(mean >= 0)
    return float(stdtr(len(differences) - 1, mean / spread * math.sqrt(len(differences) - 1)))


def sign_test(wins: int, losses: int) -> float:
    """The probability of at most `wins` heads in `wins + losses` tosses of a fair coin, exactly."""
    tosses = wins + losses
    return sum(math.comb(tosses, k) for k in range(wins + 1)) / (1 << tosses)
