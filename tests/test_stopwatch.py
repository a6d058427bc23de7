"""Budgets for a quantile of single inferences, and what the stopwatch makes of a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from conftest import export_weights_alone, made_up_table
from scipy.stats import binom, ecdf
from test_campaign import Known

import nas
import nas.runtimes
from nas import cli
from nas.budget import Budget
from nas.errors import EvaluationError, InfeasibleError, UsageError, VitnasError
from nas.families import load_space
from nas.latency.end_to_end import Measurement, measure_fresh
from nas.run.request import read_budgets
from nas.run.stopwatch import Samples, rounds_for
from nas.run_record import RunRecord
from nas.runtimes import runtimes
from nas.settings import Settings
from nas.tasks.classification import Classification

SPACE = load_space("swin:debug", Classification(2))
TAIL = 1.3  # of every tenth inference, by the others


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_the_upper_limit_of_a_quantile_is_above_it_as_often_as_it_says(quantile):
    """Of 97.5 % at least by order statistics; the chance is known in closed form."""
    n = 3 * rounds_for(quantile)
    samples = tuple(float(i) for i in range(n))
    place = int(Samples(samples, quantile=quantile).upper_ms)
    # The sample at a place (from 0) is above the quantile if at most so many are below it.
    assert binom.cdf(place, n, quantile) >= 0.975
    assert binom.cdf(place - 1, n, quantile) < 0.975
    if quantile > 0.5:
        assert place <= n - 3
        assert binom.ppf(0.975, n - 3, quantile) > n - 6  # so many samples are needed


def test_few_samples_say_nothing_of_a_high_quantile():
    assert Samples(tuple(range(1, 31)), quantile=0.95).upper_ms == float("inf")
    assert rounds_for(0.5) == 10
    assert rounds_for(0.95) < rounds_for(0.99) <= 240


def test_the_chance_within_a_budget_is_the_share_of_inferences_as_they_were():
    """By the empirical distribution of SciPy; waiting is not left out."""
    ms = np.random.default_rng(0).gamma(20, 1, 90)
    samples = Samples(tuple(ms), cpu_ms=(1.0,) * 90)
    for budget in (0.0, 15.0, 20.0, ms[0], 99.0):
        assert samples.share_within(budget) == pytest.approx(ecdf(ms).cdf.evaluate(budget))


def test_the_median_leaves_out_waiting_and_a_quantile_does_not():
    ms = tuple(40.0 if i % 2 else 20.0 for i in range(30))
    samples = Samples(ms, cpu_ms=(19.9,) * 30)
    assert (samples.median_ms, samples.p95_ms, samples.held_up) == (20.0, 40.0, 0.5)
    assert Samples(ms, cpu_ms=(19.9,) * 30, quantile=0.9).quantile_ms == 40.0
    assert Samples((40.0,) * 30, cpu_ms=(19.9,) * 30).median_ms == 19.9
    assert (Samples(ms).median_ms, Samples(ms).held_up) == (30.0, 0.0)  # of threads, or unknown


@pytest.mark.parametrize("quantile", [0.4, 0.995, 1.0])
def test_quantiles_that_cannot_be_had_are_refused(quantile):
    with pytest.raises(UsageError, match=r"quantile is at least 0\.5 and at most 0\.99"):
        Settings(({"torch-cpu": 20.0},), quantile=quantile)


def test_devices_without_single_inferences_are_refused(monkeypatch):
    for attributes in ({"exact": True}, {"exact": False, "single": False}):
        kind = type("Own", (Known,), attributes)
        monkeypatch.setattr(nas.runtimes, "runtimes", lambda: {"known": kind})  # noqa: B023
        with pytest.raises(UsageError, match="known gives no times of single inferences"):
            read_budgets("20ms", "known", quantile=0.95)
        assert read_budgets("20ms", "known").budgets == ({"known": 20.0},)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="label gives no times of single inferences"):
        read_budgets(["20ms", "label=3ms"], table="label=folder", quantile=0.95)


def test_a_phone_is_refused_before_it_is_asked(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["search", "--budget=20ms", "--quantile=0.95", "--device=adb://pixel"])
    assert end.value.code == 2
    assert "leave out --quantile" in capsys.readouterr().err


def test_which_devices_give_single_inferences():
    without = {name for name, kind in runtimes().items() if kind.exact or not kind.single}
    assert {name for name in without if not name.startswith("ethos")} == {
        "adb://", "tensorrt", "torch-cuda", "torch-cuda-graph"}  # fmt: skip
    assert {"torch-cpu", "onnxruntime-cpu", "openvino-cpu", "ssh://"}.isdisjoint(without)


@pytest.fixture
def settings(tmp_path, photo_data, debug_supernet, monkeypatch):
    """A search whose stopwatch shows what the table says, and every tenth time a longer one."""
    table = made_up_table(SPACE, tmp_path / "table")
    asked = []

    def measure(device, space, architectures, rounds, advance, **_):
        asked.append(rounds)
        times = [TAIL if i % 10 == 0 else 1.0 for i in range(3 * rounds)]
        predicted = [table.predict(space, a) for a in architectures]
        return [Measurement([x * ms for x in times], [], 1.0) for ms in predicted]

    monkeypatch.setattr("nas.latency.end_to_end.measure_fresh", measure)
    export_weights_alone(monkeypatch)
    trellis = table.trellis(SPACE)
    return dict(
        budget=Budget(0.5 * (trellis.fastest + trellis.slowest)), space="swin:debug", data=photo_data.name,
        supernet=debug_supernet, table=tmp_path / "table", evaluations=16, search_images=10,
        test_images=10, out=tmp_path / "run",
    ), asked  # fmt: skip


def test_a_budget_holds_for_the_quantile_that_is_asked_for(settings, capsys):
    own, asked = settings
    record = nas.search(**own, quantile=0.95)
    (answer,) = record.answers
    won, budget = answer.winner, answer.budget_ms
    assert won.measured_quantile_ms == pytest.approx(TAIL * won.measured_ms, rel=1e-2)
    assert won.measured_quantile_ms <= won.upper_ms <= budget
    assert set(asked) == {rounds_for(0.95)}
    assert record["quantile"] == 0.95
    assert record["winner"]["measured_quantile_ms"] == won.measured_quantile_ms
    saved = RunRecord.read(own["out"] / "run.json")
    assert saved.answers[0].winner.tail_ms == won.measured_quantile_ms
    page = (own["out"] / "report.html").read_text()
    assert "--quantile 0.95" in page
    assert "for 95 % of inferences: the winner uses" in page
    assert json.loads((own["out"] / "settings.json").read_text())["quantile"] == 0.95
    again = nas.search(**own, quantile=0.95, resume=True)
    assert again.answers[0].winner == won


def test_the_median_is_asked_for_by_default(settings):
    own, asked = settings
    record = nas.search(**own)
    assert set(asked) == {10}
    assert record.quantile == 0.5
    assert "measured_quantile_ms" not in record["winner"]
    won = record.answers[0].winner
    assert won.upper_ms == pytest.approx(won.measured_ms, rel=1e-3)
    assert (record.tail, won.tail_ms) == ("p95", won.measured_p95_ms)


def test_a_table_that_knows_its_tail_keeps_predictions_below_it(settings):
    """The limit is that of a budget that is smaller by the tail; nothing is tried in vain."""
    own, _ = settings
    folder = own["table"]
    table = nas.LatencyTable.load(folder)
    plain = {k: v for k, v in table.manifest.items() if k != "contents"}
    nas.LatencyTable(table.rows, {**plain, "quantiles": {"0.95": TAIL}}).save(folder)
    record = nas.search(**own, quantile=0.95)
    (answer,) = record.answers
    assert answer.limit_ms == pytest.approx(table.limit(answer.budget_ms / TAIL, 0.95), abs=1e-4)
    assert answer.winner.upper_ms <= answer.budget_ms
    within = table.trellis(SPACE).within(answer.budget_ms / TAIL, ticks=8192).count
    assert answer.feasible.within_budget == within
    least = table.trellis(SPACE).fastest
    with pytest.raises(InfeasibleError, match="for 95 % of inferences"):
        nas.search(**{**own, "out": own["out"] / "b", "budget": Budget(1.1 * least)}, quantile=0.95)


def test_a_table_with_quantiles_that_cannot_be_is_refused(settings):
    folder = settings[0]["table"]
    manifest = dict(nas.LatencyTable.load(folder).manifest)
    for quantiles in ({"2": 1.0}, {"0.9": -1.0}, {"x": 1.0}, {"0.9": "much"}):
        (folder / "manifest.toml").write_text(tomli_w.dumps({**manifest, "quantiles": quantiles}))
        with pytest.raises(VitnasError, match="damaged"):
            nas.LatencyTable.load(folder)


@pytest.mark.skipif(not Path("/proc").exists(), reason="children are found in /proc")
def test_a_measuring_process_does_not_outlive_its_search():
    code = (
        "from nas.families import load_space; from nas.tasks.classification import Classification\n"
        "from nas.latency.end_to_end import measure_fresh\n"
        "space = load_space('swin:debug', Classification(2))\n"
        "measure_fresh('torch-cpu', space, [space.largest], 10**7, advance=lambda n: print(n, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as search:
        assert search.stdout.readline() == b"1\n"
        children = Path(f"/proc/{search.pid}/task/{search.pid}/children").read_text().split()
        (measuring,) = (Path(f"/proc/{child}/stat") for child in children)
        assert lives(measuring)
        search.kill()
        end = time.monotonic() + 30
        while lives(measuring):
            assert time.monotonic() < end
            time.sleep(0.02)


def lives(stat):
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_measuring_process_that_dies_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(EvaluationError, match="the measuring process failed"):
        measure_fresh("torch-cpu", SPACE, [SPACE.largest])


def test_samples_are_numpy_free_in_the_journal(settings):
    own, _ = settings
    nas.search(**own)
    lines = (own["out"] / "measured.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert len(record["samples_ms"]) == 30
    assert record["cpu_ms"] == []
    assert np.median(record["samples_ms"]) > 0
