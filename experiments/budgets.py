"""Does pruning pay? Winner against best dense network at five budgets, on many test scenes.

    python experiments/budgets.py --seeds 3 --test-images 2000 --finetune 6400

One search answers all budgets, once for each seed. Finalists meet on all other scenes of the search
split. Winner, best dense network and best network of one sparsity everywhere are measured in turns
and scored on the same test scenes; `error` is one standard error of their difference as if
they were independent, which is more than it is. With `--finetune` both are trained further on as
many images each, in the run of the first seed only, because there are up to ten networks. Dense
networks are searched with as many evaluations as all networks, over the same resolutions, widths
and depths; no space here has a choice of patch sizes. Writes `budgets-SPACE.csv`, one line for each
budget and seed, and for the default space the pictures of docs/search.md; runs go below `--out` and
are resumed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd

import nas
from nas.run.finetuning import finetune, shorter
from nas.run_record import Answer, FineTuning
from nas.settings import Settings
from nas.space.task import share_variance

OUT = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default=Settings.space)
    parser.add_argument("--device", default="torch-cpu")
    parser.add_argument("--budgets", default="6ms,8ms,10ms,12ms,15ms")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--final-images", type=int, default=1600)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--finetune", type=int, default=0, help="images")
    parser.add_argument("--out", type=Path, default=Path("runs") / "budgets")
    options = parser.parse_args()
    slug = options.space.replace(":", "-")
    rows = []
    for seed in range(options.seeds):
        folder = options.out / f"{slug}-{seed}"
        result = nas.search(
            options.budgets.split(","),
            space=options.space,
            device=options.device,
            evaluations=options.evaluations,
            final_images=options.final_images,
            test_images=options.test_images,
            seed=seed,
            out=folder,
            resume=(folder / "settings.json").exists(),
        )
        tuned = None
        if options.finetune and not seed:
            tuned = finetune(folder, recipe=shorter(options.finetune, 0), resume=True)
        for answer in result.answers:
            rows.append({"seed": seed, **row(answer, tuned, result.test_images)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(OUT / f"budgets-{slug}.csv", index=False)
    print(table.groupby("budget_ms").mean(numeric_only=True).round(2).to_string())
    if options.space == Settings.space:
        for name in ("pareto", "kept"):
            picture = options.out / f"{slug}-0" / "pictures" / f"{name}.png"
            shutil.copy(picture, OUT / f"{name}.png")


def row(answer: Answer, tuned: FineTuning | None, scenes: int) -> dict[str, float | str]:
    """What one budget gave: milliseconds, test accuracies, and what was pruned."""
    winner, dense = answer.winner, answer.baseline("best dense")
    rivals = {"dense": dense, "uniform": answer.baseline("best uniform sparsity")}
    found: dict[str, float | str] = {"budget_ms": answer.budget_ms}
    after = {network.id: network.test_percent for network in tuned.networks} if tuned else {}
    for name, candidate in {"winner": winner, **rivals}.items():
        if candidate is None:
            continue
        found[f"{name}_ms"] = candidate.measured_ms
        found[f"{name}_percent"] = round(candidate.test_percent, 2)
        if candidate.id in after:
            found[f"{name}_finetuned_percent"] = round(after[candidate.id], 2)
    if dense is not None:
        found["error"] = round(
            sum(share_variance(c.test_percent, scenes) for c in (winner, dense)) ** 0.5, 2
        )
    found["architecture"] = winner.id
    found["pruned"] = "same" if dense and dense.id == winner.id else pruned(winner.architecture)
    return found


def pruned(architecture: dict) -> str:
    """The resolution and the sparsity of each block, stage by stage."""
    stages = architecture.get("stages", [])
    blocks = [[b.get("sparsity", 0) for b in stage["blocks"]] for stage in stages]
    return f"{architecture['resolution']} px " + " / ".join(
        " ".join(map(str, own)) for own in blocks
    )


if __name__ == "__main__":
    main()
