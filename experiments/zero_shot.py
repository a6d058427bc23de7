"""Labels in words instead of training: zero-shot accuracy of the subnets of a supernet, over ms.

    python experiments/zero_shot.py --out /tmp/zero-shot
    python experiments/zero_shot.py --out /tmp/zero-shot --supernet words --budgets 3ms 5ms

Searches a supernet that has learned from captions of scenes (`vitnas train --objective clip`, if
none is given the shipped one) by `--score zero-shot` within two budgets, and scores further
subnets, spread over their latency, on the test split. Then the winner's `model.onnx` runs in ONNX
Runtime on a picture of a test scene, with the names of classes as words, and `vitnas predict`
answers for the same picture with words that are no class. Writes `zero_shot.csv` and
`zero_shot.png`; takes four minutes of a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from nas.data import load_data
from nas.data.scenes import render
from nas.deployment import Card
from nas.evaluation.accuracy import Evaluator
from nas.latency.library import find_table
from nas.report.saved_run import SavedRun
from nas.scores import load_score
from nas.training.supernet import as_learned, load_supernet, supernet_folder
from nas.trellis.graph import decode

WORDS = "a trainer,a handbag,a pair of trousers,a jacket,a gown"


def drawn(run: SavedRun, table, count: int) -> list:
    """Architectures of the space, one of each of so many bands of latency."""
    trellis = table.trellis(run.space)
    edges = np.geomspace(trellis.fastest * 1.1, trellis.slowest, count + 1)
    rng = np.random.default_rng(0)
    return [decode(run.space, trellis.within(b, a).sample(1, rng)[0]) for a, b in pairwise(edges)]


def answered(winner: Path, picture: Path) -> str:
    """What ONNX Runtime says of a picture, with nothing of vitnas but how a picture is read."""
    import onnxruntime as ort

    session = ort.InferenceSession(winner / "model.onnx")
    card = Card.read(winner)
    _, inputs = card.pictures.read([picture])
    (logits,) = session.run(None, {card.input.name: inputs.numpy()})
    order = np.argsort(-logits[0])[:3]
    shares = np.exp(logits[0] - logits[0].max())
    shares = 100 * shares / shares.sum()
    return ", ".join(f"{card.task['classes'][i]} {shares[i]:.1f} %" for i in order)


def draw(rows: list[tuple[str, float, float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for kind, marker in (("drawn", "o"), ("winner", "*")):
        points = np.array([row[1:] for row in rows if row[0] == kind])
        axes.scatter(*points.T, marker=marker, s=150 if kind == "winner" else 25, label=kind)
    best, front = -1.0, []
    for _, ms, percent in sorted(rows, key=lambda row: row[1]):
        if percent > best:
            best = percent
            front.append((ms, percent))
    axes.step(*np.array(front).T, where="post", lw=1, color="0.5", label="front")
    axes.set(xlabel="predicted latency (ms)", ylabel="zero-shot accuracy, test split (%)")
    axes.axhline(10, ls=":", color="0.5", label="a guess")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="efficientvit:micro")
    parser.add_argument("--supernet", default="")
    parser.add_argument("--budgets", nargs=2, default=("4ms", "6ms"))
    parser.add_argument("--evaluations", default="24")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--table", default="")
    options = parser.parse_args()
    data, folder = load_data("scenes:captions"), options.out / "run"
    supernet = Path(options.supernet or supernet_folder(options.space, data, words=True))
    budgets = [word for budget in options.budgets for word in ("--budget", budget)]
    subprocess.run(
        [sys.executable, "-m", "nas.cli", "search", *budgets, "--space", options.space,
         "--data", data.name, "--supernet", str(supernet), "--score", "zero-shot",
         "--evaluations", options.evaluations, "--out", str(folder),
         *(["--resume"] if folder.exists() else []),
         *(["--table", options.table] if options.table else [])],
        check=True,
    )  # fmt: skip
    run = SavedRun.load(folder)
    table = find_table(str(folder / "table"))
    network, card = load_supernet(supernet, options.space, data)
    data = as_learned(data, card)
    metric = load_score("zero-shot", data, supernet, 0)
    network = metric.searched(network, data)
    evaluator = Evaluator(network, data, data.test, options.images, metric=metric)
    subnets = [("drawn", own) for own in drawn(run, table, options.count)]
    subnets += [("winner", run.architecture(answer.winner)) for answer in run.record.answers]
    rows = [
        (kind, table.predict(network.space, own), evaluator.percent(own)) for kind, own in subnets
    ]
    with (options.out / "zero_shot.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("kind", "predicted_ms", "test_zero_shot_percent"))
        writer.writerows((kind, f"{ms:.3f}", f"{percent:.1f}") for kind, ms, percent in rows)
    draw(rows, options.out / "zero_shot.png")
    image, label, _ = render("test", 3)
    picture = options.out / "scene.png"
    Image.fromarray(image).save(picture)
    said = answered(folder / "winner", picture)
    print(f"a scene with a {data.task.names[label]}, by ONNX Runtime: {said}")
    subprocess.run(
        [sys.executable, "-m", "nas.cli", "predict", str(folder), str(picture), "--labels", WORDS],
        check=True,
    )
    for kind, ms, percent in sorted(rows, key=lambda row: row[1]):
        print(f"{kind}: {ms:.2f} ms, {percent:.1f} %")


if __name__ == "__main__":
    main()
