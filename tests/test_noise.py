"""What a busy machine does to tables, on devices whose true costs, waits and clock are known."""

from __future__ import annotations

import json
from zlib import crc32

import numpy as np
import pytest

import nas.latency.campaign
import nas.runtimes
from nas import cli
from nas.errors import TableError
from nas.families import load_space
from nas.latency.audit import audit
from nas.latency.noise import steadied, undisturbed, wanting
from nas.latency.profiling import ROUNDS, profile
from nas.latency.table import LatencyTable
from nas.runtimes import Runtime, Sample
from nas.tasks.classification import Classification
from nas.trellis.graph import space_layers

SPACE = load_space("swin:debug", Classification(2))
FIXED_MS = 0.5  # what every network costs beside its layers


def true_ms(layer):
    return 0.1 + crc32(layer.key.encode()) % 1000 / 1000


class Machine(Runtime):
    """A processor that other programs want too, and whose clock wanders.

    `waits` is the chance that a layer waits while it runs, and for how long beside its own time;
    `wander` the spread of its speed, which changes slowly; `jitter` that of single samples;
    `beyond` an error of sums that no more samples remove.
    """

    waits, wander, jitter, beyond, threads = 0.0, 0.0, 0.0, 0.0, 1

    def describe(self):
        return {"name": self.device, "processor": "p", "runtime": "r", "threads": self.threads}

    def __enter__(self):
        self.rng, self.speed = np.random.default_rng(0), 0.0
        return self

    def sample(self, cpu):
        rng = self.rng
        self.speed = 0.998 * self.speed + (1 - 0.998**2) ** 0.5 * self.wander * rng.normal()
        cpu *= np.exp(self.speed + self.jitter * rng.normal())
        # The longer it runs, the more often its turn ends.
        turns = rng.poisson(cpu * self.waits)
        return Sample(float(cpu + 3 * turns), float(cpu) / self.threads)

    def prepare(self, layers, fused):
        costs = [true_ms(layer) for layer in layers]
        off = 1 + self.beyond * (crc32(" ".join(x.key for x in layers).encode()) % 201 / 100 - 1)
        whole = (FIXED_MS + sum(costs)) * off
        return lambda: [self.sample(c) for c in ([whole] if fused else costs)]


@pytest.fixture
def machine(monkeypatch):
    """Makes `machine` a device, with attributes."""

    def make(**attributes):
        kind = type("Own", (Machine,), attributes)
        monkeypatch.setattr(nas.runtimes, "runtimes", lambda: {"machine": kind})
        return "machine"

    return make


def error_of_rows(table):
    """The mean error in percent of what the table says of each layer, calibrated or not."""
    layers = space_layers(SPACE)
    ratios = np.array([table.rows[k].median / true_ms(layer) for k, layer in layers.items()])
    return 100 * np.abs(ratios / np.median(ratios) - 1).mean()


def test_what_was_held_up_counts_by_processor_time_where_too_little_was_not():
    samples = np.array([[9.0, 1.0], [1.02, 1.0], [7.0, 1.1], [1.0, 1.0], [1.04, 1.0]])
    assert undisturbed(samples)[:, 0].tolist() == [1.02, 1.0, 1.04]
    assert undisturbed(samples[:3])[:, 0].tolist() == [1.0, 1.02, 1.1]
    assert undisturbed(samples[:3], serial=False)[:, 0].tolist() == [9.0, 1.02, 7.0]
    unknown = np.array([[2.0, 0.0], [3.0, 0.0]])
    assert undisturbed(unknown).tolist() == unknown.tolist()


