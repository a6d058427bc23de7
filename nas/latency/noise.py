"""What other programs and a changing clock do to samples, and what is taken out of them.

Found by experiment (`experiments/busy_machine.py`): where other programs want the same core, most
of a sample is waiting, which the processor time leaves out; and for a second or so everything takes
longer or shorter (clock, caches and memory of neighbours), which shows in whatever was visited just
before and after. Low quantiles and minima take out neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# A visit is a list of samples, wall and processor time: one for each call, or for a tour one for
# each layer of each call. Visits are those of each piece by its name.
Visit = list[Sequence[float]]
Visits = Mapping[str, Sequence[Visit]]
Samples = NDArray[np.float64]  # (n, 2): wall and processor time

HELD_UP = 1.1  # wall by processor time from which a sample counts as held up
WANTED_PERCENT = 2.0  # mean error of a table on other networks, where noise is what is above it
_FEW = 0.25  # share of samples below which those that were not held up say too little
_PASSES = 5
_NEIGHBOURS = 8  # visits before and after one that say how fast the machine was: about a second


def held_up(samples: Samples) -> NDArray[np.bool_]:
    """Which samples took longer than their processor time; none where that is not known."""
    wall, cpu = samples.T
    held: NDArray[np.bool_] = (cpu > 0) & (wall > HELD_UP * cpu)
    return held


def undisturbed(samples: Samples, serial: bool = True) -> Samples:
    """The samples as they would be if the process had had a core for itself.

    Those that were not held up, if there are enough of them. Otherwise all, where the processor
    time stands for the wall time of those that were held up: in a `serial` program the two are
    equal on a quiet machine. With several threads all samples are kept as they are.
    """
    held = held_up(samples)
    free = samples[~held]
    if len(free) >= max(3, _FEW * len(samples)):
        return free
    if not serial:
        return samples
    return np.where(held[:, None], samples[:, 1:], samples)


def steadied(order: Sequence[tuple[str, Visit]], serial: bool = True) -> dict[str, list[Visit]]:
    """The visits of each piece by name, as if the machine had been equally fast in all of them.

    `order` holds all visits as they followed each other. How slow the machine was during a visit
    is the median, over the visits around it, of how long each took beside the other visits of its
    own piece. A piece that was visited once says nothing about that.
    """
    own: dict[str, list[int]] = defaultdict(list)
    for i, (name, _) in enumerate(order):
        own[name].append(i)
    again = [np.array(places) for places in own.values() if len(places) > 1]
    totals = np.log([_total(visit, serial) for _, visit in order])
    slow = np.zeros(len(order))
    for _ in range(_PASSES if again else 0):  # each knows better what a piece takes by itself
        beside = np.full(len(order), np.nan)
        for places in again:
            beside[places] = totals[places] - np.median(totals[places] - slow[places])
        slow = _around(beside)
    factors = np.exp(slow - np.median(slow))
    found: dict[str, list[Visit]] = {name: [] for name in own}
    for (name, visit), factor in zip(order, factors):
        found[name].append((np.array(visit) / factor).tolist())
    return found


def _around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of the known values around each, without itself; 0 where there are none."""
    n, k = len(values), _NEIGHBOURS
    padded = np.pad(values, k, constant_values=np.nan)
    windows = np.stack([padded[i : i + n] for i in range(2 * k + 1) if i != k])
    known = np.isfinite(windows).any(0)
    found = np.zeros(n)
    found[known] = np.nanmedian(windows[:, known], 0)
    return found


def _total(visit: Visit, serial: bool) -> float:
    """What a visit took: processor time, or wall time where that is not known or of threads."""
    wall, cpu = np.array(visit).sum(0)
    return float(cpu if serial and cpu > 0 else wall)


def share_held_up(visits: Visits) -> float:
    """The share of all samples that were held up."""
    samples = [sample for own in visits.values() for visit in own for sample in visit]
    return float(held_up(np.array(samples)).mean()) if samples else 0.0


def wanting(error_percent: float, noise_percent: float) -> bool:
    """Whether more samples would bring the error of a table nearer to the one that is wanted.

    Where less than half of the error is noise, they would hardly lower it.
    """
    return error_percent > WANTED_PERCENT and noise_percent > error_percent / 2
