"""Int8 after training and int8 that is trained, in every family that ships a supernet.

    python experiments/int8_trained.py [--families mobilevit,swin] [--pixels 112] [--images 1600]
        [--scenes 1000] [--out DIR]

The largest `micro` network of a family at one size, with the weights of the shipped supernet, on
the shipped scenes: in float32; in int8 with ranges from 64 training scenes (`best` of
`vitnas quantize`); and both trained further on the same images by the same recipe, with the first
as teacher (`nas.training.rounding`). Float32 is trained, too, because more training alone helps.

Accuracies are on the first scenes of the test split, which nothing else here sees; differences from
the first network are paired, scene by scene. The first and the last network are exported as ONNX
(which compares each with itself), and the files answer 100 of the scenes in ONNX Runtime.
Milliseconds (one thread, batch 1) are medians of rounds in which the two files take turns. Appends
to `results/int8_trained.csv` family by family; a training that was killed goes on in `--out`.

A convolutional family took ten minutes with `--images 640`, on a machine with 20 busy processes on
two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch

from nas.data import Dataset, load_data
from nas.deployment import ONNX
from nas.errors import WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.export import export_network
from nas.families import families, load_space
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.runtimes.host import quiet_process
from nas.space.architecture import at_precision
from nas.training.rounding import train_rounded
from nas.training.supernet import load_supernet, supernet_folder

RESULTS = Path(__file__).parent / "results" / "int8_trained.csv"
CALIBRATION, ANSWERED, ROUNDS = 64, 100, 400
WRITTEN = ("float32", "int8 trained")


def networks(family: str, data: Dataset, pixels: int, images: int, out: Path):
    """The four networks by name, plain, and the function that prepares pictures for them."""
    name = f"{family}:micro"
    supernet, _ = load_supernet(supernet_folder(name, data), f"{name}+int8", data)
    space = supernet.space
    wide = at_precision(space.at(pixels).largest, "fp32")
    plain = Evaluator(supernet, data, data.search, 1, threads=1).subnet(wide)

    def pictures(split, count: int) -> torch.Tensor:
        first = data.first(split, count, space.largest.resolution)[space.parts.takes]
        return space.parts.resized(first, pixels).contiguous()

    calibrated = plain.inherit(at_precision(wide, "int8")).eval()
    calibrate(calibrated, pictures(data.train, CALIBRATION))
    found = {"float32": plain.eval(), "int8": calibrated}
    for label in tuple(found):
        own, teacher = (found[name] for name in (label, "float32"))
        own, teacher = (n.inherit(n.architecture).eval() for n in (own, teacher))
        folder = out / f"{family}-{pixels}-{images}" / label
        found[f"{label} trained"] = train_rounded(own, teacher, data, images, folder)
    return found, pictures


def sessions(found: dict[str, Network], some: torch.Tensor, out: Path) -> pd.DataFrame:
    """For each network of `WRITTEN`: how far its file is from it, and its milliseconds in turns."""
    rows, runs = {}, {}
    for label in WRITTEN:
        network, folder = found[label], out / label
        with torch.no_grad():
            expected = torch.cat([network(x) for x in some.split(1)])
        difference = export_network(network, some[:1], expected[:1], folder, ["onnx"])[ONNX]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(folder / ONNX, options)
        feed = session.get_inputs()[0].name
        runs[label] = lambda x, s=session, f=feed: s.run(None, {f: x})[0]
        answers = np.concatenate([runs[label](x.numpy()) for x in some.split(1)])
        rows[label] = {
            "file_differs": difference,
            "same_answers_percent": 100 * np.mean(answers.argmax(1) == expected.argmax(1).numpy()),
            "median_difference": np.median(np.abs(answers - expected.numpy())),
        }
    samples = {label: [] for label in runs}
    for _ in range(ROUNDS):
        for label, run in runs.items():
            start = time.perf_counter()
            run(some[:1].numpy())
            samples[label].append(1e3 * (time.perf_counter() - start))
    for label, own in samples.items():
        rows[label]["onnxruntime_ms"] = np.median(own)
    return pd.DataFrame(rows).T


def study(family: str, data: Dataset, options: argparse.Namespace) -> pd.DataFrame:
    """The rows of one family."""
    found, pictures = networks(family, data, options.pixels, options.images, options.out)
    first, hits, rows = next(iter(found.values())), {}, []
    test = Evaluator(first, data, data.test, options.scenes, threads=1)
    folder = options.out / f"{family}-{options.pixels}-{options.images}"
    files = sessions(found, pictures(data.test, min(ANSWERED, options.scenes)), folder / "files")
    files = files.reindex(found)
    for label, network in found.items():
        hits[label] = test.observed_by(network.deploy()).astype(float)
        gain = 100 * (hits[label] - hits["float32"])
        rows.append(
            {
                "space": f"{family}:micro", "pixels": options.pixels, "network": label,
                "images": options.images if "trained" in label else 0,
                "test_top1": round(100 * hits[label].mean(), 2), "points": round(gain.mean(), 2),
                "error_points": round(gain.std() / len(gain) ** 0.5, 2),
                **files.loc[label].astype(float).round(4),
            }
        )  # fmt: skip
        print(*rows[-1].values(), sep="  ", flush=True)
    return pd.DataFrame(rows)


def shipped(data: Dataset) -> list[str]:
    """The families whose `micro` preset has a supernet for these data."""
    found = []
    for family in families():
        try:
            supernet_folder(load_space(f"{family}:micro").name, data)
        except WeightsError:
            continue
        found.append(family)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default="")
    parser.add_argument("--pixels", type=int, default=112)
    parser.add_argument("--images", type=int, default=1_600)
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=Path("int8_trained"))
    options = parser.parse_args()
    quiet_process()
    torch.set_num_threads(1)
    data = load_data("scenes")
    for family in options.families.split(",") if options.families else shipped(data):
        rows = study(family, data, options)
        if RESULTS.exists():
            known = pd.read_csv(RESULTS)
            rows = pd.concat([known[known["space"] != f"{family}:micro"], rows])
        rows.to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
