"""What one GPU does in ten minutes that no CPU could: supernets, their scores, tables, speed-ups.

    python experiments/on_gpu.py --out DIR [--minutes 8] [--parts supernets,tables,speedups,tests]

Supernets of all spaces are trained at the same time, each by a process of its own: the networks are
small, so that one alone leaves the GPU waiting for the next kernel. (A step of `swin:micro-window4`
launches some ten thousand: one of 128 scenes at 256 px took 0.23 s on an H100, at a third of its
use.) Each first measures how fast it trains beside the others, and chooses the
number of images that fills its time. Then it scores architectures on the search split: the uniform
ones that every search starts from, and draws from bands of cost. After that, with nothing else
running, tables are measured and pruned networks timed.

Writes at most eight files to DIR: one archive for each supernet and one with all tables, and
`results.json`, from which the table at the end is printed. What is in DIR is not done again.
`--init DIR` starts from the weights of a supernet's folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from score_architectures import score

from nas.data import Dataset, load_data
from nas.families import load_space
from nas.latency.profiling import profile
from nas.network.network import Network
from nas.records import atomic_path, read_json, write_json
from nas.run.search import sparsities
from nas.runtimes import load_runtime
from nas.training.batches import loading_processes
from nas.training.device import faster_in_bf16
from nas.training.objectives import load_objective
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet, save_supernet
from nas.training.trainer import Trainer, fit

SPACES = (
    "swin:micro-window4",
    "vit:micro",
    "mobilevit:micro",
    "efficientvit:micro",
    "mobilenetv3:micro",
)
RECIPE = Recipe(batches=(1024, 512, 384))
PHASES = (0.2, 0.3, 0.5)  # of the time, for inputs of a quarter, a half and the whole size
_FIRST = 0.7  # of the time: the first training; what it leaves of it adapts
_LEAST_STEPS = 20
_WARM, _TIMED = 4, 8  # steps of each phase that are run to see how fast they are
TABLES = (
    ("swin:micro-window4", "torch-cuda-graph", "float32", 1),
    ("swin:micro-window4", "torch-cuda", "float32", 1),
    ("swin:micro-window4", "torch-cuda-graph", "bfloat16", 64),
    ("vit:micro", "torch-cuda-graph", "float32", 1),
    ("vit:micro", "torch-cuda", "float32", 1),
    ("vit:micro", "torch-cuda-graph", "bfloat16", 64),
)


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.child:
        return one_supernet(options.child, options)
    start = time.monotonic()
    for part in options.parts.split(","):
        try:
            PARTS[part](options)
        except Exception as error:  # what the other parts give is still wanted
            print(f"{part} failed: {type(error).__name__}: {error}", flush=True)
        print(f"{part}: ended after {time.monotonic() - start:.0f} s", flush=True)
    for line in _lines(options.out):
        print(line)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="folder of a supernet to start from")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training")
    parser.add_argument("--parts", default="supernets,tables,speedups,tests")
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--tables", type=int, default=len(TABLES), help="the first so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scores", type=int, default=600, help="architectures of each supernet")
    parser.add_argument("--recipe", default="{}", help="JSON: fields of the recipe that differ")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def supernets(options: argparse.Namespace) -> None:
    """Train and score the supernet of each space in a process of its own, all at the same time."""
    running = {}
    for name in options.spaces.split(","):
        if not _archive(options.out, name).exists():
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            log = (options.out / f"{_slug(name)}.log").open("w")
            running[name] = subprocess.Popen(command, stdout=log, stderr=log)
    for name, process in running.items():
        process.wait()
        log = options.out / f"{_slug(name)}.log"
        print(f"{name}: exit {process.returncode}", flush=True)
        if process.returncode:
            print(log.read_text()[-1500:], flush=True)
        log.unlink()


def one_supernet(name: str, options: argparse.Namespace) -> None:
    """Train, save and score one supernet; its archive is there as soon as it is trained."""
    end = time.monotonic() + options.minutes * 60
    data = load_data("scenes")
    torch.manual_seed(0)
    space = load_space(name, data.task)
    network, settings = Network(space, space.largest), {"init": ""}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / _slug(name)
        if options.init:
            trained, card = load_supernet(options.init, name, data)
            network.load_state_dict(trained.state_dict())
            settings["init"] = card["fingerprint"]
        network.to(options.device)
        recipe = replace(RECIPE, **json.loads(options.recipe))
        rates = _steps_per_second(network, data, recipe)
        print(f"{name}: {[round(rate, 2) for rate in rates]} steps/s", flush=True)
        recipe = _filling(recipe, rates, _FIRST * (end - time.monotonic()))
        training = _fitted(network, data, recipe, folder, end, settings)
        # What is left of the time adapts: pruned and small networks again, at a small rate.
        adapting = replace(recipe, images=(0, 1, 1), learning_rate=recipe.learning_rate / 5, seed=1)
        adapting = _filling(adapting, rates, 0.9 * (end - time.monotonic()))
        if sum(adapting.steps()) > _LEAST_STEPS:
            adapted = _fitted(network, data, adapting, folder / "adapt", end, settings)
            training["adapted"] = {key: adapted[key] for key in ("recipe", "seconds", "step")}
            shutil.rmtree(folder / "adapt")
        training["device"] = _device_name(network)
        save_supernet(folder, network, data, training)
        for checkpoint in folder.glob("checkpoint*"):
            checkpoint.unlink()
        result = {"seconds": training["seconds"], "images": list(recipe.images)}
        _pack(folder, options.out, result)
        result["uniform_percent"] = score(network, data, folder, options.scores)
        _pack(folder, options.out, result)


def _device_name(network: Network) -> str:
    device = next(network.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _steps_per_second(network: Network, data: Dataset, recipe: Recipe) -> list[float]:
    """How fast steps of the three phases are beside everything that runs; trains nothing."""
    count = _WARM + _TIMED
    short = replace(recipe, images=tuple(count * n for n in recipe.batches), learning_rate=0.0)
    objective = load_objective("supervised", network.space)
    trainer = Trainer(
        network, data, replace(short, weight_decay=0.0), objective, None,
        faster_in_bf16(network, data), loading_processes(),
    )  # fmt: skip
    rates = []
    for _ in recipe.batches:
        for step in range(count):
            if step == _WARM:
                start = time.monotonic()
            loss = trainer.train_step()
            if step in (_WARM - 1, count - 1):
                loss.item()  # waits for the device
        rates.append(_TIMED / (time.monotonic() - start))
    return rates


def _filling(recipe: Recipe, rates: list[float], seconds: float) -> Recipe:
    """The recipe with as many images in each of its phases as take its share of the time."""
    shares = [share if n else 0.0 for share, n in zip(PHASES, recipe.images)]
    steps = [int(max(0.0, seconds) * share / sum(shares) * r) for share, r in zip(shares, rates)]
    return replace(recipe, images=tuple(n * batch for n, batch in zip(steps, recipe.batches)))


def _fitted(
    network: Network, data: Dataset, recipe: Recipe, folder: Path, end: float, settings: dict
) -> dict:
    """Train within a time; what determined the training, also where the time was too short."""
    objective = load_objective("supervised", network.space)
    found = fit(
        network, data, recipe, objective, folder,
        settings=settings, checkpoint_s=1e9, stop=lambda: time.monotonic() > end,
    )  # fmt: skip
    planned = {"planned_steps": sum(recipe.steps())}
    return found or {**read_json(folder / "checkpoint.json"), **planned}


def _pack(folder: Path, out: Path, result: dict) -> None:
    """Write the archive of a supernet's folder, whole or not at all."""
    write_json(folder / "result.json", result)
    with atomic_path(_archive(out, folder.name)) as path, tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{folder.name}/{file.name}")


