"""Score architectures of a supernet: the journal that a search of its space starts from.

    python experiments/score_architectures.py SUPERNET --count 600

Architectures are drawn in groups of eight that share their first stage, so that its activations are
computed once. Each group comes from one of six bands of MACs, each as much dearer than the one
before: half of the groups are uniform in the band (`random`), a quarter is uniform in its dense
part (`dense`), and a quarter has the largest sizes under a random schedule (`scheduled`). Besides
come the largest networks of each resolution with one sparsity everywhere (`uniform`) and the
smallest. All are scored on the first 400 scenes of the search split, and then on the next 400, for
the finals of a search. The test split is not touched, but for the one figure of the largest network
that the card carries. Appends to `scores.jsonl` and `finals.jsonl` beside the weights and goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from nas.data import Dataset, load_data
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import tested_record
from nas.network.network import Network
from nas.progress import bar
from nas.records import Journal, read_json, write_json
from nas.run.examination import rest_of
from nas.run.known import FINALS
from nas.run.search import sparsities, uniform
from nas.runtimes.host import keep_heap
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.training.subnets import bands, schedules
from nas.training.supernet import load_supernet, read_card
from nas.trellis.graph import decode
from nas.versions import layer_code

KINDS = ("random", "scheduled", "random", "dense")
GROUP, IMAGES, FINAL_IMAGES, TEST_IMAGES = 8, 400, 400, 500


def baselines(space: SearchSpace) -> dict[Architecture, str]:
    """What every search compares with: one sparsity everywhere, and the smallest."""
    found = {
        uniform(space, resolution, sparsity): "uniform"
        for sparsity in sparsities(space)
        for resolution in space.positions[0].values
    }
    return {**found, space.smallest: "smallest"}


def groups(space: SearchSpace) -> Iterator[tuple[str, list[Architecture]]]:
    """Endless groups of architectures that share their first stage, and how they were drawn."""
    dense = space.restrict("sparsity", 0)
    regions = {
        "random": (space, bands(space)),
        "scheduled": (space, [schedules(space)]),
        "dense": (dense, bands(dense)),
    }
    first_stage = 2 + sum(p.name.startswith("stages[0].blocks") for p in space.positions)
    number = 0
    while True:
        rng = np.random.default_rng((7, number))
        kind = KINDS[number % len(KINDS)]
        own, parts = regions[kind]
        # Bands go on once all kinds had their turn, or each kind would keep to some of them.
        region = parts[(number // len(KINDS) + number) % len(parts)]
        wanted = np.repeat(region.sample(1, rng), GROUP, axis=0)
        wanted[:, first_stage:] = -1
        yield kind, [decode(own, path) for path in region.follow(wanted, rng)]
        number += 1


def score(network: Network, data: Dataset, folder: Path, count: int) -> dict[str, float]:
    """Score so many architectures into the folder; returns the uniform ones' percent."""
    space, card = network.space, read_card(folder)
    head = {
        "weights_fingerprint": card["fingerprint"],
        "data_fingerprint": data.fingerprint,
        "search_images": IMAGES,
        "layer_code": layer_code(space.family),
    }
    if not (folder / "scores.json").exists():
        write_json(folder / "scores.json", head)
    elif head != {key: read_json(folder / "scores.json").get(key) for key in head}:
        raise SystemExit(
            f"{folder}/scores.jsonl is of other weights, layers or data: delete it with its head"
        )
    journal = Journal(folder / "scores.jsonl")
    known = {r["architecture"]: r["top1_percent"] for r in journal.read()}
    evaluator = Evaluator(network, data, data.search, IMAGES)

    def add(architectures: list[Architecture], drawn: str) -> None:
        new = [a for a in dict.fromkeys(architectures) if a.to_json() not in known]
        for a in evaluator.plan(new):
            text = a.to_json()
            known[text] = evaluator.percent(a)
            journal.append({"architecture": text, "drawn": drawn, "top1_percent": known[text]})

    fixed = baselines(space)
    drawing = groups(space)
    with bar("score", len(fixed) + count, "architectures") as advance:
        for a, drawn in fixed.items():
            add([a], drawn)
            advance(1, f"{known[a.to_json()]:.1f} %")
        for _ in range(count // GROUP):
            kind, architectures = next(drawing)
            add(architectures, kind)
            advance(GROUP, f"best {max(known[a.to_json()] for a in architectures):.1f} %")
    return {
        f"{a.resolution}@{sparsity}": round(known[a.to_json()], 2)
        for sparsity in sparsities(space)
        for a in (uniform(space, r, sparsity) for r in space.positions[0].values)
    }


def add_finals(network: Network, data: Dataset, folder: Path) -> None:
    """Score all that has a score on the scenes which follow those of a search."""
    scored = Journal(folder / "scores.jsonl").read()
    journal = Journal(folder / FINALS)
    known = {record["id"] for record in journal.read()}
    architectures = [network.space.parse(record["architecture"]) for record in scored]
    missing = [a for a in architectures if a.id not in known]
    evaluator = Evaluator(network, data, rest_of(data.search, IMAGES), FINAL_IMAGES)
    with bar("final", len(missing), "architectures") as advance:
        for architecture in evaluator.plan(missing):
            found = evaluator.score(architecture)
            journal.append({"id": architecture.id, **tested_record(found)})
            advance(1, f"{found.percent:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("supernet", type=Path, help="folder of a supernet")
    parser.add_argument("--count", type=int, default=600)
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(1)
    data, card = load_data("scenes"), read_card(options.supernet)
    network, card = load_supernet(options.supernet, card["space"], data)
    for name, percent in score(network, data, options.supernet, options.count).items():
        print(f"{name} px@% everywhere: {percent:.1f} %")
    add_finals(network, data, options.supernet)
    if card.get("largest_test", {}).get("images") != TEST_IMAGES:
        top1 = Evaluator(network, data, data.test, TEST_IMAGES).percent(network.space.largest)
        test = {"images": TEST_IMAGES, "top1_percent": top1}
        write_json(options.supernet / "supernet.json", {**card, "largest_test": test})


if __name__ == "__main__":
    main()
