"""Campaigns against a device whose costs are known, and against kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest

import nas.runtimes
from nas.errors import PreparationError, RunError, TableError
from nas.families import load_space
from nas.latency.profiling import profile
from nas.latency.protocols import stackable
from nas.latency.table import LatencyTable
from nas.records import Journal
from nas.runtimes import Runtime, Sample
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph, space_layers

SPACE = load_space("swin:debug", Classification(2))
CALL, FIRST = 3.0, 0.7  # what every call, and every first layer, costs on the device below


def true_ms(layer):
    return 1 + crc32(layer.key.encode()) % 1000 / 1000


class Known(Runtime):
    """A device whose layers cost what `true_ms` says, plus something for each call."""

    exact = True
    refused = ()  # parts of keys that it cannot run
    elsewhere = ()  # parts of keys that fall back

    def describe(self):
        return {"name": self.device, "processor": "known", "runtime": "known"}

    def note(self, layer):
        return "fallback: TOPK" if any(word in layer.key for word in self.elsewhere) else ""

    def prepare(self, layers, fused):
        for layer in layers:
            if any(word in layer.key for word in self.refused):
                raise PreparationError(f"cannot do {layer.key}")
        costs = [true_ms(layer) for layer in layers]
        fixed = CALL + (FIRST if len(layers) > 1 else 0)
        whole = [Sample(fixed + sum(costs), 0.0)]
        return lambda: whole if fused else [Sample(cost, 0.0) for cost in costs]


@pytest.fixture
def device(monkeypatch):
    """Makes `known` a device, with attributes."""

    def make(**attributes):
        kind = type("Own", (Known,), attributes)
        monkeypatch.setattr(nas.runtimes, "runtimes", lambda: {"known": kind})
        return "known"

    return make


def test_rows_in_network_order_are_the_layers_and_the_rest_is_overhead(device, tmp_path):
    table = profile(SPACE, device(), tmp_path)
    layers = space_layers(SPACE)
    assert {k: row.median for k, row in table.rows.items()} == pytest.approx(
        {k: true_ms(layer) for k, layer in layers.items()}
    )
    c = table.calibration
    assert (c.scale, c.overhead) == (pytest.approx(1), pytest.approx(CALL + FIRST))
    assert (c.mape_percent, c.kendall_tau, c.factors) == (0, 1, {})
    assert (c.fitted_on, c.held_out) == (5, 10)


def test_stacks_leave_out_what_every_call_costs(device, tmp_path):
    alone = profile(SPACE, device(), tmp_path / "a", context="isolated")
    stacked = profile(SPACE, device(), tmp_path / "b", context="stacked")
    layers = space_layers(SPACE)
    assert any(stackable(layer) for layer in layers.values())
    for key, layer in layers.items():
        assert alone.rows[key].median == pytest.approx(CALL + true_ms(layer))
        twice = true_ms(layer) + FIRST if stackable(layer) else CALL + true_ms(layer)
        assert stacked.rows[key].median == pytest.approx(twice)
    assert alone.manifest["context"] == "isolated"


def test_behind_another_layer_a_row_is_what_it_adds(device, tmp_path):
    def prepare(self, layers, fused):
        if any("WindowBlock" in a.key and "Head" in b.key for a, b in pairwise(layers)) and (
            len(layers) == 2
        ):
            raise PreparationError("not as a pair")
        return Known.prepare(self, layers, fused)

    table = profile(SPACE, device(prepare=prepare), tmp_path, context="added")
    for key, layer in space_layers(SPACE).items():
        first = CALL if "PatchEmbed" in key or "Head" in key else FIRST
        assert table.rows[key].median == pytest.approx(true_ms(layer) + first)


@pytest.mark.parametrize("context", ["network", "isolated", "stacked", "added"])
def test_what_does_not_run_is_recorded_and_never_chosen(device, tmp_path, context):
    table = profile(SPACE, device(refused=("kept=2,",)), tmp_path, context=context)
    failed = {key for key, row in table.rows.items() if not row.usable}
    assert failed
    for key in failed:  # itself, or it is found only beside such layers
        why = table.rows[key].note
        assert "no architecture without" in why or ("cannot do" in why and "kept=2," in key)
    assert any("cannot do" in table.rows[key].note for key in failed)
    trellis = table.trellis(SPACE)
    assert 0 < trellis.graph.count < Graph.of(SPACE).count
    assert not failed & trellis.graph.items().keys()
    again = LatencyTable.load(tmp_path)
    assert {k for k, row in again.rows.items() if not row.usable} == failed
    sparse = next(a for a in _draws() if failed & {x.key for x in SPACE.layers(a)})
    assert table.predict(SPACE, sparse) == np.inf


def _draws():
    rng = random.Random(0)
    while True:
        yield SPACE.draw(rng)


def test_operators_that_fall_back_are_named_and_never_summed(device, tmp_path):
    table = profile(SPACE, device(elsewhere=("WindowScore",)), tmp_path)
    rows = [row for row in table.rows.values() if row.kind == "WindowScore"]
    assert rows
    assert all(row.note == "fallback: TOPK" and np.isnan(row.median) for row in rows)
    assert not any("WindowScore" in key for key in table.trellis(SPACE).graph.items())


def test_a_device_that_runs_nothing_is_an_error(device, tmp_path):
    with pytest.raises(TableError, match="no architecture of swin:debug runs on known: failed"):
        profile(SPACE, device(refused=("PatchEmbed",)), tmp_path)


def test_factors_of_kinds_are_fitted_where_they_are_needed(device, tmp_path):
    def note(self, layer):
        return ""

    def prepare(self, layers, fused):
        costs = [true_ms(layer) for layer in layers]
        slow = [2.5 if "WindowBlock" in layer.key else 1.0 for layer in layers]
        whole = [Sample(1 + float(np.dot(costs, slow)), 0.0)]
        return lambda: whole if fused else [Sample(cost, 0.0) for cost in costs]

    table = profile(SPACE, device(prepare=prepare, note=note, exact=False), tmp_path)
    c = table.calibration
    assert c.factors["WindowBlock"] > 1.5 * c.factors["Head"]
    assert c.mape_percent < 0.5


def test_a_table_is_carried_to_a_sibling_by_a_few_rows(device, tmp_path):
    old = profile(SPACE, device(), tmp_path / "old")

    def describe(self):
        return {**Known.describe(self), "processor": "sibling"}

    def prepare(self, layers, fused):
        program = Known.prepare(self, layers, fused)
        return lambda: [Sample(3 * s.wall, 0.0) for s in program()]

    new = device(describe=describe, prepare=prepare)
    table = profile(SPACE, new, tmp_path / "new", sibling=old, rows_per_kind=2)
    assert table.rows.keys() == old.rows.keys()
    measured = [row for row in table.rows.values() if row.note != "ported"]
    assert 0 < len(measured) < len(old.rows)
    for key, row in table.rows.items():
        assert row.median == pytest.approx(3 * old.rows[key].median, rel=1e-3)
    assert table.manifest["source"] == "ported"
    assert table.manifest["port"]["mape_percent"] < 0.1
    assert table.calibration.mape_percent < 0.1


@pytest.mark.slow
def test_a_profile_survives_ten_kills(tmp_path):
    """Each at a random moment; the last one ends with every row once and no line torn."""
    code = (
        "import sys; from pathlib import Path; from nas.families import load_space; from nas.tasks.classification import Classification\n"
        "from nas.latency.profiling import profile\n"
        f"profile(load_space('swin:debug', Classification(2)), folder=Path({str(tmp_path)!r}), rounds=20)"
    )
    rng = random.Random(0)
    journal = Journal(tmp_path / "samples.jsonl")
    before = 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while process.poll() is None and len(journal.read()) <= before:
            time.sleep(0.01)
        time.sleep(rng.random() / 5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = len(journal.read())
        assert now > before
        before = now
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0
    table = LatencyTable.load(tmp_path)
    assert table.rows.keys() == space_layers(SPACE).keys()
    assert all(row.samples >= 5 for row in table.rows.values())
    text = (tmp_path / "samples.jsonl").read_text()
    assert len(journal.read()) == len(text.splitlines())  # no line is torn
    assert sum('"identity"' in line for line in text.splitlines()) == 1


def test_two_profiles_do_not_write_into_one_folder(device, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from nas.records import Journal\n"
        f"with Journal(Path({str(tmp_path)!r}) / 'samples.jsonl').locked():\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RunError, match="another process is writing"):
            profile(SPACE, device(), tmp_path)
        other.kill()
    profile(SPACE, device(), tmp_path)
