"""Score architectures of a shipped supernet: the journal that the default search starts from.

    python experiments/score_architectures.py --space swin:micro --count 1000

Draws are uniform within one of the budgets 6, 8, 12, 16, 20, 28 and 40 ms of this machine's table
(`random`, three quarters) or of its dense part (`dense`, a quarter), in groups of eight that share
their first stage, so that its activations are computed once; and the largest networks of each
resolution with one sparsity everywhere (`uniform`). All on the first 400 scenes of the
search split; the test split is not touched, but for the one figure of the largest network that the
card carries. Appends to `scores.jsonl` beside the weights and goes on where it was stopped.

Two CPU cores: 1.2 s an architecture.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator, cores
from nas.latency.profiling import profile
from nas.progress import bar
from nas.records import Journal, read_json, write_json
from nas.run.search import sparsities, uniform
from nas.runtimes.host import keep_heap
from nas.training.supernet import load_supernet, supernet_folder
from nas.trellis.graph import decode
from nas.versions import layer_code

BUDGETS_MS = (6, 8, 12, 16, 20, 28, 40)
GROUP, IMAGES, TEST_IMAGES = 8, 400, 500


def shared_prefix_top1(network, batches, labels, architectures, shared: int) -> list[float]:
    """Top-1 of architectures whose first `shared` layers are the same."""
    lists = [network.space.layers(a) for a in architectures]
    resolution = architectures[0].resolution

    @torch.inference_mode()
    def predict(images):
        state = (network.space.parts.resized(images, resolution),)
        for layer in lists[0][:shared]:
            state = network.module(layer)(*state, **layer.elastic)
        predicted = []
        for layers in lists:
            rest = state
            for layer in layers[shared:]:
                rest = network.module(layer)(*rest, **layer.elastic)
            predicted.append(rest[0].argmax(1))
        return torch.stack(predicted)

    with ThreadPoolExecutor(cores()) as pool:
        predicted = torch.cat(list(pool.map(predict, batches)), dim=1).numpy()
    return [float(x) for x in 100 * (predicted == labels).mean(1)]


def common_layers(lists) -> int:
    """How many leading layers all lists share, at the same places."""
    count = 0
    for layers in zip(*lists):
        if len({(layer.path, layer.key) for layer in layers}) > 1:
            break
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="swin:micro")
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(1)
    data = load_data("scenes")
    folder = supernet_folder(options.space, data)
    network, card = load_supernet(folder, options.space, data)
    space = network.space
    table = profile(space)
    torch.set_num_threads(1)
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
            "scores.jsonl is of other weights, layers or data: delete it with its head"
        )
    journal = Journal(folder / "scores.jsonl")
    done = len(journal.read())
    first = data.first(data.search, IMAGES, space.largest.resolution)
    batches, labels = first["images"].split(16), first["labels"].numpy()

    evaluator = Evaluator(network, data, data.search, IMAGES)
    known = {record["architecture"] for record in journal.read()}
    for sparsity in sparsities(space):  # the baselines that every search has
        for resolution in space.positions[0].values:
            a = uniform(space, resolution, sparsity)
            if a.to_json() not in known:
                score = evaluator.percent(a)
                journal.append(
                    {"architecture": a.to_json(), "drawn": "uniform", "top1_percent": score}
                )
                print(f"{resolution} px, {sparsity} % everywhere: {score:.1f} %", flush=True)

    parts = {"random": space, "dense": space.restrict("sparsity", 0)}
    within = {
        (name, budget): table.trellis(part).within(budget)
        for name, part in parts.items()
        for budget in BUDGETS_MS
    }
    first_stage = 2 + sum(p.name.startswith("stages[0].blocks") for p in space.positions)
    with bar("score", options.count, "architectures") as advance:
        advance(min(done, options.count))
        group = done // GROUP
        while done < options.count:
            rng = np.random.default_rng((7, group))
            name = "dense" if group % 4 == 3 else "random"
            budget = BUDGETS_MS[group % len(BUDGETS_MS)]
            region = within[name, budget]
            wanted = np.repeat(region.sample(1, rng), GROUP, axis=0)
            wanted[:, first_stage:] = -1
            paths = region.follow(wanted, rng)
            architectures = list(dict.fromkeys(decode(parts[name], path) for path in paths))
            lists = [space.layers(a) for a in architectures]
            scores = shared_prefix_top1(
                network, batches, labels, architectures, common_layers(lists)
            )
            for a, score in zip(architectures, scores):
                journal.append({"architecture": a.to_json(), "drawn": name, "top1_percent": score})
            done += len(architectures)
            group += 1
            advance(len(architectures), f"best {max(scores):.1f} %")
    if card.get("largest_test", {}).get("images") != TEST_IMAGES:
        top1 = Evaluator(network, data, data.test, TEST_IMAGES).percent(space.largest)
        write_json(
            folder / "supernet.json",
            {**card, "largest_test": {"images": TEST_IMAGES, "top1_percent": top1}},
        )


if __name__ == "__main__":
    main()
