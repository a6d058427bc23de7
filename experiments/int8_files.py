"""How far the logits of exported int8 files are from the supernet's, beside what is allowed.

    python experiments/int8_files.py [--networks 14]

Architectures of `swin:micro+int8` drawn at random (the first is the largest), every block in int8,
with the shipped weights and ranges from four training images; each is written as ONNX and run by
ONNX Runtime on six test images, with its graph optimizations (which fuse int8 kernels) and without.
Prints one line for each image and a summary; writes `results/int8_files.csv`.

`moved` is half of what `nas.export.tolerance` allows. A quarter of an hour on one core of an AMD
EPYC (Zen 3, no VNNI).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pandas as pd
import torch

import nas.layers.precision
from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.export import tolerance
from nas.families import load_space
from nas.lowering.onnx import quiet
from nas.network.calibration import calibrate
from nas.runtimes import load_runtime
from nas.space.architecture import at_precision
from nas.training.supernet import load_supernet, supernet_folder

RESULTS = Path(__file__).parent / "results" / "int8_files.csv"
IMAGES, CALIBRATION = 6, 4
LEVELS = {"fused": "ORT_ENABLE_ALL", "unfused": "ORT_DISABLE_ALL"}


def sessions(network, image):
    """For each level of optimization: a function that runs the network's ONNX file."""
    with quiet(), torch.no_grad():
        program = torch.onnx.export(network, (image,), dynamo=True, verbose=False)
    data = program.model_proto.SerializeToString()
    for name, level in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(data, options)
        feed = session.get_inputs()[0].name
        yield name, lambda x, s=session, f=feed: torch.from_numpy(s.run(None, {f: x.numpy()})[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=14)
    options = parser.parse_args()
    # The same integers; without VNNI `torch._int_mm` takes 20 times as long.
    nas.layers.precision._integer_product = lambda q, w: (q.double() @ w.double()).to(torch.int32)
    data = load_data("scenes")
    space = load_space("swin:micro+int8")
    supernet, _ = load_supernet(supernet_folder("swin:micro", data), space.name, data)
    evaluator = Evaluator(supernet, data, data.search, 1)
    full = space.largest.resolution
    random, rows = Random(0), []
    for i in range(options.networks):
        a = at_precision(space.draw(random) if i else space.largest, "int8")
        network = evaluator.subnet(a)
        resized = space.parts.resized
        few = data.first(data.train, CALIBRATION, full)["images"]
        calibrate(network, resized(few, a.resolution))
        few = data.first(data.test, IMAGES, full)["images"]
        images = resized(few, a.resolution).contiguous().split(1)
        with torch.no_grad():
            exact = [network(x, at_precision(a, "fp32")) for x in images]
            network.deploy()
            expected = [network(x) for x in images]
        runs = dict(sessions(network, images[0]))
        for x, plain, own in zip(images, exact, expected):
            row = {"network": i, "resolution": a.resolution, "int8": plain - own}
            row |= {name: run(x) - own for name, run in runs.items()}
            row = {k: float(v.abs().max()) if torch.is_tensor(v) else v for k, v in row.items()}
            row["moved"] = tolerance(network, x, own) / 2
            rows.append(row)
            words = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(*words, flush=True)
    frame = pd.DataFrame(rows)
    frame.round(4).to_csv(RESULTS, index=False)
    print(load_runtime("cpu").describe()["processor"], "VNNI:", torch.cpu._is_vnni_supported())
    print(frame[["int8", "fused", "unfused", "moved"]].quantile([0.05, 0.5, 0.95]).round(4))
    for name in LEVELS:
        share = frame[name] / frame["moved"]
        print(f"{name}: at most {share.max():.2f} of moved; {np.mean(share > 2):.0%} refused")


if __name__ == "__main__":
    main()
