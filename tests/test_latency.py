"""Latency tables: calibration in closed form, provenance, resume; never a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import made_up_table
from scipy.stats import kendalltau

from nas.errors import DeviceError, TableError, UnknownNameError
from nas.families import load_space
from nas.latency.audit import audit
from nas.latency.campaign import Campaign
from nas.latency.fit import Calibration, kendall_tau
from nas.latency.profiling import profile
from nas.latency.rows import Row
from nas.latency.table import LatencyTable
from nas.records import Journal
from nas.runtimes import load_runtime
from nas.tasks.classification import Classification
from nas.trellis.graph import encode, space_layers
from nas.versions import layer_code

pytestmark = pytest.mark.quiet  # few rounds on tiny networks: noise of a neighbour would drown them
SPACE = load_space("swin:debug", Classification(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "table"


@pytest.fixture(scope="module")
def table(folder):
    return profile(SPACE, folder=folder, rounds=2)


def test_calibration_recovers_a_line_and_judges_other_networks():
    sums = np.linspace(1, 20, 30)
    measured = 0.5 + 1.1 * sums
    c = Calibration.fit(sums, measured, fitted_on=10)
    assert (c.scale, c.overhead) == (pytest.approx(1.1), pytest.approx(0.5))
    assert (c.fitted_on, c.held_out, c.mape_percent, c.kendall_tau) == (10, 20, 0.0, 1.0)
    raw = np.abs(sums - measured)[10:] / measured[10:]
    assert c.raw_mape_percent == pytest.approx(100 * raw.mean(), abs=1e-3)
    worse = np.concatenate([measured[:10], measured[10:] * 1.05])
    assert Calibration.fit(sums, worse, 10).bias_percent == pytest.approx(
        100 * (1 / 1.05 - 1), abs=0.01
    )


def test_kendall_tau_is_scipys():
    rng = np.random.default_rng(0)
    for n in (5, 20):
        a, b = rng.normal(size=n), rng.normal(size=n)
        assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b).statistic)


def test_a_row_is_the_percentiles_of_its_samples():
    samples = [(float(i), float(2 * i)) for i in range(1, 102)]
    row = Row.of("k", samples)
    assert (row.median, row.p20, row.iqr, row.cpu_median, row.samples) == (
        51.0, 21.0, 50.0, 102.0, 101)  # fmt: skip


def test_a_profile_measures_every_row_of_the_space(table):
    assert set(table.rows) == set(space_layers(SPACE))
    assert all(row.median > 0 and row.samples >= 2 for row in table.rows.values())
    assert table.manifest["source"] == "measured"
    assert table.calibration.held_out > 0


def test_a_prediction_is_overhead_and_the_sum_of_its_rows(table):
    rows = [table.row(layer) for layer in SPACE.layers(SPACE.largest)]
    c = table.calibration
    # Kinds have factors where whole networks were noisy.
    expected = c.overhead + c.scale * sum(c.factors.get(r.kind, 1) * r.median for r in rows)
    assert table.predict(SPACE, SPACE.largest) == pytest.approx(expected)
    trellis = table.trellis(SPACE)
    assert trellis.cost(encode(SPACE, SPACE.largest)) == pytest.approx(expected)


def test_limit_and_interval_agree(table):
    for confidence in (0.5, 0.8, 0.95):
        limit = table.limit(20.0, confidence)
        assert table.interval(limit, confidence)[1] == pytest.approx(20.0)


def test_a_complete_table_is_read_not_measured_again(table, folder, monkeypatch):
    monkeypatch.setattr("nas.latency.profiling.Campaign", None)
    again = profile(SPACE, folder=folder, rounds=2)
    assert again.rows == table.rows
    assert again.manifest == table.manifest


def test_a_missing_row_names_the_command(table):
    other = load_space("vit:debug", Classification(2))
    with pytest.raises(TableError, match="vitnas profile --device torch-cpu --space swin:debug"):
        table.predict(other, other.largest)


@pytest.mark.parametrize(("key", "value"), [("processor", "another"), ("runtime_version", "1.0")])
def test_a_table_of_another_machine_is_refused(table, key, value):
    device = {**load_runtime("cpu").describe(), key: value}
    with pytest.raises(TableError, match=rf"another machine or version: {key}"):
        table.check(SPACE, device)


def test_a_table_of_other_layer_code_or_space_is_refused(table):
    stale = LatencyTable(table.rows, {**table.manifest, "layer_code": "0" * 12})
    with pytest.raises(TableError, match="layer_code"):
        stale.check(SPACE, load_runtime("cpu").describe())
    with pytest.raises(TableError, match="for the space swin:debug, not swin:micro"):
        table.check(load_space("swin:micro", Classification(2)), load_runtime("cpu").describe())
    assert layer_code("swin") != layer_code("vit")


def test_a_damaged_table_is_an_error_with_the_fix(table, tmp_path):
    table.save(tmp_path)
    assert LatencyTable.load(tmp_path).rows == table.rows
    (tmp_path / "rows.csv").write_text("key,median_ms\na,b\n")
    with pytest.raises(TableError, match="line 2: no column 'note'"):
        LatencyTable.load(tmp_path)
    with pytest.raises(TableError, match="vitnas profile"):
        LatencyTable.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"classes": "ten"}, "is damaged .*classes is 'ten'"),
        ({"classes": None}, "is damaged .*the key 'classes' is missing"),
        ({"task": "telepathy"}, "is damaged .*unknown task 'telepathy'"),
        ({"task": "my_lab.tasks"}, "VITNAS_EXTENSIONS does not list"),
    ],
)
def test_a_table_whose_task_is_unknown_is_refused_in_one_line(table, tmp_path, change, why):
    changed = {k: v for k, v in (table.manifest | change).items() if v is not None}
    LatencyTable(table.rows, changed, table.references).save(tmp_path)
    with pytest.raises(TableError, match=why) as error:
        LatencyTable.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_table_without_a_task_is_of_a_classification(table, tmp_path):
    old = {k: v for k, v in table.manifest.items() if k != "task"}
    LatencyTable(table.rows, old, table.references).save(tmp_path)
    assert LatencyTable.load(tmp_path).task == Classification(2)


def test_an_unknown_device_is_refused():
    with pytest.raises(UnknownNameError, match="torch-cpu"):
        load_runtime("gpu")


def test_a_profile_stops_in_time_and_keeps_what_it_has(tmp_path):
    with pytest.raises(TableError, match="time was up"):
        profile(SPACE, folder=tmp_path, rounds=1, minutes=0)
    identity, record = Journal(tmp_path / "samples.jsonl").read()
    assert identity.keys() == {"identity", "campaign"}
    assert len(record["samples"]) == 1
    profile(SPACE, folder=tmp_path, rounds=1)


def test_a_profile_stopped_between_references_calibrates_on_all_of_them(tmp_path):
    first = profile(SPACE, folder=tmp_path, rounds=2)
    journal = Journal(tmp_path / "samples.jsonl")
    records = journal.read()
    ends = [k for k in records[-1]["samples"] if k.startswith("network ")]
    records[-1]["samples"] = {k: records[-1]["samples"][k] for k in ends[:1]}
    journal.path.write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "manifest.toml").unlink()
    again = profile(SPACE, folder=tmp_path, rounds=2)
    assert again.calibration.held_out == first.calibration.held_out


def test_samples_of_another_machine_are_refused(tmp_path):
    Journal(tmp_path / "samples.jsonl").append({"identity": "another"})
    with pytest.raises(TableError, match="samples of another machine"):
        profile(SPACE, folder=tmp_path)


def test_what_is_measured_again_replaces_the_table_when_it_is_complete(tmp_path, monkeypatch):
    """Until then the old one is whole, and the same call goes on; nothing else is deleted."""
    made_up_table(SPACE, tmp_path)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "thesis.tex").write_text("precious")
    campaign = Campaign.run

    def refused(why):
        raise TableError(why, "again")

    def broken(self, minutes):
        self.samples.record({"alone": ["a"]})
        raise DeviceError("the device is gone", "plug it in")

    monkeypatch.setattr(Campaign, "run", broken)
    for _ in range(2):
        with pytest.raises(DeviceError):
            profile(SPACE, folder=tmp_path, again=True, rounds=1)
        assert {name: (tmp_path / name).read_bytes() for name in old} == old
        assert LatencyTable.load(tmp_path).rows
    journal = Journal(tmp_path / "again" / "samples.jsonl")
    assert journal.read()[1:] == 2 * [{"alone": ["a"]}]  # the second try went on
    monkeypatch.setattr(Campaign, "run", lambda *_: refused("too noisy"))
    monkeypatch.setattr(Campaign, "done", True)
    with pytest.raises(TableError, match="too noisy"):
        profile(SPACE, folder=tmp_path, again=True, rounds=1)
    assert journal.read() == []  # what makes no table is not gone on with
    monkeypatch.setattr(Campaign, "run", campaign)
    monkeypatch.setattr(Calibration, "fit_kinds", lambda *_: Calibration(1, 0, 2, 2, 1, 2, 0, 1, 1))
    table = profile(SPACE, folder=tmp_path, again=True, rounds=1)
    names = {"manifest.toml", "rows.csv", "networks.csv", "samples.jsonl", "thesis.tex"}
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == names
    assert LatencyTable.load(tmp_path).rows == table.rows
    assert Journal(tmp_path / "samples.jsonl").read()[0]["campaign"] == table.manifest["campaign"]


@pytest.mark.slow
def test_a_killed_profile_goes_on_with_the_next_round(tmp_path):
    code = (
        "from pathlib import Path; from nas.families import load_space; from nas.tasks.classification import Classification; from nas.latency.profiling import profile;"
        f"profile(load_space('swin:debug', Classification(2)), folder=Path({str(tmp_path)!r}), rounds=400)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    journal = Journal(tmp_path / "samples.jsonl")
    while len(journal.read()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = journal.read()
    table = profile(SPACE, folder=tmp_path, rounds=len(before))
    after = journal.read()
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert min(row.samples for row in table.rows.values()) >= len(before)
    assert table.calibration.held_out >= 12


def test_a_named_model_is_measured_and_not_profiled(tmp_path):
    with pytest.raises(TableError, match="vitnas measure swin_tiny"):
        profile(load_space("swin_tiny_patch4_window7_224", Classification(2)), folder=tmp_path)


@pytest.mark.parametrize("file", ["manifest.toml", "rows.csv", "networks.csv"])
def test_a_table_that_was_altered_by_hand_is_read_but_not_searched_with(table, tmp_path, file):
    """A digit in any of its files is noticed; without the fingerprint it is a table of before."""
    table.save(tmp_path)
    described = load_runtime("torch-cpu").describe()
    LatencyTable.load(tmp_path).check(SPACE, described)
    text = (tmp_path / file).read_text()
    number = {"manifest.toml": "mape_percent = ", "rows.csv": "\n", "networks.csv": "held-out,"}
    start = text.rindex(number[file], 0, -20) + len(number[file])
    digit = next(i for i in range(start, len(text)) if text[i].isdigit())
    (tmp_path / file).write_text(f"{text[:digit]}{9 - int(text[digit])}{text[digit + 1 :]}")
    altered = LatencyTable.load(tmp_path)
    assert altered.altered
    with pytest.raises(TableError, match="was altered after it was measured; restore"):
        altered.check(SPACE, described)
    assert "edited" in {finding.rule for finding in audit(altered, space=SPACE)}
    (tmp_path / file).write_text(text)
    assert not LatencyTable.load(tmp_path).altered