def test_a_machine_that_slows_down_for_a_while_is_taken_out():
    """60 pieces in 4 rounds; from visit 70 to 150 everything takes half as long again."""
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 20, 60)
    order = [(f"row {i}", int(i)) for _ in range(4) for i in rng.permutation(60)]
    slow = [1.5 if 70 <= k < 150 else 1.0 for k in range(240)]
    visits = [(name, [[true[i] * s, true[i] * s]] * 3) for (name, i), s in zip(order, slow)]
    found = steadied(visits)
    assert list(found) == list(dict.fromkeys(name for name, _ in order))

    def spread(own):
        walls = {n: [v[0][0] for v in visits_] for n, visits_ in own.items()}
        return np.mean([np.ptp(w) / np.mean(w) for w in walls.values()])

    raw = {name: [v for n, v in visits if n == name] for name in found}
    assert spread(raw) > 0.3
    assert spread(found) < 0.08  # what is left is at the two edges
    once = [("row 1", [[2.0, 2.0]]), ("row 2", [[3.0, 3.0]])]
    assert steadied(once) == {"row 1": [[[2.0, 2.0]]], "row 2": [[[3.0, 3.0]]]}


def test_a_quiet_machine_gets_its_rounds_and_no_more(machine, tmp_path):
    table = profile(SPACE, machine(jitter=0.01), tmp_path)
    assert table.manifest["rounds"] == ROUNDS
    assert table.calibration.mape_percent < 1
    assert not table.wanting
    assert not table.busy
    assert 0 < table.manifest["noise_percent"] < 1
    # Of normal noise of 1 %: the 95th percentile is 1.645 standard deviations up.
    assert table.tail(0.5) == 1.0
    assert table.tail(0.95) == pytest.approx(1.0165, abs=0.004)
    assert 1.0 < table.tail(0.92) < table.tail(0.95)


def test_beside_other_programs_processor_time_and_neighbours_in_time_give_the_table(
    machine, tmp_path
):
    """Every network waits several times, and the clock wanders by 5 %."""
    table = profile(SPACE, machine(waits=0.5, wander=0.05, jitter=0.02), tmp_path)
    assert table.calibration.mape_percent <= 2
    assert error_of_rows(table) < 2
    assert table.busy
    assert table.manifest["held_up_percent"] > 20
    assert table.manifest["wall_over_cpu"] >= 1
    assert not [f for f in audit(table, space=SPACE) if f.severity == "error"]
    again = LatencyTable.load(tmp_path)
    assert (again.busy, again.tail(0.95)) == (True, table.tail(0.95))


def test_threads_are_judged_by_wall_time(machine, tmp_path):
    """Two threads have twice the processor time: it says nothing about what a call takes."""
    table = profile(SPACE, machine(jitter=0.01, threads=2), tmp_path, rounds=2)
    layers = space_layers(SPACE)
    for key, layer in layers.items():
        assert table.rows[key].median == pytest.approx(true_ms(layer), rel=0.05)


def test_rounds_go_on_while_noise_keeps_the_error_up(machine, tmp_path):
    noisy = machine(jitter=0.25)
    few = profile(SPACE, noisy, tmp_path / "few", rounds=2)
    assert few.manifest["rounds"] == 2
    assert few.wanting
    table = profile(SPACE, noisy, tmp_path / "more")
    assert table.manifest["rounds"] > ROUNDS
    assert table.calibration.mape_percent < few.calibration.mape_percent
    assert table.calibration.mape_percent <= 2 or table.manifest["rounds"] == 3 * ROUNDS


def test_an_error_that_is_not_noise_ends_the_rounds(machine, tmp_path):
    table = profile(SPACE, machine(jitter=0.005, beyond=0.08), tmp_path)
    assert table.calibration.mape_percent > 2
    assert table.manifest["rounds"] == ROUNDS
    assert not table.wanting


