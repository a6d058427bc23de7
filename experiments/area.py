"""Does latency grow with the area of a picture, whatever its shape?

    python experiments/area.py [--spaces mobilenetv3:micro ...] [--repeats 30]

The largest dense network of each space at 448x448, at two other shapes of that area, at half and at
twice the area, on one thread in eager mode, in turn; times are those of the processor. Takes one to
three minutes. Wanted: times in proportion to the area within 10 %. No shape is padded; `swin:micro`
at 160x320 instead of 224x224 would be, by 10 %. Attention over all tokens or patches (`vit`,
`mobilevit`) grows faster, so that only equal areas take equal times there. Below some 300 px the
calls of operators, of which there are as many at any size, take a part.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from nas.families import load_space
from nas.network.network import Network
from nas.runtimes.host import keep_heap
from nas.size import Sides, Size, area

SHAPES: tuple[Size, ...] = (448, Sides(224, 896), Sides(896, 224), Sides(224, 448), Sides(448, 896))


def times_ms(space_name: str, repeats: int) -> list[float]:
    """The median time of the largest dense network at each shape, in milliseconds."""
    runs = []
    for size in SHAPES:
        space = load_space(f"{space_name}@{size}").restrict("sparsity", 0)
        network = Network(space, space.largest).deploy()
        runs.append((network, torch.randn(1, *space.example(space.largest))))
    samples = np.empty((repeats, len(runs)))
    with torch.inference_mode():
        for i in range(-3, repeats):
            for j, (network, images) in enumerate(runs):
                start = time.process_time()
                network(images)
                samples[max(i, 0), j] = 1000 * (time.process_time() - start)
    return [float(x) for x in np.median(samples, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = ["mobilenetv3:micro", "efficientvit:micro", "swin:micro", "mobilevit:micro"]
    parser.add_argument("--spaces", nargs="+", default=usual)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    keep_heap()
    torch.set_num_threads(1)
    for name in options.spaces:
        found = times_ms(name, options.repeats)
        print(name, flush=True)
        for size, ms in zip(SHAPES, found):
            share = ms / found[0] / (area(size) / area(SHAPES[0]))
            print(f"  {size!s:>8}: {ms:7.2f} ms, {share:.2f} of what the area says", flush=True)


if __name__ == "__main__":
    main()
