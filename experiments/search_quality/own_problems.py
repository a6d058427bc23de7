"""Searches of one's own problem: luck, calls of a latency, and time by the number of scores.

`OMP_NUM_THREADS=1 python experiments/search_quality/own_problems.py PART...` prints one of three
studies, each on spaces of choices of six values with a known truth:

`luck` (two minutes): scores with noise of a quarter of the distance from the median to the optimum,
6 choices, 20 seeds. The gap of the member with the highest score, and of the one with the highest
expected score, in units of that distance. Expected: the second is smaller by a third or more at 120
evaluations, and smaller still where `noise` is given.

`calls` (two minutes): how often a latency that is a function is called until 60 members are scored
of which one in 3, 100, 1,000 fits; 12 choices, 2 seeds. Expected: below 1,500 where the function is
a sum, a product or a maximum, and thousands where outliers of a million are added or only pairs of
choices tell, not always within the 7,000 that are allowed.

`time` (three minutes of processor time): milliseconds an evaluation after so many scores that cost
nothing, and the share of the whole that a resume takes. Expected: below 50 ms at 5,000; below 5 %.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import make_dataclass

import numpy as np

import nas


def space_of(choices):
    names = [f"x{i}" for i in range(choices)]
    member = make_dataclass("Member", names, frozen=True)
    return nas.Space(member, **dict.fromkeys(names, nas.Choice(*range(6))))


def vector(member):
    return np.array(list(vars(member).values()))


def luck():
    everything = np.array(np.meshgrid(*[range(6)] * 6, indexing="ij")).reshape(6, -1).T
    at = np.arange(6)
    gaps = {}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cost = np.sort(rng.random((6, 6)), axis=1)
        alone, pairs = np.sort(rng.gamma(2, size=(6, 6)), axis=1), 0.4 * rng.normal(size=(5, 6, 6))

        def truth(v, alone=alone, pairs=pairs):
            together = sum(pairs[i][v[..., i], v[..., i + 1]] for i in range(5))
            return alone[at, v].sum(-1) + together

        costs, scores = cost[at, everything].sum(1), truth(everything)
        budget = float(np.quantile(costs, 0.3))
        fitting = scores[costs <= budget]
        optimum, unit = fitting.max(), fitting.max() - np.median(fitting)
        table = {f"x{i}": dict(enumerate(own.tolist())) for i, own in enumerate(cost)}
        for evaluations in (60, 120):
            for noise in (0.0, 0.25 * unit):
                drawn = np.random.default_rng(seed)

                def score(member, truth=truth, drawn=drawn, deviation=0.25 * unit):
                    return truth(vector(member)) + drawn.normal(0, deviation)

                found = nas.search(
                    budget,
                    space=space_of(6),
                    latency=table,
                    score=score,
                    noise=noise,
                    evaluations=evaluations,
                    seed=seed,
                )
                for name in ("best", "expected"):
                    gap = (optimum - truth(np.array(getattr(found, name).path))) / unit
                    key = evaluations, "given" if noise else "unknown", name
                    gaps.setdefault(key, []).append(float(gap))
    for (evaluations, noise, name), own in gaps.items():
        print(f"{evaluations} evaluations, noise {noise}, {name}: mean gap {np.mean(own):.3f}, "
              f"median {np.median(own):.3f}, worst {max(own):.3f}")  # fmt: skip


def calls():
    at = np.arange(12)
    own = np.sort(np.random.default_rng(0).random((12, 6)), axis=1)
    worth = np.random.default_rng(1).random((12, 6))
    pairs = np.random.default_rng(2).normal(size=(11, 6, 6))
    functions = {
        "sum": lambda v: own[at, v].sum(),
        "product": lambda v: np.exp(3 * own[at, v]).prod(),
        "maximum": lambda v: own[at, v].max() + 0.1 * own[at, v].sum(),
        "outliers": lambda v: own[at, v].sum() + 1e6 * (v[0] == v[1]),
        "pairs": lambda v: 30 + sum(pairs[i, v[i], v[i + 1]] for i in range(11)),
    }
    drawn = np.random.default_rng(3).integers(0, 6, size=(20_000, 12))
    for name, function in functions.items():
        costs = np.array([function(v) for v in drawn])
        for share in (0.3, 0.01, 0.001):
            budget, found = float(np.quantile(costs, share)), []
            for seed in range(2):
                try:
                    one = nas.search(
                        budget,
                        space=space_of(12),
                        latency=lambda m, function=function: float(function(vector(m))),
                        score=lambda m: float(worth[at, vector(m)].sum()),
                        evaluations=60,
                        seed=seed,
                    )
                except nas.VitnasError as error:
                    found.append(error.message)
                else:
                    found.append(f"{one.calls['budget']:,} calls for {len(one.candidates)} scores")
            print(f"{name}, {share:.1%} fit: {'; '.join(found)}")


def seconds():
    cost, worth = np.sort(np.random.default_rng(0).random((2, 12, 6)), axis=2)
    table = {f"x{i}": dict(enumerate(own.tolist())) for i, own in enumerate(cost)}
    times = []

    def score(member):
        times.append(time.process_time())
        return float(worth[np.arange(12), vector(member)].sum())

    with tempfile.TemporaryDirectory() as folder:
        settings = dict(space=space_of(12), latency=table, score=score, evaluations=5200,
                        out=f"{folder}/search")  # fmt: skip
        begin = time.process_time()
        first = nas.search(5.0, **settings)
        middle = time.process_time()
        again = nas.search(5.0, resume=True, **settings)
        end = time.process_time()
    for n in (250, 1000, 2000, 5000):
        ms = 1e3 * (times[n + 200 - 1] - times[n - 1]) / 200
        print(f"after {n} scores: {ms:.1f} ms an evaluation")
    print(f"{middle - begin:.0f} s in all; a resume {end - middle:.1f} s, "
          f"{(end - middle) / (middle - begin):.1%}, the same: {again == first}")  # fmt: skip


if __name__ == "__main__":
    for part in sys.argv[1:]:
        {"luck": luck, "calls": calls, "time": seconds}[part]()