def tables(options: argparse.Namespace) -> None:
    """Measure latency tables one after the other; each is kept as soon as it is complete."""
    archive = options.out / "tables.tar"
    results = _results(options.out)
    for space_name, device, dtype, batch in TABLES[: options.tables]:
        name = f"{device},dtype={dtype},batch={batch}"
        if options.device == "cpu":
            name = "torch-cpu"
        key = f"{name} {space_name}"
        if key in results.get("tables", {}):
            continue
        space = load_space(space_name, load_data("scenes").task)
        folder = options.out / "tables" / f"{name}-{_slug(space_name)}".replace(",", "_")
        started = time.monotonic()
        try:
            table = profile(space, name, folder, rounds=options.rounds)
        except Exception as error:
            print(f"{key}: {type(error).__name__}: {error}", flush=True)
            continue
        results.setdefault("tables", {})[key] = {
            "seconds": round(time.monotonic() - started, 1),
            "rows": len(table.rows),
            **asdict(table.calibration),
        }
        write_json(options.out / "results.json", results)
        with tarfile.open(archive, "a") as tar:
            for file in sorted(folder.iterdir()):
                if file.name in ("manifest.toml", "rows.csv", "networks.csv"):
                    tar.add(file, f"{folder.name}/{file.name}")
        print(f"{key}: {results['tables'][key]}", flush=True)


