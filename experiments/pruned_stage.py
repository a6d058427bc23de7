"""What pruning saves: the latency of a stage at 0-80 % sparsity, relative to dense.

    python experiments/pruned_stage.py [--rounds 30]

The blocks of one stage inside whole networks of paper size at 448 px, one thread, batch 1, torch
eager, scoring, gather and scatter included; the dense stage is our own, chunked one. The five
sparsities are timed in turns, and ratios are taken within a round, which cancels slow moments of
the machine. Writes `results/pruned_stage.csv` and a picture.

Two cores of an Intel Xeon (AMX): about five minutes. Wanted for Swin: 0.42 of dense at 60 % (0.40
is the share of kept windows). Attention among fewer tokens of a ViT can save more than its share; a
convolution that needs its neighbours saves less.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nas.families import load_space
from nas.runtimes import Program, Runtime, load_runtime

OUT = Path(__file__).parent / "results"
SPARSITIES = (0, 20, 40, 60, 80)
COLORS = ("#2563a8", "#d9a441", "#5b8c5a", "#b04a5a", "#7a5ba8", "#444444", "#3aa6a6")


@dataclass(frozen=True)
class Subject:
    space: str
    resolution: int
    stage: int


SUBJECTS = (
    Subject("swin:micro", 448, 0),
    Subject("swin:tiny", 448, 0),
    Subject("swin:tiny", 448, 1),
    Subject("vit:small", 448, 0),
    Subject("efficientvit:b1", 448, 2),
    Subject("mobilevit:s", 448, 2),
    Subject("mobilenetv3:large", 448, 2),
)


def variants(
    subject: Subject, runtime: Runtime
) -> tuple[list[Program], list[list[bool]], list[float]]:
    """For each sparsity the network, which of its layers belong to the stage, and what it keeps."""
    space = load_space(subject.space).at(subject.resolution)
    networks, masks, kept = [], [], []
    for sparsity in SPARSITIES:
        architecture = space.restrict("sparsity", sparsity).largest
        inside, state = [], None
        for i, value in enumerate(space.domain.flatten(architecture)):
            part = space.advance(i, state, value)
            own = space.positions[i].name.startswith(f"stages[{subject.stage}].blocks")
            inside += [own] * len(part.layers)
            state = part.state
        inside += [False] * len(space.finish(state))
        networks.append(runtime.prepare(space.layers(architecture), fused=False))
        masks.append(inside)
        kept.append(1 - sparsity / 100)
    return networks, masks, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with load_runtime("torch-cpu") as runtime:
        rows = _measured(runtime, rounds)
    OUT.mkdir(exist_ok=True)
    with (OUT / "pruned_stage.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "sparsity_percent", "median_ms", "relative_to_dense", "kept"))
        writer.writerows(rows)
    draw(rows)


def _measured(runtime: Runtime, rounds: int) -> list[tuple]:
    rows = []
    for subject in SUBJECTS:
        networks, masks, kept = variants(subject, runtime)
        samples = np.array(
            [
                [
                    sum(s.wall for s, own in zip(network(), mask) if own)
                    for network, mask in zip(networks, masks)
                ]
                for _ in range(rounds + 3)
            ]
        )[3:]
        name = f"{subject.space} stage {subject.stage + 1}"
        ratios = np.median(samples / samples[:, :1], axis=0)
        for sparsity, ms, ratio, ideal in zip(SPARSITIES, np.median(samples, 0), ratios, kept):
            rows.append((name, sparsity, round(ms, 3), round(ratio, 4), round(ideal, 4)))
            print(f"{name:28} {sparsity:2d} %  {ms:8.2f} ms  {ratio:.3f} of dense", flush=True)
    return rows


def draw(rows) -> None:
    figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    for name, color in zip(dict.fromkeys(row[0] for row in rows), COLORS):
        own = np.array([row[1:] for row in rows if row[0] == name], dtype=float)
        axes.plot(own[:, 0], own[:, 2], "o-", color=color, label=name, markersize=4)
    axes.plot(own[:, 0], own[:, 3], "--", color="#9aa5b1", label="share of kept windows")
    axes.set(xlabel="sparsity [%]", ylabel="latency relative to dense", ylim=(0, 1.3))
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(OUT / "pruned_stage.png", dpi=160)


if __name__ == "__main__":
    main()
