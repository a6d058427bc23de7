"""The whole front in one run: how near one search gets to the optimum of each of eight budgets.

`OMP_NUM_THREADS=1 python experiments/search_quality/front.py` (ten minutes on one core): the
`knapsack` of `problems.py`, five seeds, 320 evaluations in batches of 32. `evolution` is given all
eight budgets, `nsga2` and `random` the largest one. A gap is that of quality.py, the mean over the
budgets; it writes `front.json`. Expected: evolution's is at most half of the others'.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from problems import exact_optimum, knapsack

from nas.strategy.constraints import Limit, Region
from nas.strategy.loop import Score, explore
from nas.strategy.searchers import Searcher, load_propose

SHARES = np.linspace(0.1, 0.6, 8)
EVALUATIONS, BATCH = 320, 32


def gaps(problem, name, seed):
    trellis = problem.trellis
    room = trellis.slowest - trellis.fastest
    budgets = [int(trellis.fastest + share * room) + 0.5 for share in SHARES]
    asked = budgets if name == "evolution" else budgets[-1:]
    regions = [Region(trellis.graph, [Limit.additive("budget", b, trellis)]) for b in asked]
    searcher = Searcher(load_propose(name), problem.positions, regions, np.random.default_rng(seed))
    explore(searcher, lambda paths: [Score(s) for s in problem.truth(paths)], EVALUATIONS, BATCH)
    known, found = searcher.known, []
    costs = trellis.costs_of(known.paths)
    for budget in budgets:
        best = exact_optimum(*problem.chain, int(budget))
        middle = np.median(
            problem.truth(trellis.within(budget).sample(2000, np.random.default_rng(0)))
        )
        reached = max(known.scores[costs <= budget], default=middle)
        found.append(float((best - reached) / (best - middle)))
    return found


def main():
    result = {"shares": SHARES.round(3).tolist(), "evaluations": EVALUATIONS, "searchers": {}}
    for name in ("evolution", "nsga2", "random"):
        every = np.array([gaps(knapsack(seed), name, seed) for seed in range(5)])
        result["searchers"][name] = {
            "median_of_mean_gaps": round(float(np.median(every.mean(1))), 4),
            "median_by_budget": np.median(every, 0).round(4).tolist(),
        }
        print(name, result["searchers"][name])
    Path(__file__).with_name("front.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
