"""Does pruning pay for segmenters? Winners against dense networks, and against smaller pictures.

    python experiments/segmenters.py --budgets 448=25ms,40ms,60ms --budgets 224=6ms,9ms,12ms

For each size of the pictures one search answers all budgets, on the shipped scenes with masks (with
`--supernet` on weights of one's own). At each budget the winner is compared with the best dense
network, and with what people do who have no pruning: the winner without it, at a smaller picture.
Then of all that was scored the dense network is found that another one, as good on the search
split, beats by the largest factor of predicted latency. All of these are measured in turns in one
fresh process, and scored on the same 1,000 test scenes; both only decide what is reported. Writes
`results/segmenters.csv`; runs go below `--out` and are resumed. An hour on two idle cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

import nas
from nas.evaluation.accuracy import Evaluator
from nas.latency.end_to_end import measure_fresh
from nas.report.saved_run import SavedRun, known_scores
from nas.run.inputs import source_of
from nas.run.search import dense_space
from nas.settings import Settings
from nas.space.architecture import Architecture
from nas.tasks.segmentation import Segmentation
from nas.training.supernet import load_supernet

OUT = Path(__file__).parent / "results"
COLUMNS = ["px", "budget_ms", "network", "resolution", "measured_ms", "miou", "error", "id"]


@dataclass(frozen=True)
class Compared:
    """A network of the comparison: of which budget, and what it stands for."""

    budget_ms: float | None
    network: str
    architecture: Architecture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = Segmentation.usual
    parser.add_argument("--space", default=usual["space"])
    parser.add_argument("--data", default=usual["data"])
    parser.add_argument("--supernet", default=Settings.supernet)
    parser.add_argument("--budgets", action="append", required=True, help="PX=MS,MS,MS")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--search-images", type=int, default=Settings.search_images)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs") / "segmenters")
    parser.add_argument("--results", type=Path, default=OUT / "segmenters.csv")
    options = parser.parse_args()
    rows = []
    for size, _, budgets in (text.partition("=") for text in options.budgets):
        folder = options.out / f"{options.space.replace(':', '-')}-{size}"
        nas.search(
            budgets.split(","),
            space=f"{options.space}@{size}" if size != str(largest(options)) else options.space,
            data=options.data,
            supernet=options.supernet,
            evaluations=options.evaluations,
            search_images=options.search_images,
            test_images=options.test_images,
            out=folder,
            resume=(folder / "settings.json").exists(),
        )
        rows += [{"px": size, **row} for row in judged(SavedRun.load(folder))]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.to_csv(options.results, index=False)
    print(table.drop(columns="id").to_string(index=False))


def largest(options: argparse.Namespace) -> int:
    """The largest size of the space, at which other sizes compete, too."""
    return nas.load_space(options.space, nas.load_data(options.data).task).largest.resolution


def judged(run: SavedRun) -> list[dict[str, object]]:
    """What is compared in a run, measured in turns and scored on the test split."""
    compared = [*of_budgets(run), *equally_good(run)]
    own = list(dict.fromkeys(c.architecture for c in compared))
    times = measure_fresh(run.record.device, run.space, own)
    data = nas.load_data(run.record.data)
    network, _ = load_supernet(source_of(run.settings, data), run.record.space, data)
    evaluator = Evaluator(network, data, data.test, run.record.test_images)
    scores = [evaluator.score(architecture) for architecture in own]
    found = {
        architecture: {
            "resolution": architecture.resolution,
            "measured_ms": round(median(time.samples), 2),
            "miou": round(score.percent, 2),
            "error": round(score.variance**0.5, 2),
            "id": architecture.id,
        }
        for architecture, time, score in zip(own, times, scores)
    }
    return [
        {"budget_ms": c.budget_ms, "network": c.network, **found[c.architecture]} for c in compared
    ]


def of_budgets(run: SavedRun) -> list[Compared]:
    """For each budget the winner, the best dense network, and the winner dense and smaller."""
    found = []
    sizes = run.space.domain.domains[0][1].values
    for answer in run.record.answers:
        winner = run.architecture(answer.winner)
        found.append(Compared(answer.budget_ms, "winner", winner))
        if dense := answer.baseline("best dense"):
            found.append(Compared(answer.budget_ms, "best dense", run.architecture(dense)))
        for size in [size for size in sizes if size < winner.resolution] or sizes[:1]:
            resized = unpruned(run, winner, size)
            found.append(Compared(answer.budget_ms, f"unpruned at {size} px", resized))
    return found


def unpruned(run: SavedRun, architecture: Architecture, size: int) -> Architecture:
    """The same network without pruning, for pictures of another size."""
    data = {**json.loads(architecture.to_json()), "resolution": size}
    for stage in data["stages"]:
        for block in stage["blocks"]:
            if "sparsity" in block:
                block["sparsity"] = 0
    return run.space.parse(json.dumps(data))


def equally_good(run: SavedRun) -> list[Compared]:
    """The two networks, one of them dense, that differ most in latency at equal search scores."""
    dense, key = dense_space(run.space), f"{run.record.metric.name}_percent"
    scored = [
        (run.table.predict(run.space, own), record[key], own)
        for record in known_scores(run.folder, run.record.metric.name)
        if "error" not in record and not record.get("dropped")
        for own in [run.space.parse(record["architecture"])]
    ]
    pairs = []
    for ms, percent, own in scored:
        if own not in dense:
            continue
        fastest = min((other for other in scored if other[1] >= percent), key=lambda o: o[0])
        best_dense = min(o[0] for o in scored if o[1] >= percent and o[2] in dense)
        if ms == best_dense:
            pairs.append((ms / fastest[0], own, fastest[2]))
    if not pairs:
        return []
    factor, slow, fast = max(pairs, key=lambda pair: pair[0])
    return [
        Compared(None, f"dense, predicted {factor:.2f} times as slow", slow),
        Compared(None, "as good on the search split", fast),
    ]


if __name__ == "__main__":
    main()
