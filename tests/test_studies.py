"""What studies make of the results they wrote down, against closed forms and made-up results."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from nas.families import load_space
from nas.strategy.ridge import Ridge
from nas.training.subnets import bands
from nas.trellis.graph import encode

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import adaptation
import families
import finetuning
import rank_correlation


def test_arms_are_compared_scene_by_scene():
    """Of four scenes one arm gains one for both networks: 25 points, error 50 / sqrt(4)."""
    before = {"a": [0, 1, 1, 0], "b": [0, 1, 0, 0]}
    after = {"b": [1, 1, 0, 0], "a": [1, 1, 1, 0]}
    records = [
        {"arm": arm, "seed": 0, "images": 8, "seconds": 2.4, "hits": hits}
        for arm, hits in (("largest", before), ("band", after))
    ]
    row = adaptation.table(records).iloc[1]
    assert row[["a", "b", "mean", "ahead", "error"]].tolist() == [75, 50, 62.5, 25, 25]


def test_the_best_of_a_band_is_predicted_to_be_better_than_draws_from_it():
    space, rng = load_space("vit:debug"), np.random.default_rng(0)
    paths = np.concatenate([band.sample(30, rng) for band in bands(space)])
    ridge = Ridge.fit(space.positions, paths, rng.normal(60, 5, len(paths)))
    for number, band in enumerate(bands(space)):
        best = encode(space, adaptation.best_of_band(space, ridge, number))
        assert ridge.predict(best[None])[0] >= ridge.predict(band.sample(300, rng)).max() - 1e-9
    drawn = {adaptation.best_of_band(space, ridge, 3, Random(seed)).id for seed in range(20)}
    assert len(drawn) > 1


def test_gains_of_fine_tuning_are_paired():
    records = [
        {"sparsity": 40, "images": 0, "seconds": 0, "hits": [0, 1, 1, 0]},
        {"sparsity": 40, "images": 16, "seconds": 3, "hits": [1, 1, 1, 0]},
    ]
    none, some = finetuning.table(records).to_dict("records")
    assert (none["gained"], none["percent"]) == (0, 50)
    assert (some["gained"], some["error"], some["percent"]) == (25, 25, 75)


def test_the_correlation_is_that_of_scipy_and_certain_where_ranks_agree():
    alone = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    table = pd.DataFrame({"same": alone * 2, "other": alone[::-1], "alone_percent": alone})
    assert "tau 1.00 (1.00 to 1.00) on 5" in rank_correlation.correlation(table, "same")
    tau = kendalltau(alone[::-1], alone).statistic
    assert f"tau {tau:.2f} (" in rank_correlation.correlation(table, "other")


def test_all_families_are_drawn_that_have_a_study_of_budgets(tmp_path: Path):
    with pytest.raises(SystemExit, match="holds no budgets-SPACE"):
        families.draw(tmp_path)
    rows = [
        {"seed": seed, "budget_ms": ms, "winner_ms": ms - 0.2, "winner_percent": 60 + ms + seed,
         "dense_ms": ms - 0.3, "dense_percent": 59 + ms}
        for seed in range(2) for ms in (3.0, 5.0)
    ]  # fmt: skip
    for space in ("mobilevit-micro", "swin-micro"):
        pd.DataFrame(rows).to_csv(tmp_path / f"budgets-{space}.csv", index=False)
    families.draw(tmp_path)
    assert (tmp_path / "families.png").read_bytes()[1:4] == b"PNG"
