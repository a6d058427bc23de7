"""What each ingredient of an adaptation is worth: arms from one supernet, on the same images.

    vitnas train --space mobilenetv3:micro --out supernet
    python experiments/adaptation.py supernet --images 3200 --size 112

Every arm trains the largest network on the labels; what it trains besides is in `ARMS`. `front`
draws near-optimal networks of a band of MACs, as a sum over their choices predicts them that is
fitted to the shipped scores of the space (PreNAS, Wang et al., ICML 2023, draws by a proxy without
training; these scores are of weights that were adapted, so they favour this arm). All arms start
from the same weights and see the same scenes in the same order, on canvases of `--size` px;
`half size` sees them at half of it. `largest` is the same family trained dense only for as many
images.

Scored are networks with one sparsity everywhere, the smallest, and the best predicted within three
budgets, on the same scenes of the search split at `--size`. Writes `adaptation.csv`: accuracies in
percent, the mean over all networks, points over `largest` with the standard error over scenes, and
processor seconds. What each scene gave goes below `--out`, where a stopped study goes on. 112 px
take ten minutes of one core for each seed, 224 px forty.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import torch

from nas.data import Dataset, load_data
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.network.network import Network
from nas.progress import bar
from nas.records import Journal
from nas.run.search import uniform
from nas.runtimes.host import quiet_process
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.strategy.ridge import Ridge
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import ADAPTATION, Recipe
from nas.training.subnets import Subnets, bands
from nas.training.supernet import load_supernet, read_card, supernet_folder
from nas.training.trainer import Trainer
from nas.trellis.graph import decode, encode

OUT = Path(__file__).parent / "results"
SPARSITIES = (0, 20, 40, 60, 80)
BATCH, RATE, IMAGES = 16, 5e-4, 400


@dataclass(frozen=True)
class Arm:
    """What an adaptation trains besides the largest network on the labels."""

    subnets: Mapping[str, float]
    teacher: bool = False
    half: bool = False  # on canvases of half the size


RECIPE = ADAPTATION.subnets
ARMS = {
    "none": None,
    "largest": Arm({}),
    "scheduled": Arm({"scheduled": 1}),
    "band": Arm({"band": 1}),
    "smallest": Arm({"smallest": 0.25}),
    "front": Arm({"front": 1}),
    "recipe": Arm(RECIPE),
    "recipe, front for band": Arm({"scheduled": 1, "front": 1, "smallest": 0.25}),
    "recipe, external teacher": Arm(RECIPE, teacher=True),
    "recipe, half size": Arm(RECIPE, half=True),
}


class WithFront(Subnets):
    """Subnets of one more kind: `front`, near-optimal in a band of MACs by predicted scores."""

    def __init__(self, space: SearchSpace, arm: Arm, seed: int, ridge: Ridge) -> None:
        super().__init__(space, arm.subnets, seed)
        self.ridge = ridge

    def _front(self, step: int, rng: Random) -> Architecture:
        return best_of_band(self.space, self.ridge, rng.randrange(1, len(bands(self.space))), rng)


def best_of_band(
    space: SearchSpace, ridge: Ridge, band: int, rng: Random | None = None
) -> Architecture:
    """The best predicted network of a band of MACs, or one that is nearly so if `rng` is given.

    Then the score of every choice has noise, all together as much as the prediction errs.
    """
    spread = ridge.error / len(space.positions) ** 0.5 if rng else 0.0
    noise = np.random.default_rng(rng.getrandbits(64) if rng else 0)
    tables = (
        [scores + noise.normal(0, spread, scores.shape) for scores in own] for own in ridge.tables
    )
    within = bands(space)[band]
    return decode(space, max(map(within.best, tables), key=lambda found: found[1])[0])


def shipped_ridge(space: SearchSpace, data: Dataset) -> Ridge:
    """What choices add to a score, by the shipped scores, each less the mean of its resolution."""
    records = Journal(supernet_folder(space.name, data) / "scores.jsonl").read()
    found = [load_space(space.base, data.task).parse(r["architecture"]) for r in records]
    scores = pd.Series([r["top1_percent"] for r in records])
    scores -= scores.groupby([a.resolution for a in found]).transform("mean")
    size = space.largest.resolution
    paths = np.array([encode(space, replace(a, resolution=size)) for a in found])
    return Ridge.fit(space.positions, paths, scores.to_numpy())


def scored(space: SearchSpace, ridge: Ridge) -> dict[str, Architecture]:
    """The networks that are compared, by name."""
    size = space.largest.resolution
    found = {f"largest, {s} %": uniform(space, size, s) for s in SPARSITIES}
    found |= {f"best of band {b}": best_of_band(space, ridge, b) for b in (1, 3, 5)}
    return {**found, "smallest": space.smallest}


def adapt(
    network: Network, data: Dataset, arm: Arm, images: int, seed: int, ridge: Ridge, teacher: Path
) -> float:
    """Train one arm in place; returns processor seconds."""
    phases = (0, images, 0) if arm.half else (0, 0, images)
    recipe = Recipe(phases, (BATCH, BATCH, BATCH), learning_rate=RATE, subnets={}, seed=seed)
    taught = None
    if arm.teacher:
        taught, _ = load_supernet(teacher, read_card(teacher)["space"], data)
    trainer = Trainer(network, data, recipe, Supervised(network.space), taught)
    trainer.subnets = WithFront(network.space, arm, seed, ridge)
    start = time.process_time()
    with bar("train", sum(recipe.steps()), "steps") as advance:
        for _ in range(sum(recipe.steps())):
            advance(1, f"loss {float(trainer.train_step()):.2f}")
    return time.process_time() - start


def hits(
    network: Network, data: Dataset, networks: Mapping[str, Architecture]
) -> dict[str, list[int]]:
    """Which of the first scenes of the search split each network answers rightly."""
    evaluator = Evaluator(network, data, data.search, IMAGES, threads=1)
    names = {architecture: name for name, architecture in networks.items()}
    return {
        names[a]: np.asarray(evaluator.score(a).outcomes, int).tolist()
        for a in evaluator.plan(networks.values())
    }


def table(records: list[dict]) -> pd.DataFrame:
    """One line for each arm and seed, and how far it is ahead of `largest` of that seed."""
    rows = []
    for r in records:
        right = pd.DataFrame(r["hits"])
        row = {key: r[key] for key in ("arm", "seed", "images")}
        row["processor_s"] = round(r["seconds"])
        row |= {name: round(100 * right[name].mean(), 2) for name in right}
        row["mean"] = round(100 * right.to_numpy().mean(), 2)
        rival = [o for o in records if (o["arm"], o["seed"]) == ("largest", r["seed"])]
        if rival:
            ahead = (right - pd.DataFrame(rival[0]["hits"])[right.columns]).mean(axis=1) * 100
            row["ahead"], row["error"] = round(ahead.mean(), 2), round(ahead.sem(), 2)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("supernet", type=Path, help="folder of a supernet that was not adapted")
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--size", type=int, default=112, help="pixels of a side")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--teacher", type=Path, help="a supernet; the shipped mobilevit:micro")
    parser.add_argument("--out", type=Path, default=Path("runs") / "adaptation")
    options = parser.parse_args()
    quiet_process()
    data, card = load_data("scenes"), read_card(options.supernet)
    teacher = options.teacher or supernet_folder("mobilevit:micro", data)
    trained, _ = load_supernet(options.supernet, card["space"], data)
    space, begin = trained.space.restrict("resolution", options.size), trained.state_dict()
    network = Network(space, space.largest)
    ridge = shipped_ridge(space, data)
    networks = scored(space, ridge)
    journal = Journal(options.out / f"{card['fingerprint']}-{options.size}-{options.images}.jsonl")
    for seed in range(options.seeds):
        for name in options.arms:
            if any((r["arm"], r["seed"]) == (name, seed) for r in journal.read()):
                continue
            torch.manual_seed(seed)
            network.load_state_dict(begin)
            arm, images = ARMS[name], options.images if ARMS[name] else 0
            seconds = adapt(network, data, arm, images, seed, ridge, teacher) if arm else 0.0
            found = hits(network, data, networks)
            journal.append(
                {"arm": name, "seed": seed, "images": images, "seconds": seconds, "hits": found}
            )
            print(table(list(journal.read())).iloc[-1].to_dict(), flush=True)
    result = table(list(journal.read()))
    result.to_csv(OUT / "adaptation.csv", index=False)
    print(result.to_string(index=False))
    chosen = {name: json.loads(a.to_json()) for name, a in networks.items() if "band" in name}
    print(json.dumps(chosen))


if __name__ == "__main__":
    main()
