"""What pruning saves: the latency of a stage at 0-80 % sparsity, relative to dense.

    python experiments/pruned_stage.py

Stage 1 of Swin at 224 px (64 windows of 7x7) as in `swin:micro` (width 48) and `swin:tiny` (width
96), four blocks, one thread, batch 1, torch eager. A pruned stage includes scoring, gather and
scatter. The five variants are timed in turns, 60 rounds; writes `pruned_stage.csv` and a picture.
Takes a minute. Wanted: within 0.02 of the ideal line (the share of kept windows) at 40-80 %.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from nas.stopwatch import quiet_process
from search_spaces.swin import Block, State, Swin

OUT = Path(__file__).parent / "results"
SPARSITIES, ROUNDS, PAIRS = (0, 20, 40, 60, 80), 60, 2


def stage(parts: Swin, width: int, heads: int, sparsity: int):
    """The layers of one stage, built, and the number of windows that each block works on."""
    state, layers = State(56, width, 0), []
    for i in range(PAIRS):
        part = parts.block(0, i, state, Block(heads, 4, sparsity))
        layers += [(layer, layer.build().eval()) for layer in part.layers]
        state = part.state
    kept = [layer.sizes["kept"] for layer, _ in layers if "kept" in layer.sizes]
    return layers, np.mean(kept) / 64


@torch.inference_mode()
def run_ms(layers, x) -> float:
    start = time.perf_counter()
    state = (x, None)
    for layer, module in layers:
        state = module(*state, **layer.sizes)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    quiet_process()
    torch.manual_seed(0)
    rows = []
    for name, parts, width, heads in (
        ("swin:micro", Swin(head_dim=16), 48, 3),
        ("swin:tiny", Swin(), 96, 3),
    ):
        stages = [stage(parts, width, heads, s) for s in SPARSITIES]
        x = torch.randn(1, 56, 56, width)
        samples = np.array([[run_ms(layers, x) for layers, _ in stages] for _ in range(ROUNDS + 5)])
        medians = np.median(samples[5:], axis=0)
        # Ratios within a round cancel slow moments of the machine.
        ratios = np.median(samples[5:] / samples[5:, :1], axis=0)
        for sparsity, ms, ratio, (_, ideal) in zip(SPARSITIES, medians, ratios, stages):
            rows.append((name, sparsity, round(ms, 3), round(ratio, 4), round(ideal, 4)))
            print(f"{name}  {sparsity:2d} %  {ms:7.2f} ms  {ratio:.3f} of dense, ideal {ideal:.3f}")
    OUT.mkdir(exist_ok=True)
    with (OUT / "pruned_stage.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("stage", "sparsity_percent", "median_ms", "relative_to_dense", "ideal"))
        writer.writerows(rows)
    figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    for name, color in (("swin:micro", "#2563a8"), ("swin:tiny", "#d9a441")):
        own = np.array([r[1:] for r in rows if r[0] == name], dtype=float)
        axes.plot(own[:, 0], own[:, 2], "o-", color=color, label=f"{name}, stage 1")
    axes.plot(own[:, 0], own[:, 3], "--", color="#9aa5b1", label="ideal: kept windows")
    axes.set(xlabel="sparsity [%]", ylabel="latency relative to dense", ylim=(0, 1.05))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(OUT / "pruned_stage.png", dpi=160)


if __name__ == "__main__":
    main()
