"""NSGA-II (Deb et al., IEEE TEC 2002), from pymoo: the highest scores at the lowest cost.

Parents are the survivors of everything known, by rank and crowding distance. Children come from its
tournament, simulated binary crossover and polynomial mutation over the indices of the values, which
are written from the cheapest to the dearest; choices that leave no way to fit are drawn instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.strategy.constraints import Region
from nas.strategy.searchers import Known
from nas.trellis.graph import Ints


@dataclass(frozen=True)
class Nsga2:
    """NSGA-II; as long as fewer than `population` scores are known, candidates are random draws."""

    population: int = 48

    def __call__(self, region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
        """Propose about `n` children (any number, positions) of the survivors in the region."""
        from pymoo.core.population import Population

        inside = known.within(region)
        if len(inside) < self.population:
            return region.within.sample(n, rng)
        problem = _problem(known)
        costs = region.limits[0].costs_of(inside.paths)
        everyone = Population.new(X=inside.paths, F=np.stack([-inside.scores, costs], axis=1))
        algorithm = _algorithm(self.population)
        algorithm.setup(problem, seed=int(rng.integers(2**31)))
        parents = algorithm.survival.do(
            problem, everyone, n_survive=self.population, random_state=rng
        )
        children = algorithm.mating.do(
            problem, parents, max(n, 2), algorithm=algorithm, random_state=rng
        )
        if not len(children):
            return region.within.sample(n, rng)
        return region.within.follow(np.rint(children.get("X")).astype(np.int64), rng)


def _problem(known: Known) -> Any:
    from pymoo.core.problem import Problem

    highest = [len(position.values) - 1 for position in known.positions]
    return Problem(n_var=len(highest), n_obj=2, xl=0, xu=np.array(highest), vtype=int)


def _algorithm(population: int) -> Any:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair

    crossover = SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair())
    mutation = PM(eta=20, vtype=float, repair=RoundingRepair())
    return NSGA2(pop_size=population, crossover=crossover, mutation=mutation)


make = Nsga2
