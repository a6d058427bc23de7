"""Is a search by scores of features trustworthy? Do they rank networks as their accuracy does?

    python experiments/label_free.py --space mobilevit:micro --pretrained contrastive=FOLDER

Subnets of a supernet that learned from labels are drawn at random and scored three times on the
same scenes of the search split: by top-1 accuracy, by their nearest neighbours, and by a linear
probe, both fitted to 500 labelled references. `--pretrained NAME=FOLDER` names supernets of the
same space that learned without labels: their subnets of the same architectures are scored by their
neighbours, too, and those that learned from captions by the names of classes (zero-shot), which is
what a search without labels has. Writes `label_free-SPACE.csv` and `.png`; prints Kendall's tau of
each score against the accuracy, with the interval that holds 95 of 100 draws of as many subnets.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from random import Random

import matplotlib.pyplot as plt
import numpy as np

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.latency.fit import kendall_tau
from nas.progress import bar
from nas.report.pictures import save
from nas.scores import load_score
from nas.text.encoder import has_texts
from nas.training.supernet import load_supernet, supernet_folder

OUT = Path(__file__).parent / "results"


def interval(a: np.ndarray, b: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of Kendall's tau over draws of subnets with replacement."""
    rng = np.random.default_rng(0)
    picked = rng.integers(0, len(a), (draws, len(a)))
    low, high = np.quantile([kendall_tau(a[i], b[i]) for i in picked], (0.025, 0.975))
    return float(low), float(high)


def draw(columns: dict[str, np.ndarray], path: Path) -> None:
    """One panel for each score: what it says of the subnets over their accuracy."""
    top1, *others = columns.items()
    across = min(3, len(others))
    down = -(-len(others) // across)
    figure, axes = plt.subplots(down, across, figsize=(4 * across, 4 * down), squeeze=False)
    for axis in axes.flat[len(others) :]:
        axis.set_axis_off()
    for axis, (name, percents) in zip(axes.flat, others):
        axis.scatter(top1[1], percents, s=18)
        axis.set(
            xlabel="top-1 accuracy [%]",
            ylabel=f"{name.replace('_', ' ')} [%]",
            title=f"Kendall's tau {kendall_tau(top1[1], percents):.2f}",
        )
    figure.tight_layout()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilevit:micro")
    parser.add_argument("--supernet", default="", help="trained with labels; default: the shipped")
    parser.add_argument("--pretrained", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--references", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data = load_data("scenes")
    folder = Path(options.supernet) if options.supernet else supernet_folder(options.space, data)
    network, _ = load_supernet(folder, options.space, data)
    scores = {name: load_score(name, data, folder, options.references) for name in ("knn", "probe")}
    judged = {"top1": (network, None), **{name: (network, own) for name, own in scores.items()}}
    for name, own in (word.split("=", 1) for word in options.pretrained):
        other, _ = load_supernet(Path(own), options.space, data)
        judged[f"knn_{name}"] = (other, scores["knn"])
        if has_texts(Path(own)):
            metric = load_score("zero-shot", data, Path(own), 0)
            judged[f"zero_shot_{name}"] = (metric.searched(other, data), metric)
    drawn = [network.space.draw(Random(i)) for i in range(options.count)]
    found: dict[str, list[float]] = {}
    with bar("score", len(judged) * len(drawn), "subnets") as advance:
        for name, (own, metric) in judged.items():
            evaluator = Evaluator(
                own, data, data.search, options.images, metric=metric, threads=options.threads
            )
            by_id = {}
            for architecture in evaluator.plan(drawn):
                by_id[architecture.id] = evaluator.percent(architecture)
                advance(1, f"{name} {by_id[architecture.id]:.1f} %")
            found[name] = [by_id[architecture.id] for architecture in drawn]
    columns = {name: np.array(percents) for name, percents in found.items()}
    OUT.mkdir(exist_ok=True)
    stem = f"label_free-{options.space.replace(':', '-')}"
    with (OUT / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", *(f"{name}_percent" for name in columns)))
        writer.writerows(zip([a.id for a in drawn], *columns.values()))
    draw(columns, OUT / f"{stem}.png")
    for name, percents in list(columns.items())[1:]:
        low, high = interval(columns["top1"], percents)
        tau = kendall_tau(columns["top1"], percents)
        print(f"{name}: Kendall's tau {tau:.2f} ({low:.2f} to {high:.2f}) on {len(drawn)} subnets")


if __name__ == "__main__":
    main()
