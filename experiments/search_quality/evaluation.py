"""What racing and reused activations save when subnets are scored, and what racing costs.

    python experiments/search_quality/evaluation.py [children|screened] [--n 24] [--seed 0]

On the shipped supernet (`swin:micro`, 400 images of the search split) two generations within a
budget of 20 ms on the shipped table of `torch-cpu`: `children` of the 6 best shipped
scores, half by mutation (probability 0.1), half by crossover; and `screened`, the best of four
generations of such children by a surrogate of the shipped scores, as a search proposes them. Each
child is scored in four ways in turn (neither, racing against the best parent, reuse, both), in the
one order that `Evaluator.plan` gives, on one thread. Then races with other errors, rivals and first
looks are replayed on the outcomes. Hits must be the same to the bit in all four ways.

Writes `evaluation.json` beside this file, a generation given alone into what is there. It holds
one run of `children` and one of `screened --n 12`, both on two cores of an Intel Xeon under a load
of 4 to 8: an hour together, and CPU times are what to compare. As sums of CPU time: 24 children
1.12x by racing (5 dropped, none of them as good as the rival), 1.20x by reuse, 1.41x by both, where
1.12 x 1.20 is 1.34, so that 10 % more or less mean nothing; 12 screened 1.00x (none dropped),
1.61x, 1.62x.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.racing import Race
from nas.families import load_space
from nas.latency.library import shipped_folder
from nas.latency.table import LatencyTable
from nas.records import Journal, read_json, write_json
from nas.runtimes.host import keep_heap
from nas.strategy.gaussian_process import Surrogate
from nas.training.supernet import load_supernet, supernet_folder
from nas.trellis.graph import decode, encode

SPACE, TABLE = "swin:micro", "torch-cpu/swin-micro"
BUDGET_MS, IMAGES, PARENTS = 20.0, 400, 6
OUT = Path(__file__).with_name("evaluation.json")
# Whether it races, whether it reuses activations.
WAYS = {
    "neither": (False, False),
    "race": (True, False),
    "reuse": (False, True),
    "both": (True, True),
}


def shipped():
    """The space, its supernet with the scenes, its folder, and its table of `torch-cpu`."""
    torch.set_num_threads(1)
    keep_heap()
    space, data = load_space(SPACE), load_data("scenes")
    folder = supernet_folder(SPACE, data)
    network, _ = load_supernet(folder, SPACE, data)
    return space, network, data, folder, LatencyTable.load(shipped_folder() / TABLE)


def offspring(within, parents, n: int, rng) -> np.ndarray:
    """Half by mutation, half by crossover."""
    mothers, fathers = (parents[rng.integers(len(parents), size=n)] for _ in range(2))
    half = n // 2
    mutants = within.mutate(mothers[:half], 0.1, rng)
    return np.concatenate([mutants, within.crossover(mothers[half:], fathers[half:], rng)])


def fresh(paths, known, n: int) -> np.ndarray:
    """The first n that are new and differ from each other."""
    seen = {tuple(path) for path in known.tolist()}
    kept = []
    for path in paths.tolist():
        if tuple(path) not in seen and len(kept) < n:
            seen.add(tuple(path))
            kept.append(path)
    return np.array(kept)


def screened(within, positions, paths, scores, n: int, rng) -> np.ndarray:
    surrogate = Surrogate.fit(positions, paths, scores)
    parents = paths[np.argsort(-scores)[:16]]
    for _ in range(4):
        pool = np.unique(np.concatenate([parents, offspring(within, parents, 240, rng)]), axis=0)
        pool = pool[np.argsort(-surrogate.predict(pool))]
        parents = pool[:16]
    return fresh(pool, paths, n)


def timed(evaluators, architectures, rival, race) -> dict[str, list]:
    """(seconds, CPU seconds, Scored) of each architecture in each way, the ways in turn."""
    results: dict[str, list] = {way: [] for way in evaluators}
    plans = [evaluator.plan(architectures) for evaluator in evaluators.values()]
    ordered = plans[0]
    for i, architecture in enumerate(ordered):
        turns = list(evaluators)
        for way in turns[i % 4 :] + turns[: i % 4]:
            wall, cpu = time.perf_counter(), time.process_time()
            hits = rival if WAYS[way][0] else None
            scored = evaluators[way].score(architecture, hits, race)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            results[way].append((*spent, scored))
            print(i, way, *spent, scored.images, file=sys.stderr, flush=True)
    return results


def summary(results) -> dict[str, object]:
    plain = results["neither"]
    out: dict[str, object] = {}
    for way, scores in results.items():
        for (*_, scored), (*_, whole) in zip(scores, plain):
            assert np.array_equal(scored.observed, whole.observed[: scored.images])
        wall, cpu = (np.array([s[i] for s in scores]) for i in (0, 1))
        out[way] = {
            "wall_s": round(float(wall.sum()), 2),
            "cpu_s": round(float(cpu.sum()), 2),
            "faster_cpu": round(float(sum(p[1] for p in plain) / cpu.sum()), 3),
            "faster_wall": round(float(sum(p[0] for p in plain) / wall.sum()), 3),
            "ratio_of_median_cpu": round(median(p[1] for p in plain) / float(np.median(cpu)), 3),
            "dropped": sum(s.dropped for *_, s in scores),
            "images": sum(s.images for *_, s in scores),
        }
    return out


def replayed(wholes, rivals) -> list[dict[str, object]]:
    """Races of all children with other settings, on outcomes that are known."""
    rows = []
    for name, rival in rivals.items():
        for error in (0.05, 0.1, 0.2, 0.4):
            for first in (32, 64, 128):
                race = Race.doubling(IMAGES, first, error)
                raced = [race.run(lambda a, b, w=w: w[a:b], rival) for w in wholes]
                lost = [(r, w) for r, w in zip(raced, wholes) if r.dropped]
                rows.append({
                    "rival": name, "error": error, "first": first,
                    "images_share": round(sum(r.images for r in raced) / IMAGES / len(raced), 3),
                    "dropped": len(lost),
                    "not_worse": sum(int(w.sum()) >= int(rival.sum()) for w in wholes),
                    "dropped_not_worse": sum(int(w.sum()) >= int(rival.sum()) for _, w in lost),
                    "bias_points": round(float(np.mean(
                        [100 * (r.outcomes.mean() - w.mean()) for r, w in lost] or [0.0])), 2),
                })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", choices=("children", "screened"))
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    space, network, data, folder, table = shipped()
    within = table.trellis(space).within(BUDGET_MS)
    records = Journal(folder / "scores.jsonl").read()
    known = {space.parse(r["architecture"]): r["top1_percent"] for r in records}
    fits = [a for a in known if table.predict(space, a) <= BUDGET_MS]
    scores = np.array([known[a] for a in fits])
    paths = np.array([encode(space, a) for a in fits])
    parents = paths[np.argsort(-scores, kind="stable")[:PARENTS]]

    rng = np.random.default_rng(options.seed)
    n = options.n
    generations = {
        "children": lambda: fresh(offspring(within, parents, 8 * n, rng), paths, n),
        "screened": lambda: screened(within, space.positions, paths, scores, n, rng),
    }
    evaluators = {
        way: Evaluator(network, data, data.search, IMAGES, threads=1, reuse=2**29 * reuse)
        for way, (_, reuse) in WAYS.items()
    }
    # Images are rendered before the clock runs.
    ends = decode(space, parents[0]), decode(space, parents[-1])
    (best, last), *_ = [[e.observed(a) for a in ends] for e in evaluators.values()]
    race = Race.doubling(IMAGES)
    report = read_json(OUT) if OUT.exists() else {}
    report |= {
        "command": "python experiments/search_quality/evaluation.py",
        "space": SPACE, "budget_ms": BUDGET_MS, "images": IMAGES, "seed": options.seed,
        "race": {"sizes": race.sizes, "error": race.error},
        "parents_top1_percent": [float(100 * hits.mean()) for hits in (best, last)],
    }  # fmt: skip
    for name in [options.only] if options.only else generations:
        own = generations[name]()
        results = timed(evaluators, [decode(space, path) for path in own], best, race)
        wholes = [scored.observed for *_, scored in results["neither"]]
        report[name] = {
            "n": len(own),
            "top1_percent": [float(100 * hits.mean()) for hits in wholes],
            "ways": summary(results),
            "races": replayed(wholes, {"best parent": best, "last parent": last}),
        }
        write_json(OUT, report)
        print(name, json.dumps(report[name]["ways"], indent=1), flush=True)


if __name__ == "__main__":
    main()
