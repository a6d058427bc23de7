"""Int8 in every family: accuracy by clipping method, and latency in ONNX Runtime and torch.

    python experiments/quantization.py [--families vit,swin,...] [--minutes 12] [--images 0]
        [--out DIR]

For each family the largest `micro` network below the full resolution is trained alone on the
shipped scenes for a fixed time (`swin`: the largest of the shipped supernet), then quantized by
every method: ranges from 64 training scenes, methods compared on 400 of the search split; the
method that was best there is reported on 500 of the test split. With `--images` the network is
also trained in int8 on so many scenes, from the ranges of `best`, beside the same network trained
on in float32 by the same recipe (`trained`). Latencies are of one thread, batch
1, float32 and int8 in turns. Appends to `results/quantization.csv`; a family whose weights lie in
`--out` is not trained again.

Two cores of an Intel Xeon (AMX, VNNI): a quarter of an hour for each family.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.batch_norm import recalibrate
from nas.families import load_space
from nas.lowering.onnx import quiet
from nas.network.calibration import METHODS, calibrate
from nas.network.network import Network
from nas.progress import bar
from nas.runtimes.host import quiet_process
from nas.space.architecture import at_precision
from nas.training.device import faster_in_bf16
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.rounding import train_rounded
from nas.training.supernet import load_supernet, supernet_folder
from nas.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "quantization.csv"
RESOLUTIONS = {"swin": 224, "vit": 168, "mobilevit": 168, "efficientvit": 160, "mobilenetv3": 160}
COLUMNS = (
    "space", "precision", "ranges", "search_top1", "test_top1", "onnxruntime_ms", "torch_ms",
)  # fmt: skip
ROUNDS, SEARCH, TEST, CALIBRATION = 30, 400, 500, 64


def trained(family: str, data, minutes: float, out: Path) -> Network:
    """The plain float32 network of a family, from `out` or trained now."""
    name = f"{family}:micro"
    space = load_space(name)
    if family == "swin":
        supernet, _ = load_supernet(supernet_folder(name, data), name, data)
        return supernet.inherit(space.largest)
    # Below the largest resolution, where the trainer trains a network alone.
    architecture = space.at(RESOLUTIONS[family]).largest
    torch.manual_seed(0)
    network = Network(space, architecture)
    file = out / f"{family}.safetensors"
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    recipe = Recipe(images=images_in(network, data, minutes))
    bf16 = faster_in_bf16(network, data)
    trainer = Trainer(network, data, recipe, Supervised(network.space), bf16=bf16)
    total = sum(recipe.steps())
    with bar(f"train {name}", total, "steps") as advance:
        losses = []
        while trainer.step < total:
            losses.append(float(trainer.train_step()))
            advance(1, f"canvas {recipe.phase(trainer.step - 1) + 1}/3 loss {losses[-1]:.2f}")
            if trainer.step % 200 == 0:
                print(f"{name} {trainer.step}/{total} {np.mean(losses[-200:]):.3f}", flush=True)
    if network.batch_norms:
        recalibrate(network, data.first(data.train, 256, space.largest.resolution)["images"])
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    return network.eval()


def images_in(network: Network, data, minutes: float) -> tuple[int, int, int]:
    """Training images on each canvas so that 50, 35 and 15 % of the time go to the three."""
    images = []
    for phase, share in enumerate((0.5, 0.35, 0.15)):
        alone = tuple(10**6 if i == phase else 0 for i in range(3))
        still = Recipe(images=alone, learning_rate=0.0)
        probe = Trainer(network, data, still, Supervised(network.space), bf16=True)
        probe.train_step()
        start, steps = time.monotonic(), 0
        while time.monotonic() - start < 3:
            probe.train_step()
            steps += 1
        rate = steps * Recipe.batches[phase] / (time.monotonic() - start)
        images.append(int(60 * minutes * share * rate))
    print(f"{network.space.name}: {images} images", flush=True)
    return tuple(images)


def latencies(networks, image) -> tuple[list[float], list[float]]:
    """Median milliseconds of each network in ONNX Runtime and in torch, all in turns."""
    import onnxruntime

    runs = []
    for network in networks:
        with quiet(), torch.no_grad():
            network(image)
            program = torch.onnx.export(network, (image,), dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
        feed = {session.get_inputs()[0].name: image.numpy()}
        runs.append(lambda session=session, feed=feed: session.run(None, feed))
    runs += [lambda network=network: network(image) for network in networks]
    samples = [[] for _ in runs]
    with torch.inference_mode():
        for turn in range(ROUNDS + 3):
            for run, own in zip(runs, samples):
                start = time.perf_counter()
                run()
                if turn >= 3:
                    own.append(1e3 * (time.perf_counter() - start))
    medians = [float(np.median(own)) for own in samples]
    return medians[: len(networks)], medians[len(networks) :]


def trained_on(network: Network, ranges, data, images: int, bits: str) -> Network:
    """The network after so many more images, taught by itself as it was: in float32 or in int8."""
    plain = network.inherit(at_precision(network.architecture, bits)).eval()
    if bits == "int8":
        calibrate(plain, ranges)
    teacher = network.inherit(network.architecture).eval()
    with TemporaryDirectory() as folder:
        return train_rounded(plain, teacher, data, images, Path(folder)).deploy()


def study(family: str, data, minutes: float, images: int, out: Path) -> list[tuple]:
    network = trained(family, data, minutes, out)
    space, wide = network.space, network.architecture
    narrow = at_precision(wide, "int8")
    search = Evaluator(network, data, data.search, SEARCH)
    test = Evaluator(network, data, data.test, TEST)
    few = data.first(data.train, CALIBRATION, space.largest.resolution)["images"]
    ranges = space.parts.resized(few, wide.resolution)

    def quantized(method: str) -> Network:
        plain = network.inherit(narrow).eval()
        calibrate(plain, ranges, method=method)
        return plain.deploy()

    exact = network.inherit(wide).deploy()
    scores = {"": 100 * search.observed_by(exact).mean()}
    scores |= {m: 100 * search.observed_by(quantized(m)).mean() for m in METHODS}
    best = max(METHODS, key=lambda m: scores[m])
    tests = {"": 100 * test.observed_by(exact).mean()}
    tests[best] = 100 * test.observed_by(quantized(best)).mean()
    for bits in ("fp32", "int8") if images else ():
        after = trained_on(network, ranges, data, images, bits)
        name = f"trained {bits}"
        scores[name] = 100 * search.observed_by(after).mean()
        tests[name] = 100 * test.observed_by(after).mean()
    torch.set_num_threads(1)
    onnx_ms, torch_ms = latencies([exact, quantized(best)], ranges[:1].contiguous())
    rows = []
    for method, score in scores.items():
        i = int(bool(method) and not method.endswith("fp32"))
        rows.append(
            (
                f"{space.name} {wide.resolution} px",
                ("fp32", "int8")[i],
                method.partition(" ")[0],
                f"{score:.1f}",
                f"{tests[method]:.1f}" if method in tests else "",
                f"{onnx_ms[i]:.2f}",
                f"{torch_ms[i]:.2f}",
            )
        )
        print(*rows[-1], sep="  ", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default=",".join(RESOLUTIONS))
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("quantization"))
    parser.add_argument("--train-only", action="store_true")
    options = parser.parse_args()
    data = load_data("scenes")
    for family in options.families.split(","):
        if options.train_only:
            trained(family, data, options.minutes, options.out)
            continue
        quiet_process()
        rows = study(family, data, options.minutes, options.images, options.out)
        known = []
        if RESULTS.exists():
            with RESULTS.open(newline="") as file:
                known = [r for r in list(csv.reader(file))[1:] if not r[0].startswith(f"{family}:")]
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*known, *rows])


if __name__ == "__main__":
    main()
