"""Is a network faster than in another checkout? Both run in turns, so that other load hits both.

    python experiments/speed_of_checkouts.py OLD [NEW] [--networks swin:micro@168 ...] [--rounds 16]

NEW is by default the checkout that this file is in. A network is a space or a model, a resolution,
and maybe a sparsity in percent everywhere and a precision: `swin:micro@168,40,int8` is its largest
architecture so. Each checkout has a process of its own with the same seeded weights and images; one
thread, batch 1, fused attention, denormals flushed. A round is both, in changing order, for about
60 ms; what is compared is processor time. Printed are MACs, the median milliseconds, the median of
the ratios of a round, and the largest difference of an output in shares of the largest output.

What it gave for the commit that took padding out of Swin's MLP (OLD is 5ecc820) stands in
README.md. Eight minutes on two busy cores. Expected: equal outputs, and ratios of 1 within 0.02
where nothing is padded (112 and 224 px).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = "swin_tiny_patch4_window7_224"
NETWORKS = [
    *(f"{TINY}@{side}" for side in (160, 168, 192, 224, 512)),
    *(f"swin:micro@{side}" for side in (112, 168, 224)),
    *(f"swin:micro@168,{sparsity}" for sparsity in (20, 40, 60, 80)),
    *(f"swin:micro@224,{sparsity}" for sparsity in (40, 80)),
    f"{TINY}@160,0,int8",
]


def built(text: str) -> tuple[Any, Any, float]:
    """The network that a line names, an image for it, and its MACs in 1e9."""
    import torch

    from nas.families import load_space
    from nas.layers.attention import fused
    from nas.network.macs import sum_macs
    from nas.network.network import Network
    from nas.space.architecture import at_precision

    name, sparsity, precision = [*text.split(","), *["0", "fp32"][text.count(",") :]]
    model, _, side = name.partition("@")
    space = load_space(name if "_" in model else model)
    architecture = replace(space.largest, resolution=int(side))
    stages = (
        replace(s, blocks=tuple(replace(b, sparsity=int(sparsity)) for b in s.blocks))
        for s in architecture.stages
    )
    architecture = at_precision(replace(architecture, stages=tuple(stages)), precision)
    network = Network(space.with_int8(), architecture).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        spread = 0.05 if weight.ndim > 1 else 0.2
        weight.data += spread * torch.randn(weight.shape, generator=generator)
    for buffer in network.buffers():
        buffer.copy_(torch.tensor([-3.0, 3.0]))  # ranges of int8
    image = torch.randn(1, 3, int(side), int(side), generator=generator)
    macs = sum_macs(space.with_int8().layers(architecture)).total
    return network.use_in_windows(fused).deploy(), image, macs / 1e9


def worker() -> None:
    """Build what is asked for, and run it as often as is asked for."""
    import torch

    from nas.runtimes.host import quiet_process

    torch.set_num_threads(1)
    quiet_process()
    network, image = None, torch.empty(0)
    for line in sys.stdin:
        ask = json.loads(line)
        with torch.inference_mode():
            if isinstance(ask, str):
                with torch.inference_mode(False):
                    torch.manual_seed(0)
                    network, image, macs = built(ask)
                answer: Any = {"macs": macs, "outputs": network(image).flatten().tolist()}
            else:
                start = time.process_time()
                for _ in range(ask):
                    network(image)
                answer = 1e3 * (time.process_time() - start) / ask
        print(json.dumps(answer), flush=True)


class Checkout:
    """A process that runs networks with the code of one checkout."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=folder, env=environment,
        )  # fmt: skip

    def ask(self, what: str | int) -> Any:
        """Build the network of a line, or run it so many times: milliseconds of one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def compare(old: Checkout, new: Checkout, network: str, rounds: int) -> str:
    """One line of the table."""
    before, after = old.ask(network), new.ask(network)
    largest = max(map(abs, before["outputs"]))
    off = max(abs(a - b) for a, b in zip(before["outputs"], after["outputs"])) / largest
    runs = max(1, round(60 / old.ask(3)))
    times: dict[Checkout, list[float]] = {old: [], new: []}
    for turn in range(rounds):
        for checkout in (old, new) if turn % 2 else (new, old):
            times[checkout].append(checkout.ask(runs))
    ratio = statistics.median(a / b for a, b in zip(times[old], times[new]))
    ms = [statistics.median(own) for own in times.values()]
    return (
        f"| `{network}` | {before['macs']:.2f} / {after['macs']:.2f} | {ms[0]:.2f} / {ms[1]:.2f} "
        f"| {ratio:.3f} | {off:.0e} |"
    )


def main() -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", nargs="?", type=Path)
    parser.add_argument("new", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    if options.old is None:
        parser.error("give the old checkout")
    old, new = Checkout(options.old.resolve()), Checkout(options.new.resolve())
    print("| network | G MACs, old / new | ms, old / new | old : new | outputs differ by |")
    print("|---|---|---|---|---|")
    for network in options.networks:
        print(compare(old, new, network, options.rounds), flush=True)


if __name__ == "__main__":
    main()
