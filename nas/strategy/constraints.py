"""What fits: paths that meet every limit, proposed from inside the tightest of them.

Limits that are sums over the choices (milliseconds on a device, MACs, parameters) have a trellis;
one that is not is any function of a path. Proposals come from inside the tightest trellis, so that
few are rejected; the rejection step looks at the true cost of each under every limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.errors import InfeasibleError, UnknownNameError
from nas.trellis.graph import Floats, Graph, Ints
from nas.trellis.trellis import Trellis, contradiction
from nas.trellis.within import Within

SAMPLERS = ("trellis", "rejection")
_TICKS = 4096


@dataclass(frozen=True, eq=False)
class Limit:
    """At most `bound` of one cost.

    `costs_of` gives the true costs (n,) of paths (n, positions). `trellis` holds the same as a sum
    over edges, or an estimate of it: then `reach` is what the estimate may be for the true cost to
    be worth asking for.
    """

    name: str
    bound: float
    costs_of: Callable[[Ints], Floats]
    trellis: Trellis | None = None
    reach: float | None = None
    unit: str = ""

    @classmethod
    def additive(cls, name: str, bound: float, trellis: Trellis, unit: str = "") -> Limit:
        return cls(name, bound, trellis.costs_of, trellis, unit=unit)

    @property
    def cause(self) -> str:
        """What a rejection by this limit is counted as."""
        return f"over_{self.name}"

    @property
    def exact(self) -> bool:
        """Whether the trellis is the cost itself."""
        return self.trellis is not None and self.reach is None

    def within(self) -> Within | None:
        if self.trellis is None:
            return None
        reach = self.bound if self.reach is None else self.reach
        return self.trellis.within(max(reach, self.trellis.fastest), ticks=_TICKS)

    def __str__(self) -> str:
        return f"{self.name} {self.bound:.6g}{self.unit and ' ' + self.unit}"


@dataclass(eq=False)
class Region:
    """The paths of a graph that meet every limit; the first limit is the budget.

    `sampler="rejection"` proposes from the whole graph instead, as the papers do. Raises
    `InfeasibleError` where no path can meet one limit, or provably none meets all.
    """

    graph: Graph
    limits: Sequence[Limit]
    sampler: str = "trellis"
    within: Within = field(init=False)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        exact = [(limit, limit.trellis) for limit in self.limits if limit.exact and limit.trellis]
        for limit, trellis in exact:
            if trellis.fastest > limit.bound:
                unit = limit.unit and " " + limit.unit
                raise InfeasibleError(
                    f"nothing has at most {limit}: the smallest possible has "
                    f"{trellis.fastest:.6g}{unit}",
                    f"allow at least {trellis.fastest * 1.1:.3g}{unit}",
                )
        if len(exact) > 1:
            over = contradiction([t for _, t in exact], [limit.bound for limit, _ in exact])
            if over > 1 + 1e-9:
                names = " and ".join(str(limit) for limit, _ in exact)
                raise InfeasibleError(
                    f"each of {names} can be met, but not together",
                    f"raise them by {100 * (over - 1) + 0.05:.1f} % or more",
                )
        inside = [] if self.sampler == "rejection" else [limit.within() for limit in self.limits]
        tightest = min(filter(None, inside), key=lambda within: within.count, default=None)
        self.within = tightest or _whole(self.graph)

    @property
    def positions(self) -> int:
        return len(self.graph.levels) - 1

    @property
    def exact(self) -> bool:
        """Whether what is proposed from is no estimate."""
        return all(limit.exact or limit.trellis is None for limit in self.limits)

    def anywhere(self, n: int, rng: np.random.Generator) -> Ints:
        """Uniform draws, from the whole graph where what is proposed from is an estimate."""
        return self.sample(n, rng) if self.exact else _whole(self.graph).sample(n, rng)

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        return self.within.sample(n, rng)

    def mutate(self, parents: Ints, probability: float, rng: np.random.Generator) -> Ints:
        return self.within.mutate(parents, probability, rng)

    def crossover(self, mothers: Ints, fathers: Ints, rng: np.random.Generator) -> Ints:
        return self.within.crossover(mothers, fathers, rng)

    def follow(self, wanted: Ints, rng: np.random.Generator) -> Ints:
        return self.within.follow(wanted, rng)

    def causes(self, paths: Ints) -> list[str]:
        """For each path the first limit that it breaks, or nothing."""
        causes = np.full(len(paths), "", dtype=object)
        for limit in self.limits:
            left = np.flatnonzero(causes == "")
            if len(left):
                over = ~(limit.costs_of(paths[left]) <= limit.bound)  # nan breaks it
                causes[left[over]] = limit.cause
        return causes.tolist()

    def fits(self, paths: Ints) -> np.ndarray:
        """Which of the paths (n, positions) meet every limit (n,)."""
        return np.array([cause == "" for cause in self.causes(paths)], dtype=bool)


def _whole(graph: Graph) -> Within:
    return Trellis(graph, lambda _: 0.0).within(0.0, ticks=1)