def test_a_table_that_is_too_noisy_is_improved_the_next_time(
    machine, tmp_path, monkeypatch, capsys
):
    noisy = machine(jitter=0.3)
    monkeypatch.setattr(nas.latency.campaign, "PATIENCE_MINUTES", 0.0)
    first = profile(SPACE, noisy, tmp_path)
    assert first.wanting
    assert first.manifest["rounds"] == ROUNDS
    again = profile(SPACE, noisy, tmp_path, rounds=ROUNDS)
    assert again.manifest == first.manifest  # as many rounds as asked for are there
    capsys.readouterr()
    better = profile(SPACE, noisy, tmp_path)
    assert better.manifest["campaign"] == first.manifest["campaign"]
    assert better.manifest["rounds"] == ROUNDS + 1
    assert "has an error of" in capsys.readouterr().err
    assert min(r.samples for r in better.rows.values()) > min(
        r.samples for r in first.rows.values()
    )
    (tmp_path / "samples.jsonl").unlink()
    assert profile(SPACE, noisy, tmp_path).manifest == better.manifest  # it stays as it is


def test_samples_that_fit_nothing_are_followed_by_more(machine, tmp_path, monkeypatch):
    """The first outcome cannot be had; the next one can."""
    real, calls = nas.latency.campaign.outcome, []

    def outcome(*given):
        calls.append(given)
        if len(calls) < 3:
            raise TableError("too busy", "wait")
        return real(*given)

    monkeypatch.setattr(nas.latency.campaign, "outcome", outcome)
    table = profile(SPACE, machine(jitter=0.01), tmp_path)
    assert table.manifest["rounds"] == ROUNDS + 2
    monkeypatch.setattr(nas.latency.campaign, "PATIENCE_MINUTES", 0.0)
    calls.clear()
    with pytest.raises(TableError, match="too busy"):
        profile(SPACE, machine(jitter=0.01), tmp_path / "b")


def test_what_is_wanted():
    assert wanting(3.5, 3.0)
    assert not wanting(3.5, 1.0)  # more rounds would not help
    assert not wanting(1.9, 1.9)


def test_the_list_of_tables_shows_state_and_date_and_which_one_a_search_takes(
    machine, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = machine(waits=0.6, jitter=0.01)
    taken = profile(SPACE, device, rounds=3)
    (folder,) = (tmp_path / "cache").glob("vitnas/tables/*/*/manifest.toml")
    other = {**taken.manifest, "device": {**taken.manifest["device"], "runtime": "older"}}
    quiet = {**other, "held_up_percent": 0.0, "noise_percent": 9.0}
    quiet["calibration"] = {**taken.manifest["calibration"], "mape_percent": 9.0}
    LatencyTable(taken.rows, quiet, taken.references).save(folder.parent.with_name("older"))
    ported = {**other, "layer_code": "0" * 12, "device": {**other["device"], "name": "ssh://pi"}}
    LatencyTable(taken.rows, ported, taken.references).save(folder.parent.with_name("pi"))

    def listed(*options):
        with pytest.raises(SystemExit) as end:
            cli.main(["list", "tables", *options])
        assert not end.value.code
        return capsys.readouterr().out

    rows = {row["folder"].rpartition("/")[2]: row for row in json.loads(listed("--json"))["tables"]}
    own = rows[folder.parent.name]
    assert (own["state"], own["used"], own["date"]) == ("busy", "yes", taken.manifest["date"])
    assert (rows["older"]["state"], rows["older"]["used"]) == ("noisy", "no")
    assert (rows["pi"]["state"], rows["pi"]["used"]) == ("stale, busy", "?")
    assert {"source", "rows", "MAPE %", "p95 %", "tau", "bias %"} <= own.keys()
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for line in listed().splitlines() if line.startswith("machine/")]
    assert any("busy" in x and taken.manifest["date"][:10] in x and " yes " in x for x in lines)
    rows_csv = folder.with_name("rows.csv")
    rows_csv.write_text(rows_csv.read_text().replace(",0.", ",1.", 1))
    rows = {row["folder"].rpartition("/")[2]: row for row in json.loads(listed("--json"))["tables"]}
    assert rows[folder.parent.name]["state"].startswith("altered")
    assert rows[folder.parent.name]["used"] == "no"
