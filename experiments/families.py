"""One picture of all families on one device: test accuracy over measured latency.

    python experiments/families.py

Reads what `python experiments/budgets.py --space SPACE` left for each space
(`results/budgets-SPACE.csv`) and draws the winners of all budgets, means over the seeds with
standard errors of the seeds, beside the best dense networks. Writes `results/families.png`. Takes
a second.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

OUT = Path(__file__).parent / "results"


def main() -> None:
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for number, file in enumerate(sorted(OUT.glob("budgets-*.csv"))):
        table = pd.read_csv(file)
        family = file.stem.removeprefix("budgets-").replace("-", ":", 1)
        mean = table.groupby("budget_ms").mean(numeric_only=True)
        error = table.groupby("budget_ms")["winner_percent"].sem().fillna(0)
        color = f"C{number}"
        axes.errorbar(
            mean.winner_ms, mean.winner_percent, error, fmt="o-", color=color, label=family
        )
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
    axes.legend(frameon=False)
    figure.savefig(OUT / "families.png", dpi=160)


if __name__ == "__main__":
    main()
