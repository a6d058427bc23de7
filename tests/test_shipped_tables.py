"""Tables that ship: what they say holds, and the audit finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import latency_tables
from nas.families import load_space
from nas.latency.audit import ERROR, audit
from nas.latency.table import LatencyTable
from nas.runtimes import runtimes

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


def test_tables_ship_for_the_default_space():
    spaces = {(folder.parent.name, folder.name) for folder in TABLES}
    wanted = {"torch-cpu", "onnxruntime-cpu", "ethos-u55-128", "ethos-u85-256"}
    assert {(device, "swin-micro") for device in wanted} <= spaces
