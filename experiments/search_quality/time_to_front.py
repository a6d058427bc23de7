"""How soon a search has the same front, each technique of cheaper evaluation on and off.

    OMP_NUM_THREADS=1 python experiments/search_quality/time_to_front.py    # 42 minutes on one core

Searches of the shipped supernet (`swin:micro`) from scratch, every candidate really scored on 128
images of the search split, on one thread: 64 candidates in batches of 8, for 8, 12, 16 and 20 ms at
once on the shipped table of `torch-cpu`, as it is several budgets that ask for a front. The
techniques: `surrogate` (it screens children; without it plain evolution inside the budgets), `race`
(error 0.05, a look after 64 images, against the best that is no slower), `reuse` (of what first
layers compute, among the candidates of a batch) and `cache` (what was scored is never scored again;
without it a searcher may ask again for what it asked for in an earlier batch). The ways: all on,
each one off, all off; five seeds of each. The first draws of a seed are the same in all ways.

The clock runs from the first question to a searcher: processor time of scoring and searcher
together, wall-clock time beside it. After each candidate stands the hypervolume of the front of all
that were scored to the end: the share of the rectangle from 0 to 20 ms (predicted, less the margin
of the table) and from chance to 100 %. The target is the same for all: the lowest of the ways'
median last hypervolumes, so that every way reaches it with most seeds. A run that never does is
censored: infinitely long in the median; in the range of ratios, which compare seed by seed, it
counts with its end, which is in its favour.

Writes `time_to_front.json` and `time_to_front.png`; killed, it goes on where it was
(`time_to_front.jsonl`). Expected, on two cores of an AMD EPYC
(virtual machine, shared), where equal work differed by up to 7 %: all on needs 0.86 of the seconds
of all off (single seeds 0.67-1.59), and reaches the target with all seeds where all off does with
three; reuse alone saves 15 % (12-35 %) of the same search. Five seeds do not show that the race or
the surrogate makes the front come sooner at this size.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import median

import numpy as np
from evaluation import BUDGET_MS, shipped
from matplotlib.figure import Figure

from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import Scorer
from nas.records import Journal, write_json
from nas.report.pictures import BLUE, GREEN, INK, RED, SAND
from nas.run.scores import Scores, best_rival
from nas.strategy.constraints import Limit, Region
from nas.strategy.loop import BATCH, explore
from nas.strategy.searchers import Searcher, load_propose
from nas.strategy.statistics import hypervolumes
from nas.trellis.graph import decode
from nas.workers import InProcess
from nas.workers.ledger import Ledger

OUT = Path(__file__).with_name("time_to_front.json")
BUDGETS_MS = (8.0, 12.0, 16.0, BUDGET_MS)
TECHNIQUES = ("surrogate", "race", "reuse", "cache")
# Which techniques are on.
WAYS = {
    "all on": set(TECHNIQUES),
    **{f"no {one}": set(TECHNIQUES) - {one} for one in TECHNIQUES},
    "all off": set(),
}
COLORS = dict(zip(WAYS, (BLUE, RED, SAND, GREEN, "#7a5aa6", INK)))


class Forgetful(Searcher):
    """May ask for what it asked for in an earlier batch."""

    def ask(self, n):
        self._seen.clear()
        return super().ask(n)


class Lab:
    """What searches share: regions, and an evaluator for each way with its images rendered."""

    def __init__(self, images: int) -> None:
        self.space, network, data, _, self.table = shipped()
        self.images = images
        trellis = self.table.trellis(self.space)
        limits = [self.table.limit(budget, confidence=0.95) for budget in BUDGETS_MS]
        self.regions = [
            Region(trellis.graph, [Limit.additive("budget", limit, trellis, "ms")])
            for limit in limits
        ]
        self.limit_ms = max(limits)
        self.evaluators = {
            way: Evaluator(network, data, data.search, images, threads=1) for way in WAYS
        }
        for evaluator in self.evaluators.values():
            evaluator.observed(self.space.largest, 0, 1)

    def predict_ms(self, architecture) -> float:
        return self.table.predict(self.space, architecture)


class Search:
    """One search; `candidates` are in order, each with the seconds when its score was there."""

    def __init__(self, lab: Lab, way: str, seed: int, evaluations: int) -> None:
        self.lab, self.way, self.seed, on = lab, way, seed, WAYS[way]
        few = {"screened": 0, "population": max(8, min(64, evaluations // 3))}
        propose = load_propose("evolution", **({} if "surrogate" in on else few))
        make = Searcher if "cache" in on else Forgetful
        self.searcher = make(propose, lab.space.positions, lab.regions, np.random.default_rng(seed))
        lab.evaluators[way].reuse(2**29 if "reuse" in on else 0)
        self.scorer = Scorer(lab.evaluators[way], 0.05 if "race" in on else 0.0)
        self.scores = self.nothing_known()
        self.candidates: list[dict] = []
        self.spent = np.zeros(2)  # seconds of earlier batches

    def nothing_known(self) -> Scores:
        return Scores(self.lab.space, Ledger(InProcess(self.work)), self.lab.images)

    def batch(self) -> None:
        """Ask, score and tell once."""
        self.begin = clocks()
        explore(self.searcher, self.score, BATCH, BATCH)
        self.spent += clocks() - self.begin

    def score(self, paths):
        if "cache" not in WAYS[self.way]:
            self.scores = self.nothing_known()
        return self.scores([decode(self.lab.space, p) for p in paths], "search", self.rival)

    def rival(self, architecture) -> str:
        if "race" not in WAYS[self.way]:
            return ""
        ms = self.lab.predict_ms(architecture)
        return best_rival(self.candidates, "top1_percent", lambda c: c["ms"] <= ms)

    def work(self, payload):
        begin = clocks()
        record = self.scorer(payload)
        end = clocks()
        architecture = self.lab.space.parse(payload.architecture)
        own = {"id": architecture.id, "ms": self.lab.predict_ms(architecture)}
        times = {"at_s": self.spent + end - self.begin, "scoring_s": float((end - begin)[0])}
        self.candidates.append({**own, **record, **times})
        return record

    def told(self) -> dict:
        """What is kept of it, candidates as columns."""
        found, limit_ms = self.candidates, self.lab.limit_ms
        ms = [math.inf if c["dropped"] else c["ms"] for c in found]
        percent = [c["top1_percent"] for c in found]
        # One that is right everywhere, at the limit, makes 100 % the upper side of the rectangle.
        chance = self.lab.space.task.chance_percent
        volumes = hypervolumes([*ms, limit_ms], [*percent, 100.0], limit_ms, chance)
        names = [c["id"] for c in found]
        repeats = [c for i, c in enumerate(found) if c["id"] in names[:i]]
        cpu, wall = np.array([c["at_s"] for c in found]).T.round(2).tolist()
        return {
            "way": self.way, "seed": self.seed,
            "dropped": sum(c["dropped"] for c in found), "repeats": len(repeats),
            "images": sum(c["images"] for c in found),
            "scoring_s": round(sum(c["scoring_s"] for c in found), 2),
            "repeats_s": round(sum(c["scoring_s"] for c in repeats), 2),
            "cpu_s": cpu, "wall_s": wall, "id": names,
            "hypervolume": [round(v, 5) for v in volumes[:-1]],
        }  # fmt: skip


def clocks() -> np.ndarray:
    """Processor time and wall-clock time, in seconds."""
    return np.array([time.process_time(), time.perf_counter()])


def searched(lab: Lab, seed: int, evaluations: int) -> list[dict]:
    """One search in each way, batch by batch in turn, so that all have the same quiet hours."""
    searches = [Search(lab, way, seed, evaluations) for way in WAYS]
    for turn in range(evaluations // BATCH):
        first = (seed + turn) % len(searches)
        for search in searches[first:] + searches[:first]:
            search.batch()
    hits: dict[str, str] = {}
    for candidate in (c for search in searches for c in search.candidates if not c["dropped"]):
        same = hits.setdefault(candidate["id"], candidate["hits"])
        assert same == candidate["hits"]  # to the bit, in all ways
    return [search.told() for search in searches]


def reached(run: dict, target: float, clock: str = "cpu_s") -> float:
    """Seconds until the front is as large as the target; inf if it never is."""
    return next((s for s, v in zip(run[clock], run["hypervolume"]) if v >= target), math.inf)


def summary(runs: list[dict]) -> dict:
    by_way = {way: [r for r in runs if r["way"] == way] for way in WAYS}
    last = {way: median(r["hypervolume"][-1] for r in own) for way, own in by_way.items()}
    target = min(last.values())
    rows = {}
    for way, own in by_way.items():
        seconds = [reached(r, target) for r in own]
        rows[way] = {
            "seconds_to_target": round(median(seconds), 1),
            "wall_seconds_to_target": round(median(reached(r, target, "wall_s") for r in own), 1),
            "reached": sum(map(math.isfinite, seconds)),
            **{f"to {other}": ratio(own, by_way[other], target) for other in ("all on", "all off")},
            "last_hypervolume": last[way],
            **{
                f"median_{key}": median(value(r) for r in own)
                for key, value in {
                    "cpu_s": lambda r: r["cpu_s"][-1],
                    "searcher_s": lambda r: round(r["cpu_s"][-1] - r["scoring_s"], 2),
                    "images": lambda r: r["images"],
                    "dropped": lambda r: r["dropped"],
                    "repeats": lambda r: r["repeats"],
                    "repeats_s": lambda r: r["repeats_s"],
                }.items()
            },
        }
    return {"target": target, "seeds": len(by_way["all on"]), "ways": rows}


def ratio(runs: list[dict], others: list[dict], target: float) -> list[float]:
    """Of the median seconds to the target; the least and the most of those of single seeds."""
    medians = [median(reached(r, target) for r in own) for own in (runs, others)]
    seconds = [[min(reached(r, target), r["cpu_s"][-1]) for r in own] for own in (runs, others)]
    of_seeds = [a / b for a, b in zip(*seconds)]
    return [round(x, 2) for x in (medians[0] / medians[1], min(of_seeds), max(of_seeds))]


def draw(runs: list[dict], target: float, path: Path) -> None:
    """Hypervolume over processor seconds: the median of the seeds, all on and all off with their
    range, each curve as far as the shortest of its runs."""
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.subplots()
    for way, color in COLORS.items():
        own = [r for r in runs if r["way"] == way]
        seconds = np.linspace(0, min(r["cpu_s"][-1] for r in own), 400)
        curves = np.array([
            np.array([0.0, *r["hypervolume"]])[np.searchsorted(r["cpu_s"], seconds, side="right")]
            for r in own
        ])  # fmt: skip
        ends = way in ("all on", "all off")
        axes.plot(seconds, np.median(curves, 0), color=color, lw=2.2 if ends else 1.2, label=way)
        if ends:
            low, high = curves.min(0), curves.max(0)
            axes.fill_between(seconds, low, high, color=color, alpha=0.12, lw=0)
    axes.axhline(target, color="#9aa5b1", lw=0.8, ls=(0, (4, 3)))
    axes.set(xlabel="processor seconds", ylabel="hypervolume of the front", xlim=0)
    axes.set_ylim(min(r["hypervolume"][7] for r in runs))
    axes.grid(True, color="#e5e9ee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=64)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    journal = Journal(options.out.with_suffix(".jsonl"))  # one record a seed
    lab = Lab(options.images)
    Search(lab, "all off", options.seeds, BATCH).batch()  # the first one of a process is slower
    for seed in range(len(journal.read()), options.seeds):
        journal.append({"runs": searched(lab, seed, options.evaluations)})
        print("seed", seed, flush=True)
    runs = [run for record in journal.read() for run in record["runs"]]
    found = summary(runs)
    chosen = {key: getattr(options, key) for key in ("evaluations", "images")}
    write_json(options.out, {"budgets_ms": BUDGETS_MS, **chosen, **found, "runs": runs})
    draw(runs, found["target"], options.out.with_suffix(".png"))
    for way, row in found["ways"].items():
        print(way, row)


if __name__ == "__main__":
    main()
