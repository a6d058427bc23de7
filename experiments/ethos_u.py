"""Sums of rows against whole networks on Arm Ethos-U, by Vela's model of the hardware.

    python experiments/ethos_u.py [--networks 6] [--spaces A,B] [--devices A,B]

For random networks without sparsity: cycles of rows, added up, against cycles of the whole network
compiled as one. A row is a layer compiled alone (`isolated`), or what it adds to the layer before
it, the median over where it stands in these networks (`network`, which the runtime does). The even
networks fit `a * sum + b`, the odd ones are the error after that. All of it is Vela's estimate,
nothing is measured, and a second run gives the same numbers to the last digit. Writes
`results/ethos_u.csv`.

Two of a layer less one (`stacked`) was tried: raw errors of 0.2 % (Swin, U55), 0.5 % (Swin,
U85-256), 0.7 % (EfficientViT, U55) and 7.8 % (EfficientViT, U85-1024): layers that cannot follow
themselves keep what they take alone.

Needs `pip install 'vitnas[ethos-u]'` and SciPy. One core of an Intel Xeon: about 15 minutes,
two the second time, when what was compiled is on disk. Expected: `network` within 0.2 % in every
line before calibration, no row that falls back, MACs of all rows equal to
`nas.network.macs.count_macs`; `isolated` 0.03 to 18 % too large.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from nas.families import load_space
from nas.network.macs import count_macs
from nas.runtimes.ethos_u import SETTINGS, EthosU
from nas.space.family import SearchSpace
from nas.space.layer import Layer

Rows = dict[str, float]
SPACES = ("swin:micro", "vit:micro", "efficientvit:micro")


def networks(space: SearchSpace, count: int) -> list[tuple[Layer, ...]]:
    dense = space.restrict("sparsity", 0)
    rng = random.Random(0)
    return [dense.layers(dense.draw(rng)) for _ in range(count)]


def rows_by_context(runtime: EthosU, drawn: Sequence[Sequence[Layer]]) -> dict[str, Rows]:
    """Cycles by key, for each way to find them."""
    alone: Rows = {}
    added: dict[str, list[float]] = {}
    for layers in drawn:
        for layer, sample in zip(layers, runtime.prepare(layers, fused=False)()):
            added.setdefault(layer.key, []).append(sample.wall * runtime.setting.clock_mhz * 1e3)
            alone[layer.key] = runtime.compiled((layer,)).cycles
    network = {key: float(np.median(cycles)) for key, cycles in added.items()}
    return {"isolated": alone, "network": network}


def errors(sums: np.ndarray, wholes: np.ndarray) -> dict[str, float]:
    fit, held_out = slice(0, None, 2), slice(1, None, 2)
    weights = 1 / wholes[fit]  # errors count in percent
    a = np.stack([sums[fit], np.ones_like(sums[fit])], 1) * weights[:, None]
    scale, overhead = np.linalg.lstsq(a, np.ones(len(a)), rcond=None)[0]
    raw = 100 * (sums / wholes - 1)
    after = 100 * np.abs((scale * sums + overhead)[held_out] / wholes[held_out] - 1)
    return {
        "ratio_mean": round(float(np.mean(sums / wholes)), 4),
        "raw_mape_percent": round(float(np.abs(raw).mean()), 3),
        "raw_max_percent": round(float(np.abs(raw).max()), 3),
        "scale": round(float(scale), 4),
        "calibrated_mape_percent": round(float(after.mean()), 3),
        "calibrated_max_percent": round(float(after.max()), 3),
        "kendall_tau": round(float(kendalltau(sums, wholes).statistic), 3),
    }


def study(device: str, name: str, count: int) -> Iterator[dict[str, object]]:
    runtime = EthosU(device)
    drawn = networks(load_space(name), count)
    wholes = [runtime.compiled(layers) for layers in drawn]
    rows = {layer.key: layer for layers in drawn for layer in layers}
    compiled = {key: runtime.compiled((layer,)) for key, layer in rows.items()}
    ms = [w.cycles / runtime.setting.clock_mhz / 1e3 for w in wholes]
    shown = {
        "device": device,
        "space": name,
        "networks": count,
        "rows": len(rows),
        "fallback_rows": sum(bool(c.host) for c in compiled.values()),
        "rows_with_exact_macs": sum(
            c.macs == count_macs(rows[k]).total for k, c in compiled.items()
        ),
        "model_ms_least": round(min(ms), 3),
        "model_ms_most": round(max(ms), 3),
    }
    for context, cycles in rows_by_context(runtime, drawn).items():
        sums = [sum(cycles[layer.key] for layer in layers) for layers in drawn]
        found = errors(np.array(sums, float), np.array([w.cycles for w in wholes], float))
        yield {**shown, "context": context, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--devices", default=",".join(SETTINGS))
    options = parser.parse_args()
    results = []
    for device in options.devices.split(","):
        for name in options.spaces.split(","):
            for row in study(device, name, options.networks):
                results.append(row)
                print(row, flush=True)
    path = Path(__file__).parent / "results" / "ethos_u.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, results[0])
        writer.writeheader()
        writer.writerows(results)


if __name__ == "__main__":
    main()
