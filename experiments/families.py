"""One picture of all families on one device: test accuracy over measured latency.

    python experiments/families.py

Reads what `python experiments/budgets.py --space SPACE` left for each space in a folder
(`budgets-SPACE.csv`) and draws the winners of all budgets, means over the seeds with standard
errors of the seeds, beside the best dense networks. Writes `families.png` there. Takes a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

OUT = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=OUT)
    draw(parser.parse_args().folder)


def draw(folder: Path) -> None:
    """Draw the studies of budgets in a folder into `families.png` beside them."""
    files = sorted(folder.glob("budgets-*.csv"))
    if not files:
        raise SystemExit(f"{folder} holds no budgets-SPACE.csv: run experiments/budgets.py first")
    figure, axes = plt.subplots(figsize=(8.6, 4.4), layout="constrained")
    for number, file in enumerate(files):
        table = pd.read_csv(file)
        family = file.stem.removeprefix("budgets-").replace("-", ":", 1)
        mean = table.groupby("budget_ms").mean(numeric_only=True)
        error = table.groupby("budget_ms")["winner_percent"].sem().fillna(0)
        color = f"C{number}"
        axes.errorbar(
            mean.winner_ms, mean.winner_percent, error, fmt="o-", color=color, label=family
        )
        if "dense_ms" not in mean:
            continue
        axes.plot(
            mean.dense_ms, mean.dense_percent, "x--", color=color, alpha=0.6,
            label=None if number else "best dense network of each",
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = [2, 3, 4, 6, 8, 12, 20, 30, 40]
    axes.set_xticks(ticks, [str(t) for t in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("measured latency (ms)")
    axes.set_ylabel("accuracy on test scenes (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(folder / "families.png", dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    main()
