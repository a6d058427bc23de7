"""Four budgets: is each kept as measured, and how much of it is used?

    python experiments/budgets.py

`vitnas search` at 8, 12, 20 and 40 ms with its defaults, then one report with all four side by
side and the pictures of docs/search.md. About six minutes; runs below `runs/budgets`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nas

OUT = Path(__file__).parent / "results"


def main() -> None:
    runs = []
    for budget in (8, 12, 20, 40):
        folder = Path("runs") / "budgets" / f"{budget}ms"
        done = (folder / "run.json").exists()
        runs.append(folder)
        result = nas.search(f"{budget}ms", out=folder, resume=done)
        winner = result["winner"]
        print(
            f"{budget} ms: {winner['measured_ms']:.2f} ms (p95 {winner['measured_p95_ms']:.2f}, "
            f"{100 * winner['measured_ms'] / budget:.0f} % used), "
            f"test {winner['test_top1_percent']:.1f} %; "
            + ", ".join(
                f"{b['name']} {b['measured_ms']:.1f} ms {b['test_top1_percent']:.1f} %"
                for b in result["baselines"]
            ),
            flush=True,
        )
    OUT.mkdir(exist_ok=True)
    nas.write_report(runs, Path("runs") / "budgets" / "comparison.html")
    for name in ("pareto", "kept"):
        shutil.copy(runs[2] / "pictures" / f"{name}.png", OUT / f"{name}.png")


if __name__ == "__main__":
    main()
