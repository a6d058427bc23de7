"""What a folder of images costs: processor time per image, to load it and to read it at 224 px.

    python experiments/reading_images.py /tmp/images

Draws three folders there (400 JPEG of 500 x 375, 24 of 12 megapixels, 300 PNG of 256 x 256) and
loads each. Half a minute. To compare two versions, run both in turn with PYTHONPATH. Expected: 1.6,
60 and 4.1 ms to load, 1.7, 29 and 2.4 ms to read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import process_time

import numpy as np
from PIL import Image

from nas.data import load_data

FOLDERS = {
    "small.jpg": (500, 375, 400),
    "phone.jpg": (4032, 3024, 24),
    "small.png": (256, 256, 300),
}


def photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Soft colours under the noise of a camera."""
    soft = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def draw(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name, (width, height, count) in FOLDERS.items():
        for i in range(count):
            path = root / name / "ab"[i % 2] / f"{i}{Path(name).suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(width, height, rng).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    if not root.exists():
        draw(root)
    for name, (_, _, count) in FOLDERS.items():
        start = process_time()
        data = load_data(f"imagefolder:{root / name}")
        loaded = process_time()
        data.train.batch(range(data.train.size), 224)
        read = process_time()
        print(
            f"{name}: {1e3 * (loaded - start) / count:.2f} ms an image to load, "
            f"{1e3 * (read - loaded) / data.train.size:.2f} ms to read at 224 px"
        )


if __name__ == "__main__":
    main()
