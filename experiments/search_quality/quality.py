"""How far from the optimum a search ends, for our default and what could be used instead.

`OMP_NUM_THREADS=1 python experiments/search_quality/quality.py` (about an hour on two cores) runs
four problems (`problems.py`), 20 seeds of each, for `evolution` (our default), `nsga2` (pymoo),
`tpe` (Optuna) and `random`, all of them proposing from inside the budget, and `published`: the
evolutionary search of once-for-all and SparseViT with its rejection sampling (population 100,
parents 25, mutation 0.1, half mutated and half crossed); `unscreened` is our evolution without its
surrogate. It writes `quality.json` and
`quality.png`. Expected: at equal evaluations the median gap of `evolution` is at most half of the
best other's on every problem. Results depend on seeds only, not on the machine's speed.

A gap is the distance from the optimum of what a user would take (the highest score seen; of a noisy
problem, for `evolution`, the highest expected score), in units of the distance from the median
architecture that fits. `denoised` is the same for the others, had they our surrogate afterwards.
"""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from problems import EVALUATIONS, PROBLEMS

from nas.strategy.constraints import Limit, Region
from nas.strategy.gaussian_process import Surrogate
from nas.strategy.loop import Score, explore
from nas.strategy.searchers import Searcher, load_propose

HERE = Path(__file__).parent
OTHERS = ("nsga2", "tpe", "random", "published")
SEARCHERS = ("evolution", *OTHERS, "unscreened")
AT = (25, 50, 75, 100, 150, 200, 250, 300)


def published(problem, evaluations, rng):
    """Paths and scores in order, by evolution as published; what does not fit is drawn again."""
    sizes = np.array([len(p.values) for p in problem.positions])
    within = problem.trellis.within(problem.budget)

    def fitting(make, parents):
        while True:
            child = make(parents)
            cost = problem.trellis.costs_of(child[None])[0]
            if cost <= problem.budget:
                return child

    def mutated(parents):
        child = parents[rng.integers(len(parents))].copy()
        redrawn = rng.random(len(sizes)) < 0.1
        child[redrawn] = rng.integers(sizes)[redrawn]
        return child

    def crossed(parents):
        a, b = parents[rng.integers(len(parents), size=2)]
        return np.where(rng.random(len(sizes)) < 0.5, a, b)

    # First draws as rejection sampling would give them, in less time.
    population = within.sample(min(100, evaluations), rng)
    fitness = problem.score(population, rng)
    paths, scores = [population], [fitness]
    while (left := evaluations - sum(map(len, paths))) > 0:
        top = np.argsort(-fitness, kind="stable")[:25]
        parents, theirs = population[top], fitness[top]
        makers = [mutated] * 37 + [crossed] * 38
        children = np.array([fitting(make, parents) for make in makers[:left]])
        fitness = problem.score(children, rng)
        paths.append(children)
        scores.append(fitness)
        population = np.concatenate([parents, children])
        fitness = np.concatenate([theirs, fitness])
    return np.concatenate(paths), np.concatenate(scores)


def searched(name, problem, evaluations, seed):
    rng = np.random.default_rng(1000 + seed)
    if name == "published":
        return published(problem, evaluations, rng)
    limit = Limit.additive("budget", problem.budget, problem.trellis)
    region = Region(problem.trellis.graph, [limit])
    unscreened = {"screened": 0, "population": 96} if name == "unscreened" else {}
    propose = load_propose("evolution" if unscreened else name, **unscreened)
    searcher = Searcher(propose, problem.positions, [region], np.random.default_rng(seed))
    explore(searcher, lambda paths: [Score(s) for s in problem.score(paths, rng)], evaluations)
    return searcher.known.paths, searcher.known.scores


def gaps(problem, paths, scores, at):
    """The gap of the highest score among the first so many, for each number."""
    return [problem.gap(paths[int(np.argmax(scores[:n]))]) for n in at]


def one(job):
    problem_name, name, seed = job
    problem = PROBLEMS[problem_name](seed)
    start = time.perf_counter()
    evaluations = EVALUATIONS[problem_name]
    paths, scores = searched(name, problem, evaluations, seed)
    seconds = time.perf_counter() - start
    at = [n for n in AT if n <= evaluations]
    record = {"problem": problem_name, "searcher": name, "seed": seed, "at": at,
              "seconds": round(seconds, 2)}  # fmt: skip
    record["gaps"] = gaps(problem, paths, scores, at)
    if problem.noise:
        clean = []
        for n in at:
            surrogate = Surrogate.fit(problem.positions, paths[:n], scores[:n])
            clean += gaps(problem, paths[:n], surrogate.predict(paths[:n]), [n])
        record["denoised"] = clean
    return record


def summary(records):
    """Medians and quartiles by problem and searcher; ours against the best other."""
    found = {}
    for problem in dict.fromkeys(r["problem"] for r in records):
        rows = {}
        for name in SEARCHERS:
            own = [r for r in records if (r["problem"], r["searcher"]) == (problem, name)]
            if own:
                key = "denoised" if name == "evolution" and "denoised" in own[0] else "gaps"
                quartiles = np.percentile([r[key] for r in own], (25, 50, 75), axis=0).round(4)
                rows[name] = {"at": own[0]["at"], "q25": quartiles[0].tolist(),
                              "median": quartiles[1].tolist(), "q75": quartiles[2].tolist(),
                              "seconds": round(float(np.median([r["seconds"] for r in own])), 2),
                              "seeds": len(own)}  # fmt: skip
                if "denoised" in own[0]:
                    clean = np.median([r["denoised"] for r in own], axis=0).round(4)
                    rows[name]["median_denoised"] = clean.tolist()
        others = np.min([rows[n]["median"] for n in rows if n in OTHERS], axis=0)
        ratio = np.array(rows["evolution"]["median"]) / np.maximum(others, 1e-9)
        found[problem] = {"searchers": rows, "ratio_to_best_other": ratio.round(3).tolist()}
    return found


def draw(found, path):
    from matplotlib.figure import Figure

    from nas.report.pictures import SERIES

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, (problem, own) in zip(figure.subplots(2, 2).flat, found.items()):
        for color, (name, row) in zip(SERIES, own["searchers"].items()):
            axes.plot(row["at"], np.maximum(row["median"], 1e-3), color=color, marker="o", ms=3.5,
                      lw=2.2 if name == "evolution" else 1.3, label=name)  # fmt: skip
            low, high = np.maximum(row["q25"], 1e-3), np.maximum(row["q75"], 1e-3)
            axes.fill_between(row["at"], low, high, color=color, alpha=0.12, lw=0)
        axes.set(yscale="log", title=problem, xlabel="evaluations", ylabel="gap to the optimum")
        axes.grid(True, color="#e5e9ee")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "quality.json")
    options = parser.parse_args()
    jobs = [
        (problem, name, seed)
        for problem in options.problems.split(",")
        for seed in range(options.seeds)
        for name in SEARCHERS
    ]
    kept = options.out.with_suffix(".jsonl")
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(r["problem"], r["searcher"], r["seed"]) for r in records}
    with Pool(options.processes) as pool, kept.open("a") as file:
        for record in pool.imap_unordered(one, [job for job in jobs if job not in known]):
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
    found = summary(records)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, options.out.with_suffix(".png"))
    for problem, own in found.items():
        print(problem, "ratio to the best other at", own["searchers"]["evolution"]["at"])
        print("   ", own["ratio_to_best_other"])


if __name__ == "__main__":
    main()
