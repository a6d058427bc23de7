"""Whether an exported folder is all that is needed: its examples against the reported accuracy.

    python experiments/deploy_check.py --out DIR [--images 24000] [--torch torch==2.13.0+cpu]

Writes the photos of the shipped data set as picture files of many kinds (JPEG and PNG, turned by
EXIF, transparent, of any size and shape), trains a tiny supernet of each family on them for a
minute, and exports its smallest and its largest network in float32 and in int8. Then it makes fresh
environments that hold nothing but Pillow, NumPy and one runtime (the oldest ONNX Runtime that is
stated, the newest, torch), in which vitnas cannot be imported, and runs the example of each folder
on the files of the test split. The shipped supernet is checked likewise, on scenes. Prints a line
for each; ends with an error if an accuracy is more than two points from that which a run would
report. Half an hour on one core of a busy machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

import nas
from nas.data import SPLITS, Dataset, load_data
from nas.data.scenes import CLASSES, photos, render
from nas.deployment import SINCE, Card
from nas.evaluation.accuracy import Evaluator
from nas.export import export_network
from nas.families import families, load_space
from nas.space.architecture import at_precision
from nas.training.supernet import supernet_folder

PER_CLASS = {"train": 250, "search": 10, "test": 40}
SHIPPED, SCENES = "shipped", 200  # the shipped supernet, on scenes of the shipped data set
LARGEST_GAP = 2.0  # points
ALONE = """
try:
    import nas
except ImportError:
    raise SystemExit
raise SystemExit("vitnas is here")
"""


def write_pictures(folder: Path) -> None:
    """Photos as files: on canvases of any shape, as JPEG or PNG, turned or transparent."""
    rng = Random(0)
    for split in SPLITS:
        items, labels = photos(split)
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[: PER_CLASS[split]]:
                write_picture(folder / split / name / str(i), items[i], rng)


def write_picture(path: Path, photo: np.ndarray, rng: Random) -> None:
    size, more = rng.randint(30, 120), rng.randint(0, 60)
    item = Image.fromarray(photo).resize((size, size), Image.Resampling.BICUBIC)
    shape = (size + more, size) if rng.random() < 0.5 else (size, size + more)
    canvas = Image.new("L", shape, 0)
    canvas.paste(item, ((shape[0] - size) // 2, (shape[1] - size) // 2))
    kind = rng.choice(["jpg", "turned", "png", "glass"])
    if kind == "jpg":
        canvas.convert("RGB").save(path.with_suffix(".jpg"), quality=92)
    elif kind == "png":
        canvas.convert("RGB").save(path.with_suffix(".png"))
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 3  # to be turned by half; so it lies on its head in the file
        canvas.convert("RGB").rotate(180).save(path.with_suffix(".jpg"), quality=92, exif=exif)
    else:  # the item is where the picture is opaque, on the white that shows through
        white = Image.new("L", shape, 0)
        Image.merge("LA", (white, canvas.point(lambda v: 255 - v))).convert("RGBA").save(
            path.with_suffix(".png")
        )


def make_python(folder: Path, *packages: str) -> Path:
    """An interpreter of a fresh environment with these packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        subprocess.run([python, "-I", "-c", ALONE], check=True)
    return python


def accuracy(python: Path, script: Path, files: list[tuple[Path, int]]) -> float:
    """The share of test files in percent whose class an example prints."""
    words = [str(path) for path, _ in files]
    result = subprocess.run([python, "-I", script, *words], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{script}: {result.stderr}")
    hits = [
        line == f"{path} {path.parent.name}"
        for line, (path, _) in zip(result.stdout.splitlines(), files, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def exported(family: str, data: Dataset, out: Path, images: int):
    """For each network of a family: its name, folder, reported accuracy, and the test files."""
    if family == SHIPPED:
        space, data = load_space("swin:micro"), load_data("scenes")
        supernet, files = supernet_folder(space.name, data), scene_files(out / "scenes")
    else:
        space, files = load_space(f"{family}:debug", data.task), data.test.files
        supernet = out / f"{family}-supernet"
        if not (supernet / "supernet.json").exists():
            nas.train(space.name, data, supernet, nas.Recipe().scaled(images))
    large, _ = nas.load_supernet(supernet, space.name, data)
    evaluator = Evaluator(large, data, data.test, len(files))
    for size, precision in ((s, p) for s in ("smallest", "largest") for p in ("fp32", "int8")):
        architecture = at_precision(getattr(space, size), precision)
        network = evaluator.subnet(architecture)
        inputs = data.first(data.test, 1, space.largest.resolution)["images"]
        inputs = space.parts.resized(inputs, architecture.resolution)
        with torch.no_grad():
            expected = network(inputs)
        folder = out / f"{family}-{size}-{precision}"
        card = Card.of(space, architecture, data)
        export_network(network, inputs, expected, folder, ["onnx", "pt2"], card=card)
        reported = evaluator.score(architecture).percent
        yield f"{family} {size} {precision}", folder, reported, files


def scene_files(folder: Path) -> list[tuple[Path, int]]:
    """The first test scenes as PNG files, each with its label."""
    files = []
    for i in range(SCENES):
        image, label, _ = render("test", i)
        path = folder / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        files.append((path, label))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--torch", default="torch")
    parser.add_argument("--families", default=",".join([*families(), SHIPPED]))
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out
    pythons = {
        f"onnxruntime {SINCE}": make_python(
            out / "old", f"onnxruntime=={SINCE}.*", "numpy<2", "pillow"
        ),
        "onnxruntime": make_python(out / "new", "onnxruntime", "numpy", "pillow"),
        "torch": make_python(out / "torch", options.torch, "numpy", "pillow"),
    }
    if not (out / "pictures").exists():
        write_pictures(out / "pictures")
    data = load_data(f"imagefolder:{out / 'pictures'}")
    gaps = []
    for family in options.families.split(","):
        for case, folder, reported, files in exported(family, data, out, options.images):
            for name, python in pythons.items():
                script = folder / ("example_torch.py" if name == "torch" else "example_onnx.py")
                found = accuracy(python, script, files)
                gaps.append(abs(found - reported))
                print(f"{case:<26} {name:<16} {found:5.1f} % of {reported:5.1f} %", flush=True)
    print(f"largest difference {max(gaps):.1f} points in {len(gaps)} cases")
    if max(gaps) > LARGEST_GAP:
        sys.exit(f"more than {LARGEST_GAP:g} points")


if __name__ == "__main__":
    main()
