"""Nothing is ever lost: whatever dies, hangs or fills up, a resumed search ends as if it had not.

The truth is an undisturbed run: the same records, whatever their order in the journal, and the same
front.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_up_table, measure_as_predicted
from PIL import Image
from threadpoolctl import threadpool_limits

import nas
from nas.data import load_data
from nas.errors import EvaluationError, RunError
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.latency.table import LatencyTable
from nas.network.network import Network
from nas.records import Journal, read_json, write_json
from nas.tasks.classification import Classification
from nas.training.supernet import save_supernet


def lines(folder: Path) -> list[str]:
    return sorted((folder / "candidates.jsonl").read_text().splitlines(keepends=True))


def disturb(folder: Path) -> None:
    """Leave what a kill may leave: a part of the records, in the order of workers, one torn."""
    journal = folder / "candidates.jsonl"
    found = journal.read_text().splitlines(keepends=True)
    found = found[: len(found) // 2]
    random.Random(0).shuffle(found)
    journal.write_text("".join(found)[:-20])


# --- a space of one's own ---


@dataclass(frozen=True)
class Layer:
    width: int


@dataclass(frozen=True)
class Net:
    layers: tuple[Layer, ...]
    b: float

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(layer.width for layer in self.layers)


def space(*widths: int) -> nas.Space:
    layer = nas.Space(Layer, width=nas.Choice(*widths))
    return nas.Space(Net, layers=nas.Repeat(layer, nas.Choice(4, 5)), b=nas.Choice(0.1, 0.2, 0.7))


SPACE = space(1, 2, 3, 5)
BUDGET = 12.0


def cost(name, value):
    return 0.0 if name == "b" or value is None else value.width**0.9


def score(net):
    """Scores whose last digits matter: JSON must bring them back to the bit."""
    return sum(np.sqrt(x) / (i + 1.7) for i, x in enumerate(net.widths)) + net.b / 3


def search(out=None, score=score, **changed):
    settings = dict(space=SPACE, latency=nas.Additive(cost), score=score, evaluations=48)
    return nas.search(changed.pop("budget", BUDGET), out=out, **settings | changed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, search(folder)


def test_workers_and_a_worker_that_is_killed_change_nothing(undisturbed, local_ray, tmp_path):
    folder, whole = undisturbed
    victim = tmp_path / "victim"

    def deadly(net):
        time.sleep(0.001 * (hash(net) % 7))  # in another order
        if net.b == 0.7 and not victim.exists():
            victim.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return score(net)

    again = search(tmp_path / "two", score=deadly, workers=2)
    assert victim.exists()
    assert again == whole
    assert lines(tmp_path / "two") == lines(folder)
    disturb(tmp_path / "two")
    assert search(tmp_path / "two", resume=True) == whole
    assert lines(tmp_path / "two") == lines(folder)


DRIVER = """
import sys, time
sys.path.insert(0, {tests!r})
import test_faults as t
from nas.workers.cluster import import_ray
import_ray().cloudpickle.register_pickle_by_value(t)
t.search({out!r}, score=lambda net: (time.sleep(0.05), t.score(net))[1], workers=2)
"""


@pytest.mark.slow
def test_a_driver_killed_with_its_workers_goes_on_without_any(undisturbed, tmp_path):
    folder, whole = undisturbed
    program = DRIVER.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"))
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(Journal(tmp_path / "run" / "candidates.jsonl").read()) < 9:
        assert driver.poll() is None
        time.sleep(0.01)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(lines(tmp_path / "run")) < 48
    assert search(tmp_path / "run", resume=True) == whole
    assert lines(tmp_path / "run") == lines(folder)


def test_what_fails_is_set_aside_and_tried_again_by_a_resumed_search(local_ray, tmp_path):
    settings = dict(searcher="random", failed_share=0.9)
    whole = search(tmp_path / "whole", **settings)
    raises, nan, hangs = (found.architecture for found in whole.candidates[5:8])

    def fails(net):
        if net == raises:
            raise ValueError("too small\nto live")
        if net == hangs:
            time.sleep(60)
        return float("nan") if net == nan else score(net)

    found = search(tmp_path / "run", fails, workers=2, timeout_s=1.0, **settings)
    assert set(found.set_aside.values()) == {
        f"{cause} (failed 2 times)"
        for cause in (
            "ValueError: too small to live",
            "ValueError: the score is nan",
            "no value within 1 s",
        )
    }
    assert len(found.candidates) == 45
    with pytest.raises(EvaluationError, match=r"set aside, more than 1 %; the last: ") as error:
        search(tmp_path / "few", lambda net: 1 / 0, **{**settings, "failed_share": 0.01})
    assert "\n" not in str(error.value)
    for name in ("run", "few"):
        again = search(tmp_path / name, resume=True, **settings)
        assert again.candidates == whole.candidates
        assert lines(tmp_path / name) == lines(tmp_path / "whole")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_line_and_loses_nothing(undisturbed, tmp_path):
    folder, whole = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system mounts nothing")
    try:
        with pytest.raises(RunError, match=r"No space left on device; free some space") as error:
            search(disk / "run")
        assert "\n" not in str(error.value)
        kept = Journal(disk / "run" / "candidates.jsonl").read()
        assert 0 < len(kept) < 48
        undisturbed_records = Journal(folder / "candidates.jsonl").read()
        assert all(record in undisturbed_records for record in kept)
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert search(disk / "run", resume=True) == whole
        assert lines(disk / "run") == lines(folder)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_of_another_search_is_refused_and_what_differs_named(undisturbed, tmp_path):
    folder, _ = undisturbed
    known = pd.DataFrame([{"b": b, "score": b} for b in (0.1, 0.2, 0.7)])
    limits = {"sum": (nas.Additive(cost), 20.0)}
    for name, other in {
        "space and latency": {"space": space(1, 2, 3)},
        "budget": {"budget": 13.0},
        "latency": {"latency": nas.Additive(cost, fixed=0.5)},
        "limits": {"limits": limits},
        "score": {"score": known},
        "seed": {"seed": 1},
        "searcher": {"searcher": "random"},
        "sampler": {"sampler": "rejection"},
        "batch": {"batch": 4},
    }.items():
        with pytest.raises(RunError, match=f"was made with another {name}; resume"):
            search(folder, resume=True, **other)
    one = tmp_path / "limited"
    search(one, limits=limits)
    with pytest.raises(RunError, match="another limits;"):
        search(one, resume=True, limits={"sum": (nas.Additive(cost), 21.0)})
    write_json(one / "settings.json", {**read_json(one / "settings.json"), "code": "another"})
    with pytest.raises(RunError, match="another code;"):
        search(one, resume=True, limits=limits)
    (one / "settings.json").unlink()
    with pytest.raises(RunError, match="unknown search"):
        search(one, resume=True)
    with (
        Journal(folder / "candidates.jsonl").locked(),
        pytest.raises(RunError, match="another process is writing"),
    ):
        search(folder, resume=True)


def test_rounding_does_not_depend_on_cores():
    """Two threads round otherwise than one, from about a hundred scores on."""
    rng = np.random.default_rng(0)
    positions = tuple(SPACE.positions())
    sizes = [len(p.values) for p in positions]
    paths = rng.integers(0, sizes, size=(300, len(sizes)))
    scores = rng.normal(size=300)

    def fitted(count):
        with threadpool_limits(count, user_api="blas"):
            surrogate = nas.Surrogate.fit(positions, paths, scores, 0.1)
            return [x.tobytes() for x in surrogate.posterior(paths)]

    assert fitted(1) == fitted(2)


# --- networks ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos hard to tell apart, an untrained supernet, and a table that calls this machine slow.

    So scores differ, races are run, and what fits as predicted fits as measured on any day.
    """
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for split, count in (("train", 4), ("search", 40), ("test", 4)):
        for label in ("bright", "dark"):
            (folder := root / "photos" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    data, space = (
        load_data(f"imagefolder:{root / 'photos'}"),
        load_space("swin:debug", Classification(2)),
    )
    torch.manual_seed(0)
    network = Network(space, space.largest).eval()
    save_supernet(root / "supernet", network, data, {})
    measured = made_up_table(space, root / "made")
    sure = {"scale": 1e3, "overhead": 0.0, "factors": {}, "p95_percent": 5.0, "bias_percent": 0.0}
    calibration = measured.manifest["calibration"] | sure
    manifest = {**measured.manifest, "calibration": calibration}
    LatencyTable(measured.rows, manifest, measured.references).save(root / "table")
    trellis = LatencyTable.load(root / "table").trellis(space)
    return dict(
        budget=nas.Budget(0.5 * (trellis.fastest + trellis.slowest)), space=space.name,
        data=data.name, supernet=root / "supernet", table=root / "table", evaluations=26,
        search_images=80, test_images=10, race_error=0.9,
    )  # fmt: skip


@pytest.fixture
def only_search(world, monkeypatch):
    """Without what comes after the search, which other tests see to and takes longest."""
    measure_as_predicted(monkeypatch, LatencyTable.load(world["table"]), 0.5)
    monkeypatch.setattr("nas.run.main._export", lambda *_: {})
    monkeypatch.setattr("nas.report.report.write_report", lambda *_: None)


def facts(result):
    keys = ("front", "winner", "evaluations", "dropped", "hypervolume", "rejections", "proposals",
            "surrogate_rank_correlation")  # fmt: skip
    return {key: result[key] for key in keys}


def test_networks_are_found_the_same_by_any_number_of_workers_and_after_a_kill(
    world, only_search, local_ray, tmp_path
):
    whole = nas.search(out=tmp_path / "none", **world)
    assert whole["dropped"]  # races take part
    assert (
        len({c["top1_percent"] for c in Journal(tmp_path / "none" / "candidates.jsonl").read()}) > 3
    )
    two = nas.search(out=tmp_path / "two", workers=2, **world)
    assert lines(tmp_path / "two") == lines(tmp_path / "none")
    assert facts(two) == facts(whole)
    disturb(tmp_path / "two")
    resumed = nas.search(out=tmp_path / "two", resume=True, **world)
    assert lines(tmp_path / "two") == lines(tmp_path / "none")
    assert facts(resumed) == facts(whole)


def test_a_run_of_other_networks_is_refused_and_what_differs_named(world, only_search, tmp_path):
    run = tmp_path / "run"
    few = {**world, "evaluations": 2, "race_error": 0.0}
    nas.search(out=run, **few)
    settings = read_json(run / "settings.json")
    for key in (
        "space_fingerprint", "data_fingerprint", "weights_fingerprint", "table_fingerprint",
        "scores_fingerprint", "code_fingerprint", "seed", "search_images",
    ):  # fmt: skip
        write_json(run / "settings.json", {**settings, key: "another"})
        same = "versions of vitnas and torch" if key == "code_fingerprint" else "options"
        words = f"was made with another {key}; resume with the same {same}"
        with pytest.raises(RunError, match=words):
            nas.search(out=run, resume=True, **few)
    write_json(run / "settings.json", settings)
    with pytest.raises(RunError, match="another race_error;"):
        nas.search(out=run, resume=True, **{**few, "race_error": 0.1})
    table = LatencyTable.load(run / "table")
    key, row = next((k, r) for k, r in table.rows.items() if r.usable)
    LatencyTable({**table.rows, key: replace(row, median=2 * row.median)}, table.manifest,
                 table.references).save(tmp_path / "table")  # fmt: skip
    with pytest.raises(RunError, match="another table_fingerprint;"):
        nas.search(out=run, resume=True, **{**few, "table": tmp_path / "table"})
    with (
        Journal(run / "candidates.jsonl").locked(),
        pytest.raises(RunError, match="another process is writing"),
    ):
        nas.search(out=run, resume=True, **few)


def test_without_the_network_that_all_are_compared_with_there_is_one_line(
    world, only_search, monkeypatch, tmp_path
):
    whole, scored = load_space("swin:debug", Classification(2)).largest, Evaluator.score

    def score(self, architecture, *race):
        if architecture == whole:
            raise MemoryError("too large")
        return scored(self, architecture, *race)

    monkeypatch.setattr(Evaluator, "score", score)
    with pytest.raises(EvaluationError, match=r"no score: MemoryError: too large .*; mend"):
        nas.search(out=tmp_path / "run", **{**world, "evaluations": 2})


def test_a_cluster_that_does_not_answer_is_one_line_within_half_a_minute(world, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        command = [sys.executable, "-m", "nas.cli", "search", "--budget",
                   f"{world['budget'].latency_ms}ms", "--ray-address",
                   f"127.0.0.1:{closed.getsockname()[1]}", "--out", str(tmp_path / "run")]  # fmt: skip
        for name in ("space", "data", "supernet", "table"):
            command += [f"--{name}", str(world[name])]
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert time.monotonic() - begin < 30
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vitnas: no Ray cluster can be joined at 127.0.0.1")
    assert "Traceback" not in done.stderr