def speedups(options: argparse.Namespace) -> None:
    """Time the largest networks at uniform sparsities, in turns, captured and eager."""
    import numpy as np

    results = _results(options.out)
    task = load_data("scenes").task
    for space_name, resolution in (
        ("swin:micro-window4", 256),
        ("vit:micro", 224),
        ("swin:tiny", 448),
    ):
        space = load_space(space_name, task).at(resolution)
        for device, dtype, batch in (
            ("torch-cuda-graph", "float32", 1),
            ("torch-cuda", "float32", 1),
            ("torch-cuda-graph", "bfloat16", 64),
        ):
            name = (
                f"{device},dtype={dtype},batch={batch}" if options.device == "cuda" else "torch-cpu"
            )
            key = f"{name} {space_name}@{resolution}"
            if key in results.get("speedups", {}):
                continue
            with load_runtime(name) as runtime, torch.inference_mode():
                layers = [
                    space.layers(space.restrict("sparsity", s).largest) for s in sparsities(space)
                ]
                programs = [runtime.prepare(own, fused=True) for own in layers]
                samples = np.array([[p()[0].wall for p in programs] for _ in range(25)])
            median = np.median(samples, axis=0)
            results.setdefault("speedups", {})[key] = {
                str(s): {"ms": round(float(ms), 4), "of_dense": round(float(r), 3)}
                for s, ms, r in zip(
                    sparsities(space), median, np.median(samples / samples[:, :1], axis=0)
                )
            }
            write_json(options.out / "results.json", results)
            print(f"{key}: {results['speedups'][key]}", flush=True)


def tests(options: argparse.Namespace) -> None:
    """Run the tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        "tests/test_torch_cuda.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    print(done.stdout[-3000:])
    results = _results(options.out)
    results["tests"] = done.stdout.strip().splitlines()[-1]
    write_json(options.out / "results.json", results)


PARTS = {"supernets": supernets, "tables": tables, "speedups": speedups, "tests": tests}


def _results(out: Path) -> dict:
    return read_json(out / "results.json") if (out / "results.json").exists() else {}


def _lines(out: Path):
    """The summary, a line for each result."""
    for path in sorted(out.glob("supernet-*.tar")):
        with tarfile.open(path) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith("result.json"))
            yield f"{path.stem}: {archive.extractfile(member).read().decode()}".replace("\n", "")
    for part, found in _results(out).items():
        for key, value in found.items() if isinstance(found, dict) else [("", found)]:
            yield f"{part} {key}: {json.dumps(value)}"


def _slug(name: str) -> str:
    return name.replace(":", "-")


def _archive(out: Path, name: str) -> Path:
    return out / f"supernet-{_slug(name)}.tar"


if __name__ == "__main__":
    main()
