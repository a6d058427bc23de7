"""Limits on cost, and the region of a space that keeps them all.

The cost of a limit is a sum over the choices (milliseconds on a device, MACs, parameters), and then
has a trellis, or it is any function of a path. A region proposes paths from the trellis that leaves
the fewest, so that few proposals are rejected; the rejection step then compares the true cost of
each proposal with every limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nas.errors import InfeasibleError, UnknownNameError
from nas.trellis.graph import Floats, Graph, Ints
from nas.trellis.trellis import ROUNDING, Trellis, contradiction, whole
from nas.trellis.within import Within

SAMPLERS = ("trellis", "rejection")
_TICKS = 4096


@dataclass(frozen=True, eq=False)
class Limit:
    """A cost that must be at most `bound`.

    `costs_of` gives the true costs (n,) of paths (n, positions). `trellis` holds the same costs, or
    an estimate of them as a sum over the choices (of their logarithms, if `logarithmic`): then
    `reach` is the highest estimate of a path that is still proposed, and `asked` gives the costs
    (n,) that are known already, nan for others. What costs less than `floor` is not proposed
    either: another limit rejects it. Rejections are counted as `counted`, if given.

    A lower bound is a limit, too (`at_least`): what a path costs less than a `total` that none
    exceeds must be at most the rest.
    """

    name: str
    bound: float
    costs_of: Callable[[Ints], Floats]
    trellis: Trellis | None = None
    reach: float | None = None
    unit: str = ""
    counted: str = ""
    floor: float = -math.inf
    total: float | None = None
    asked: Callable[[Ints], Floats] | None = None
    logarithmic: bool = False

    @classmethod
    def additive(cls, name: str, bound: float, trellis: Trellis, unit: str = "") -> Limit:
        """A limit on a cost that the trellis holds exactly."""
        return cls(name, bound, trellis.costs_of, trellis, unit=unit)

    @classmethod
    def at_least(
        cls,
        name: str,
        least: float,
        trellis: Trellis,
        costs_of: Callable[[Ints], Floats] | None = None,
        asked: Callable[[Ints], Floats] | None = None,
        error: float = 0.0,
    ) -> Limit:
        """The limit that a cost is at least so much.

        The trellis holds it, or where `costs_of` is given estimates it with that `error`.
        """
        mirrored, total = trellis.mirrored
        bound, own = total - least, costs_of or trellis.costs_of
        if abs(bound - mirrored.fastest) <= ROUNDING * abs(total):
            bound = mirrored.fastest  # asked for is exactly the largest possible
        reach = None if costs_of is None else bound + error
        known = None if asked is None else (lambda paths: total - asked(paths))
        return cls(
            name,
            bound,
            lambda paths: total - own(paths),
            mirrored,
            reach,
            total=total,
            asked=known,
        )

    @property
    def cause(self) -> str:
        """The name under which rejections by this limit are counted, e.g. `over_budget`."""
        return self.counted or f"{'over' if self.total is None else 'under'}_{self.name}"

    @property
    def exact(self) -> bool:
        """Whether the trellis holds the cost itself, not an estimate of it."""
        return self.trellis is not None and self.reach is None

    def keeps(self, costs: Floats) -> NDArray[np.bool_]:
        """Which of the costs (n,) are at most the bound, but for the rounding of sums."""
        return costs <= self.bound + ROUNDING * max(abs(self.bound), abs(self.total or 0.0))

    def reached(self, more: float = 1.0) -> float:
        """What the trellis may give a path that is still proposed, with `more` times the bound."""
        if self.reach is None:
            return self.bound * more
        return self.reach + math.log(more) if self.logarithmic else self.reach * more

    def within(self) -> Within | None:
        """The paths that the trellis lets through, and no fewer; None without a trellis."""
        trellis = self.trellis
        if trellis is None:
            return None
        reach = max(self.reached(), trellis.fastest)
        floor = self.floor - (reach - self.bound if self.reach is not None else 0.0)
        if floor <= trellis.fastest or floor > reach:
            return trellis.within(reach, ticks=_TICKS)
        # In a band costs are rounded up, by less than a tick at each position.
        n = len(trellis.costs)
        rounded = n / max(_TICKS - n, 1) * (reach - trellis.fastest)
        try:
            return trellis.within(reach + rounded, floor, ticks=_TICKS)
        except InfeasibleError:
            if self.exact:
                raise
            return trellis.within(reach, ticks=_TICKS)  # an estimate proves nothing

    def said(self, cost: float) -> str:
        """A cost of the trellis as the user knows it: with its unit, and not mirrored."""
        own = cost if self.total is None else self.total - cost
        return f"{own:.6g}{self.unit and ' ' + self.unit}"

    def __str__(self) -> str:
        if self.total is not None:
            return f"{self.name} of at least {self.said(self.bound)}"
        return self.name if self.counted else f"{self.name} {self.said(self.bound)}"


@dataclass(eq=False)
class Region:
    """The paths of a graph that keep every limit; the first limit is the budget.

    Searchers propose paths from `within`: the trellis that leaves the fewest, or the whole graph
    with `sampler="rejection"`, as the papers do. Raises `InfeasibleError` where no path can keep
    one limit, or provably none keeps all.

    `renewed` gives other limits, of the same bounds, as soon as more is known of costs that are
    estimated, and None as long as there is nothing new.
    """

    graph: Graph
    limits: Sequence[Limit]
    sampler: str = "trellis"
    renewed: Callable[[], Sequence[Limit] | None] = lambda: None
    within: Within = field(init=False)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        _require_possible(self.limits)
        self._draw_from()

    def renew(self) -> None:
        """Take what has become known of costs into account."""
        if (limits := self.renewed()) is not None:
            self.limits = limits
            self._draw_from()

    def _draw_from(self) -> None:
        inside = [] if self.sampler == "rejection" else [limit.within() for limit in self.limits]
        tightest = min(filter(None, inside), key=lambda within: within.count, default=None)
        self.within = tightest or whole(self.graph)

    @property
    def exact(self) -> bool:
        """Whether no trellis of a limit is an estimate, so that `within` holds all that fits."""
        return all(limit.exact or limit.trellis is None for limit in self.limits)

    def anywhere(self, n: int, rng: np.random.Generator) -> Ints:
        """Uniform draws (n, positions): from `within`, or from the whole graph unless `exact`."""
        return (self.within if self.exact else whole(self.graph)).sample(n, rng)

    def causes(self, paths: Ints) -> list[str]:
        """For each path (n, positions) the cause of the first limit that it breaks, else "".

        It is `not_asked` where a function may not be called any more.
        """
        causes = np.full(len(paths), "", dtype=object)
        # Checks of a space first: no cost is asked of what they refuse.
        for limit in sorted(self.limits, key=lambda limit: not limit.counted):
            left = np.flatnonzero(causes == "")
            if len(left):
                costs = limit.costs_of(paths[left])
                causes[left[~limit.keeps(costs)]] = limit.cause
                causes[left[np.isnan(costs)]] = "not_asked"
        return causes.tolist()

    def may_fit(self, paths: Ints) -> NDArray[np.bool_]:
        """Which of the paths (n, positions) keep every limit, by estimates where no cost is known.

        So no function is called for paths that may never be asked for.
        """
        possible = np.ones(len(paths), bool)
        for limit in self.limits:
            left = np.flatnonzero(possible)
            if limit.trellis is None or limit.reach is None:
                possible[left] = limit.keeps(limit.costs_of(paths[left]))
                continue
            possible[left] = limit.trellis.costs_of(paths[left]) <= limit.reach
            if limit.asked is not None:
                known = limit.asked(paths[left])
                possible[left] = np.where(np.isnan(known), possible[left], limit.keeps(known))
        return possible

    def fits(self, paths: Ints) -> np.ndarray:
        """Which of the paths (n, positions) keep every limit: booleans (n,)."""
        return np.array([cause == "" for cause in self.causes(paths)], dtype=bool)


def _require_possible(limits: Sequence[Limit]) -> None:
    """Raise `InfeasibleError` where one limit, or all together, provably cannot be kept."""
    exact = [(limit, limit.trellis) for limit in limits if limit.exact and limit.trellis]
    for limit, trellis in exact:
        if limit.keeps(np.array([trellis.fastest])).all():
            continue
        if limit.total is not None:
            raise InfeasibleError(
                f"nothing has a {limit}: the largest possible has {limit.said(trellis.fastest)}",
                f"ask for {limit.said(trellis.fastest)} or less",
            )
        unit = limit.unit and " " + limit.unit
        raise InfeasibleError(
            f"nothing has at most {limit}: the smallest possible has {trellis.fastest:.6g}{unit}",
            f"allow at least {trellis.fastest * 1.1:.3g}{unit}",
        )
    exact = [(limit, trellis) for limit, trellis in exact if limit.bound > 0]
    if len(exact) > 1:
        over = contradiction([t for _, t in exact], [limit.bound for limit, _ in exact])
        if over > 1 + 1e-9:
            names = " and ".join(str(limit) for limit, _ in exact)
            both = any(limit.total is not None for limit, _ in exact)
            raise InfeasibleError(
                f"each of {names} can be met, but not together",
                "raise the upper bounds, or lower the lower ones"
                if both
                else f"raise them by {100 * (over - 1) + 0.05:.1f} % or more",
            )
