"""Tables that ship: what they say holds, and the audit finds nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

import latency_tables
from nas.families import load_space
from nas.latency.audit import ERROR, audit
from nas.latency.table import LatencyTable
from nas.records import read_json, write_json
from nas.runtimes import runtimes
from nas.versions import layer_code

FOLDER = Path(next(iter(latency_tables.__path__)))
TABLES = sorted(path.parent for path in FOLDER.glob("*/*/manifest.toml"))


@pytest.mark.parametrize("folder", TABLES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_shipped_table_is_clean(folder):
    table = LatencyTable.load(folder)
    space = load_space(table.manifest["space"])
    assert [f for f in audit(table, space=space) if f.severity == ERROR] == []
    others = [LatencyTable.load(other) for other in TABLES if other != folder]
    same = [other for other in others if other.manifest["space"] == space.name]
    assert not [f for other in same for f in audit(table, other) if f.severity == ERROR]


@pytest.mark.parametrize("folder", TABLES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_shipped_table_lies_where_its_device_and_space_say(folder):
    manifest = LatencyTable.load(folder).manifest
    device = manifest["device"]["name"]
    assert (device, manifest["space"].replace(":", "-")) == (folder.parent.name, folder.name)
    modelled = runtimes()[device].source
    assert manifest["source"] == modelled
    assert "/" not in manifest["device"]["processor"]


@pytest.mark.parametrize("folder", TABLES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_history_of_a_shipped_table_leads_to_its_layer_code(folder):
    manifest = LatencyTable.load(folder).manifest
    history = manifest.get("history", [])
    assert all(entry["why"] and entry["proof"] for entry in history)
    codes = [entry["before"] for entry in history] + [manifest["layer_code"]]
    assert [entry["after"] for entry in history] == codes[1:]


def test_a_table_is_stamped_anew_after_a_proof_only(tmp_path):
    shutil.copytree(TABLES[0], tmp_path / "table")
    manifest = tmp_path / "table/manifest.toml"
    stale = tomllib.loads(manifest.read_text()) | {"layer_code": "0" * 12}
    manifest.write_text(tomli_w.dumps(stale))
    script = Path(__file__).parents[1] / "experiments/restamp.py"
    command = [sys.executable, script, str(tmp_path / "table"), "--why", "words", "--proof"]
    failed = subprocess.run([*command, "false"], capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (
        1,
        "the proof ended with 1: nothing was changed\n",
    )
    assert tomllib.loads(manifest.read_text()) == stale
    subprocess.run([*command, "true"], check=True, stdout=subprocess.DEVNULL)
    table = LatencyTable.load(tmp_path / "table")
    assert table.current
    assert table.rows == LatencyTable.load(TABLES[0]).rows
    entry = table.manifest["history"][-1]
    assert (entry["before"], entry["after"]) == ("0" * 12, table.manifest["layer_code"])
    assert (entry["why"], entry["proof"]) == ("words", "true")


def test_scores_that_ship_are_stamped_like_tables(tmp_path):
    write_json(tmp_path / "supernet.json", {"space": "swin:micro"})
    write_json(tmp_path / "scores.json", {"search_images": 400})
    script = Path(__file__).parents[1] / "experiments/restamp.py"
    command = [sys.executable, script, str(tmp_path), "--why", "words", "--proof", "true"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    head = read_json(tmp_path / "scores.json")
    assert head["search_images"] == 400
    assert head["layer_code"] == layer_code("swin")
    (entry,) = head["history"]
    assert (entry["before"], entry["after"]) == ("none", head["layer_code"])


def test_tables_ship_for_the_default_space():
    spaces = {(folder.parent.name, folder.name) for folder in TABLES}
    wanted = {"torch-cpu", "onnxruntime-cpu", "ethos-u55-128", "ethos-u85-256"}
    assert {(device, "swin-micro") for device in wanted} <= spaces
