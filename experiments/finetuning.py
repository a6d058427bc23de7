"""What fine-tuning gives over images: the largest network of a supernet, dense and pruned.

    python experiments/finetuning.py --space mobilevit:micro --images 1600 3200 6400

Each training is one of `vitnas finetune` (the same recipe, labels and largest network as teacher)
of as many images, from the inherited weights; 0 images are these weights themselves. All are scored
on the same 2,000 test scenes, and gains are paired scene by scene. Writes `finetuning-SPACE.csv`.
What each scene gave goes below `--out`, where a stopped study goes on. Expected time: half an hour
of one core.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from nas.data import Dataset, load_data
from nas.evaluation.accuracy import Evaluator
from nas.network.network import Network
from nas.records import Journal
from nas.run.finetuning import shorter, train_alone
from nas.run.search import uniform
from nas.runtimes.host import quiet_process
from nas.space.architecture import Architecture
from nas.training.supernet import load_supernet, supernet_folder

OUT = Path(__file__).parent / "results"


def hits(
    network: Network, data: Dataset, architecture: Architecture, tuned: Network | None, scenes: int
) -> list[int]:
    """Which test scenes are answered rightly, by the tuned network or with inherited weights."""
    evaluator = Evaluator(network, data, data.test, scenes, threads=1)
    plain = (tuned or evaluator.subnet(architecture)).deploy()
    return np.asarray(evaluator.observed_by(plain), int).tolist()


def table(records: list[dict]) -> pd.DataFrame:
    """One line for each sparsity and number of images, with the points gained over none."""
    rows, right = [], {(r["sparsity"], r["images"]): np.array(r["hits"]) for r in records}
    for r in records:
        own = right[r["sparsity"], r["images"]]
        gained = 100.0 * (own - right.get((r["sparsity"], 0), own))
        rows.append(
            {
                "sparsity": r["sparsity"],
                "images": r["images"],
                "test_scenes": len(own),
                "percent": round(100 * own.mean(), 2),
                "gained": round(gained.mean(), 2),
                "error": round(gained.std(ddof=1) / len(own) ** 0.5, 2),
                "processor_s": round(r["seconds"]),
            }
        )
    return pd.DataFrame(rows).sort_values(["sparsity", "images"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilevit:micro")
    parser.add_argument("--supernet", type=Path, help="folder; the shipped one")
    parser.add_argument("--size", type=int, default=224, help="resolution in pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[1600, 3200, 6400])
    parser.add_argument("--sparsities", type=int, nargs="+", default=[0, 40, 60])
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs") / "finetuning")
    options = parser.parse_args()
    quiet_process()
    data = load_data("scenes")
    folder = options.supernet or supernet_folder(options.space, data)
    network, card = load_supernet(folder, options.space, data)
    name = f"{card['fingerprint']}-{options.size}-{options.test_images}"
    journal = Journal(options.out / f"{name}.jsonl")
    for images in (0, *options.images):
        for sparsity in options.sparsities:
            known = {(r["sparsity"], r["images"]) for r in journal.read()}
            if (sparsity, images) in known:
                continue
            architecture = uniform(network.space, options.size, sparsity)
            start, tuned = time.process_time(), None
            at = options.out / f"{name}-{sparsity}-{images}"
            if images:
                tuned = train_alone(
                    network, data, architecture, shorter(images, 0), at, card["fingerprint"],
                    resume=True,
                )  # fmt: skip
            seconds = time.process_time() - start
            found = hits(network, data, architecture, tuned, options.test_images)
            record = {"sparsity": sparsity, "images": images, "seconds": seconds, "hits": found}
            journal.append(record)
            shutil.rmtree(at, ignore_errors=True)
            print(table(list(journal.read())).to_string(index=False), flush=True)
    slug = options.space.replace(":", "-")
    table(list(journal.read())).to_csv(OUT / f"finetuning-{slug}.csv", index=False)


if __name__ == "__main__":
    main()
