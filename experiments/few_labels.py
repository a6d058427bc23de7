"""What is learning without labels worth where labels are few?

    python experiments/few_labels.py --space vit:micro@128 mae=FOLDER contrastive=FOLDER

The largest network of a space is trained on 10 and on 100 labelled scenes of each class, from
nothing and from each supernet that is named, which learned without labels (`vitnas train
--objective mae`). Every training takes as many steps of as many pictures, and so as many minutes of
one core: the number is chosen by the speed that is measured first, so that it takes `--minutes`.
One learning rate serves all starts. Each is done with three seeds, which choose the labelled items
as well. On canvases of another size an item lies elsewhere among other clutter, as in any training
on scenes. The score is the accuracy on 1,000 scenes of the test split. Writes
`few_labels-SPACE.csv` (one line for each training, as soon as it is done) and `.png`, and prints
the table: mean and standard deviation over the seeds, and points gained over training from nothing
with the same seed. Where the file is there already, its lines are kept, and what is missing is
trained on as many scenes.

It takes `--minutes` for each of 2 numbers of labels, 3 seeds, and the starts: an hour of one core
for two supernets.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from nas.data import Dataset, Part, load_data
from nas.data.imagefolder import crop_and_flip
from nas.data.scenes import photos
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.network.network import Network
from nas.report.pictures import save
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.supernet import read_card, start_from
from nas.training.trainer import Trainer

OUT = Path(__file__).parent / "results"
SCRATCH = "from nothing"
# Half at half the size, as supernets learn; a plain network has no subnets.
RECIPE = Recipe(images=(0, 4_000, 4_000), batches=(32, 32, 32), learning_rate=1e-3, subnets={})
_TRIED = 3  # steps at each size, to see how fast they are


def with_few(data: Dataset, labels: int, seed: int) -> Dataset:
    """The scenes with so many labelled ones of each class to train on, drawn by a seed."""
    classes = photos("train")[1]
    order = np.random.default_rng(seed).permutation(len(classes))
    picked = [i for c in np.unique(classes) for i in order[classes[order] == c][:labels]]
    return replace(data, train=Part(data.train, picked), augment=crop_and_flip)


def started(space, data: Dataset, recipe: Recipe, start: str) -> Trainer:
    """A training of the largest network, from nothing or from the folder of a supernet."""
    torch.manual_seed(recipe.seed)
    network = Network(space, space.largest)
    if start:
        start_from(network, Path(start))
    return Trainer(network, data, recipe, Supervised(space))


def fitting(space, data: Dataset, minutes: float) -> Recipe:
    """The recipe with as many pictures as take so many minutes of one core."""
    trial = replace(RECIPE, images=tuple(batch * 2 * _TRIED for batch in RECIPE.batches))
    trainer = started(space, data, trial, "")
    seconds = []
    for _ in range(3 * 2 * _TRIED):
        begun = time.process_time()
        trainer.train_step()
        seconds.append(time.process_time() - begun)
    each = [float(np.median(own)) for own in np.array_split(seconds, 3)]
    whole = sum(own * steps for own, steps in zip(each, RECIPE.steps()))
    images = int(sum(RECIPE.images) * 60 * minutes / whole)
    return RECIPE.scaled(images - images % 128)  # whole batches of each size


def trained(space, data: Dataset, recipe: Recipe, start: str, images: int) -> tuple[float, float]:
    """The accuracy on the test split, and the minutes of processor time that the training took."""
    trainer = started(space, data, recipe, start)
    begun = time.process_time()
    for _ in recipe.sizes():
        trainer.train_step()
    minutes = (time.process_time() - begun) / 60
    evaluator = Evaluator(trainer.network.eval(), data, data.test, images, threads=1)
    return evaluator.percent(space.largest), minutes


def table(rows: Sequence[dict]) -> list[tuple[int, str, float, float, float, float]]:
    """For each number of labels and start: mean, its deviation, points gained, their deviation."""
    found = []
    for labels in sorted({row["labels"] for row in rows}):
        by_start: dict[str, dict[int, float]] = {}
        for row in (row for row in rows if row["labels"] == labels):
            by_start.setdefault(row["start"], {})[row["seed"]] = row["test_top1_percent"]
        scratch = by_start[SCRATCH]
        for start, by_seed in by_start.items():
            percents = np.array(list(by_seed.values()))
            gained = np.array([percent - scratch[seed] for seed, percent in by_seed.items()])
            spread = [own.std(ddof=1) if len(own) > 1 else 0.0 for own in (percents, gained)]
            found.append((labels, start, percents.mean(), spread[0], gained.mean(), spread[1]))
    return found


def draw(lines, path: Path) -> None:
    """Bars of accuracy for each start, in a group for each number of labels."""
    labels, starts = (list(dict.fromkeys(own)) for own in list(zip(*lines))[:2])
    figure, axis = plt.subplots(figsize=(6, 4))
    width = 0.8 / len(starts)
    for i, start in enumerate(starts):
        own = [line for line in lines if line[1] == start]
        at = [labels.index(line[0]) + (i - (len(starts) - 1) / 2) * width for line in own]
        axis.bar(at, [x[2] for x in own], width, yerr=[x[3] for x in own], capsize=3, label=start)
    axis.set(xlabel="labelled scenes of each class", ylabel="top-1 on the test split [%]")
    axis.set_xticks(range(len(labels)), labels)
    axis.legend()
    figure.tight_layout()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("starts", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--space", default="mobilevit:micro")
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--images", type=int, default=1000, help="scenes of the test split")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("scenes")
    space = load_space(options.space, data.task)
    starts = {SCRATCH: "", **dict(own.split("=", 1) for own in options.starts)}
    options.out.mkdir(exist_ok=True, parents=True)
    stem = "few_labels-" + re.sub("[:@]", "-", options.space)
    path = options.out / f"{stem}.csv"
    rows = pd.read_csv(path, dtype={"weights": str}).to_dict("records") if path.exists() else []
    if rows:
        recipe = RECIPE.scaled(rows[0]["scenes"])
    else:
        recipe = fitting(space, with_few(data, options.labels[0], 0), options.minutes)
    print(f"{sum(recipe.images):,} scenes each: {recipe.images}", flush=True)
    asked = product(range(options.seeds), options.labels, starts.items())
    for seed, labels, (start, folder) in asked:
        weights = read_card(Path(folder))["fingerprint"] if folder else "none"
        what = {
            "labels": labels, "start": start, "weights": weights, "seed": seed,
            "scenes": sum(recipe.images), "test_images": options.images,
        }  # fmt: skip
        if any(what.items() <= row.items() for row in rows):
            continue
        few, own = with_few(data, labels, seed), replace(recipe, seed=seed)
        percent, minutes = trained(space, few, own, folder, options.images)
        rows.append({**what, "test_top1_percent": round(percent, 2), "minutes": round(minutes, 2)})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(path, index=False)
    lines = table(rows)
    print("| labels a class | start | top-1 [%] | points gained |\n|---|---|---|---|")
    for labels, start, mean, spread, gained, apart in lines:
        more = "" if start == SCRATCH else f"{gained:+.1f} ± {apart:.1f}"
        print(f"| {labels} | {start} | {mean:.1f} ± {spread:.1f} | {more} |")
    draw(lines, options.out / f"{stem}.png")


if __name__ == "__main__":
    main()
