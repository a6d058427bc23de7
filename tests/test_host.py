"""How many threads this machine has cores for: by affinity, and by quotas of containers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nas.agent.client import Hello
from nas.errors import UsageError
from nas.runtimes import Runtime, host, load_runtime

DEVICES = ("torch-cpu", "onnxruntime-cpu", "openvino-cpu", "litert-cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 cores; write files of cgroups below the folder."""
    monkeypatch.setattr(host, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_all_cores_where_nothing_limits_them(machine):
    assert host.usable_cores() == 8
    machine("proc/self/cgroup", "0::/user.slice\n3:cpuset:/\n")
    machine("cgroup/user.slice/cpu.max", "max 100000\n")
    machine("cgroup/cpu.max", "what is this\n")
    assert host.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1),
                         ("1600000 100000", 8), ("-1 100000", 1)]
)  # fmt: skip
def test_a_quota_counts_whole_cores(machine, quota, cores):
    machine("proc/self/cgroup", "0::/docker/abc\n")
    machine("cgroup/docker/abc/cpu.max", quota)
    assert host.usable_cores() == cores


def test_the_tightest_cgroup_above_counts(machine):
    machine("proc/self/cgroup", "0::/a/b/c\n")
    machine("cgroup/a/b/cpu.max", "300000 100000\n")
    machine("cgroup/a/cpu.max", "500000 100000\n")
    assert host.usable_cores() == 3


@pytest.mark.parametrize(
    ("line", "folder"),
    [("4:cpu,cpuacct:/docker/x", "cpu,cpuacct/docker/x"), ("1:cpu:/", "cpu"),
     ("4:cpu,cpuacct:/of/the/host", "cpu,cpuacct"), ("0::/of/the/host", ".")],
)  # fmt: skip
def test_old_cgroups_and_containers_that_see_a_path_of_the_host(machine, line, folder):
    machine("proc/self/cgroup", line + "\n")
    if "cpu" in folder:
        machine(f"cgroup/{folder}/cpu.cfs_quota_us", "400000\n")
        machine(f"cgroup/{folder}/cpu.cfs_period_us", "100000\n")
    else:
        machine(f"cgroup/{folder}/cpu.max", "400000 100000\n")
    assert host.usable_cores() == 4
    if "cpu" in folder:
        machine(f"cgroup/{folder}/cpu.cfs_quota_us", "-1\n")
        assert host.usable_cores() == 8


@pytest.mark.parametrize("name", DEVICES)
def test_threads_beyond_the_cores_are_refused_with_the_fix(name, machine, monkeypatch):
    monkeypatch.setattr(Runtime, "require", lambda self: None)  # its package may not be here
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/cpu.max", "300000 100000\n")
    runtime = load_runtime(f"{name},threads=4")
    with pytest.raises(UsageError, match=f"{name},threads=4 asks for 4 threads, and there can be 3 cores") as error:  # fmt: skip
        runtime.describe()
    assert "threads=3" in error.value.fix
    if name == "torch-cpu":
        assert load_runtime(f"{name},threads=3").describe()["cores"] == os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_a_process_that_is_bound_to_one_core_has_one():
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from nas import cli; cli.main(['profile', '--device', 'torch-cpu,threads=2'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "there can be 1 core for them; threads=1" in ended.stderr


def test_a_board_and_a_phone_refuse_more_threads_than_they_have_cores(monkeypatch):
    board = load_runtime("ssh://board,threads=8")
    fields = dict.fromkeys(Hello._fields, "") | {"emulator": (), "cores": 4, "machine": "aarch64"}
    board._hello = Hello(**fields)
    with pytest.raises(UsageError, match="asks for 8 threads, and there can be 4 cores"):
        board.describe()
    phone = load_runtime("adb://pixel,threads=9")
    said = "Pixel\nG3\n14\naarch64\n8\n\n\nend\n" + "0" * 64
    monkeypatch.setattr(phone, "_shell", lambda line: said)
    with pytest.raises(UsageError, match="asks for 9 threads, and there can be 8 cores"):
        phone.describe()
