"""Pools: the same values with and without processes, whatever happens to workers and machines."""

from __future__ import annotations

import ipaddress
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.errors import DeviceError, RunError, UsageError
from nas.workers import open_pool
from nas.workers.backlog import CALL_S, Backlog
from nas.workers.cluster import connect, places, probe


def make(table: np.ndarray, folder: Path):
    """A worker that does to its payload what the payload says."""
    with (folder / "made").open("a") as file:
        file.write(f"{os.getpid()}\n")

    def work(payload: tuple[str, Any]) -> Any:
        what, value = payload
        match what:
            case "table":
                return float(table[value])
            case "mapped":
                time.sleep(0.2)  # so that both workers get one
                return os.getpid(), table.flags.owndata, os.environ.get("OMP_NUM_THREADS")
            case "nap":
                time.sleep(value)
            case "raise":
                raise KeyError("no such\nlayer")
            case "unpicklable":
                return (i for i in range(value))
            case "eat":
                limits = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (memory_bytes() + (256 << 20), limits[1]))
                try:
                    return np.ones(1 << 28).sum()
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, limits)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "be killed once":
                if not (folder / "victim").exists():
                    (folder / "victim").write_text(str(os.getpid()))
                    time.sleep(60)
        return value

    return work


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def make_broken() -> Any:
    raise ImportError("no module of that name here")


def make_dying() -> Any:
    os._exit(3)


def gather(pool, payloads: dict[str, Any]) -> dict[str, Any]:
    for key, payload in payloads.items():
        pool.submit(key, payload)
    done = [pool.next() for _ in payloads]
    with pytest.raises(LookupError):
        pool.next()
    assert sorted(one.key for one in done) == sorted(payloads)
    return {one.key: one.error or one.value for one in done}


def from_both(pool) -> set[tuple[int, bool, str]]:
    """What two workers say of themselves, however long one takes to start."""
    answers: set[tuple[int, bool, str]] = set()
    begin = time.monotonic()
    while len({pid for pid, _, _ in answers}) < 2 and time.monotonic() < begin + 60:
        answers |= set(gather(pool, {str(i): ("mapped", 0) for i in range(4)}).values())
    return answers


TABLE = np.arange(1000.0) ** 2
TINY = {str(i): ("table", i) for i in range(300)}


# The backlog: who goes with whom, and who is to blame.


def test_chunks_grow_to_a_call_that_is_worth_it_and_shrink_at_the_end():
    backlog = Backlog()
    for i in range(1000):
        backlog.add(str(i), i)
    assert len(backlog.take(2)) == 1  # nothing is known yet
    for _ in range(30):
        backlog.took(10, 10 * 1e-3)
    assert len(backlog.take(2)) == pytest.approx(CALL_S / 1e-3, abs=1)
    assert len(backlog.take(1000)) == 1  # a share of what is left for each worker
    for _ in range(30):
        backlog.took(1, 2.0)
    assert len(backlog.take(2)) == 1


@pytest.mark.parametrize("guilty", [0, 3, 7])
def test_of_a_chunk_that_fails_only_the_guilty_task_is_set_aside(guilty: int):
    backlog = Backlog()
    for i in range(8):
        backlog.add(str(i), i)
    backlog.took(1, 1e-6)
    sizes = []
    while backlog:
        chunk = backlog.take(1)
        sizes.append(len(chunk))
        if any(task.payload == guilty for task in chunk):
            backlog.fail(chunk, "died")
        else:
            for task in chunk:
                backlog.finish(task, -task.payload)
    done = {one.key: one for one in backlog.done}
    assert sizes == [8] + [1] * 9
    assert done.pop(str(guilty)).error == "died (failed 2 times)"
    assert all(one.value == -int(key) and not one.error for key, one in done.items())
    assert len(done) == 7


def test_a_lost_machine_is_not_the_fault_of_its_task_unless_it_happens_again_and_again():
    backlog = Backlog()
    backlog.add("a", 1)
    for _ in range(4):
        backlog.fail(backlog.take(1), "lost", own=False)
    assert not backlog.done
    backlog.fail(backlog.take(1), "lost", own=False)
    assert backlog.done.pop().error == "lost (failed 0 times, and 5 of its workers were lost)"


# In this process.


def test_in_process_the_second_failure_sets_a_task_aside(tmp_path: Path):
    calls = []

    def make_counting():
        work = make(TABLE, tmp_path)
        return lambda payload: (calls.append(payload), work(payload))[1]

    with open_pool(make_counting) as pool:
        values = gather(pool, {**TINY, "bad": ("raise", 0), "last": ("table", 999)})
    assert values.pop("bad") == "KeyError: 'no such\\nlayer' (failed 2 times)"
    assert values.pop("last") == 999.0**2
    assert values == {key: TABLE[i] for key, (_, i) in TINY.items()}
    assert len(calls) == 300 + 2 + 1
    with pytest.raises(UsageError):
        open_pool(make_counting, workers=-1)


# With Ray.


def test_ray_gives_the_same_values_in_few_calls_and_maps_arrays(local_ray, tmp_path: Path):
    with open_pool(make, (TABLE, tmp_path), workers=2) as pool:
        answers = from_both(pool)
        before = pool._calls
        assert gather(pool, TINY) == {key: TABLE[i] for key, (_, i) in TINY.items()}
        assert pool._calls - before < 100  # of 300 tasks
    assert len({pid for pid, _, _ in answers}) == 2
    assert {(owned, threads) for _, owned, threads in answers} == {(False, "1")}
    assert len((tmp_path / "made").read_text().split()) == 2  # once for each worker
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.submit("late", ("table", 1))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says who listens")
def test_workers_listen_on_the_loopback_alone_and_ask_for_a_token(local_ray, tmp_path: Path):
    with open_pool(make, (TABLE, tmp_path), workers=2) as pool:
        workers = {str(pid) for pid, *_ in from_both(pool)}
        everyone = descendants(str(os.getpid()))
        found = listening(everyone)
        assert workers <= everyone
        assert workers <= found.keys()  # each takes calls
        assert any("gcs_server" in name for pid in found for name in words_of(pid))
        assert {a for own in found.values() for a in own if not is_loopback(a)} == set()
        for pid in workers:
            assert "RAY_AUTH_MODE=token" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert is_loopback("::ffff:127.0.0.1")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.2", "::ffff:192.0.2.2")))


def descendants(pid: str) -> set[str]:
    """A process and all that it has started, and they."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = {child for task in tasks for child in task.read_text().split()}
    return {pid}.union(*map(descendants, children))


def words_of(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def listening(pids: set[str]) -> dict[str, set[str]]:
    """The addresses on which processes take connections, by process."""
    sockets = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            address, state, inode = (line.split()[i] for i in (1, 3, 9))
            reversed_words = bytes.fromhex(address.partition(":")[0])
            words = [reversed_words[i : i + 4][::-1] for i in range(0, len(reversed_words), 4)]
            if state == "0A":  # LISTEN
                sockets[f"socket:[{inode}]"] = str(ipaddress.ip_address(b"".join(words)))
    found: dict[str, set[str]] = {}
    for pid in pids:
        with suppress(OSError):  # it has ended
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if address := sockets.get(os.readlink(handle)):
                        found.setdefault(pid, set()).add(address)
    return found


def is_loopback(address: str) -> bool:
    own = ipaddress.ip_address(address)
    return (getattr(own, "ipv4_mapped", None) or own).is_loopback


def test_failing_tasks_are_set_aside_and_the_others_are_done(local_ray, tmp_path: Path):
    bad = {
        "raises": ("raise", 0),
        "dies": ("die", 0),
        "eats": ("eat", 0),
        "value stays": ("unpicklable", 0),
        "cannot go": ("table", (i for i in range(3))),
        "hangs": ("nap", 60),
    }
    payloads = {**TINY, **bad, **{f"more {i}": ("table", i) for i in range(300)}}
    with open_pool(make, (TABLE, tmp_path), workers=2, timeout_s=2) as pool:
        values = gather(pool, payloads)
    errors = {key: values.pop(key) for key in bad}
    assert values == {key: TABLE[i] for key, (_, i) in payloads.items() if key in values}
    assert len(values) == 600
    causes = ("KeyError", "its worker died", "MemoryError", "TypeError", "TypeError", "no value")
    for error, cause in zip(errors.values(), causes, strict=True):
        assert cause in error.splitlines()[0]
        assert error.endswith("(failed 2 times)")
        assert "\n" not in error


def test_a_worker_killed_in_the_middle_of_a_task_is_replaced(local_ray, tmp_path: Path):
    with open_pool(make, (TABLE, tmp_path), workers=2) as pool:
        pool.submit("victim", ("be killed once", 7))
        pool.submit("other", ("table", 3))
        assert pool.next().value == 9.0
        while not (tmp_path / "victim").exists() or not (tmp_path / "victim").read_text():
            time.sleep(0.05)
        os.kill(int((tmp_path / "victim").read_text()), signal.SIGKILL)
        done = pool.next()
        assert (done.key, done.value, done.error) == ("victim", 7, "")
        assert len({pid for pid, _, _ in from_both(pool)}) == 2


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"make": make_broken}, "ImportError: no module of that name"),
        ({"make": make_dying}, "ActorDiedError"),
        ({"make": dict, "gpus": 1.0, "start_s": 1.0}, "1 have been starting for 1 s"),
    ],
    ids=["raises", "dies", "no place"],
)
def test_without_any_worker_there_is_one_clear_error(local_ray, options, cause):
    with open_pool(workers=1, **options) as pool:
        pool.submit("a", ("table", 1))
        with pytest.raises(RunError, match=cause) as raised:
            pool.next()
    assert raised.value.fix
    assert "\n" not in str(raised.value)


# Clusters.


def test_an_address_where_no_ray_answers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nas.workers.cluster.SOCKET_S", 0.5)
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))  # and does not listen
        for port, cause in ((silent, "no answer within"), (closed, "ConnectionRefusedError")):
            begin = time.monotonic()
            with pytest.raises(DeviceError, match=cause) as raised:
                connect(None, f"127.0.0.1:{port.getsockname()[1]}")
            assert "ray job submit" in raised.value.fix
            assert time.monotonic() - begin < 2
    for address in ("ray://somewhere:10001", "somewhere", "http://somewhere:8265"):
        with pytest.raises(UsageError, match="host:port"):
            probe(address)


def test_a_ray_that_never_finishes_to_join_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nas.workers.cluster.JOIN_S", 0.1)
    asleep = SimpleNamespace(init=lambda **_: time.sleep(1))
    with pytest.raises(DeviceError, match=r"no answer within 0\.1 s"):
        connect(asleep, "auto")

    def exits(**_: Any) -> None:
        sys.exit(15)

    with pytest.raises(DeviceError, match="SystemExit: 15"):
        connect(SimpleNamespace(init=exits), "auto")


def test_places_of_a_cluster():
    assert places({"CPU": 8.0}, 0) == 8
    assert places({"CPU": 8.0, "GPU": 2.0}, 0.5) == 4
    assert places({"CPU": 3.0, "GPU": 2.0}, 0.1) == 3
    with pytest.raises(RunError, match="8 CPU, 0 GPU"):
        places({"CPU": 8.0}, 1)


LOSE_A_NODE = """
import time
from nas.workers import open_pool
from nas.workers.cluster import import_ray

import_ray()
from ray.cluster_utils import Cluster

def make():
    import ray
    node = ray.get_runtime_context().get_node_id()
    return lambda nap: (time.sleep(nap), node)[1]

small = {"num_cpus": 1, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
node = cluster.add_node(**small)
with open_pool(make, address=cluster.address) as pool:
    nodes = set()
    while len(nodes) < 2:
        pool.submit("both have started", 0.1)
        pool.submit("both have started", 0.1)
        nodes |= {pool.next().value, pool.next().value}
    for i in range(10):
        pool.submit(str(i), 0.5)
    pool.next(), pool.next()
    cluster.remove_node(node, allow_graceful=False)
    rest = [pool.next() for _ in range(8)]
assert not any(done.error for done in rest), rest
assert rest[-1].value == cluster.head_node.node_id, rest
cluster.shutdown()
"""


@pytest.mark.slow
def test_the_tasks_of_a_lost_node_are_done_on_another():
    program = [sys.executable, "-c", LOSE_A_NODE]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


WAIT = """
import os, signal, sys, time
from nas.workers import open_pool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def make():
    return lambda nap: (time.sleep(nap), os.getppid())[1]

with open_pool(make, workers=1) as pool:
    pool.submit("a", 0)
    print(pool.next().value, flush=True)
    pool.submit("b", 600)
    pool.next()
"""


@pytest.mark.slow
def test_nothing_is_left_of_a_program_that_is_interrupted_or_killed(tmp_path: Path):
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WAIT],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                    env={**os.environ, "HOME": str(tmp_path)},
                )
            )
            for _ in range(2)
        ]
        for program in programs:
            stack.callback(program.kill)  # a failure must not wait for it
        raylets = [Path(f"/proc/{int(program.stdout.readline())}") for program in programs]
        assert all("raylet" in (raylet / "cmdline").read_text() for raylet in raylets)
        assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0  # others cannot read
        begin = time.monotonic()
        os.killpg(programs[0].pid, signal.SIGINT)  # as Ctrl-C does
        programs[1].kill()
        assert programs[0].wait(20) == -signal.SIGINT
        print(f"interrupted: {time.monotonic() - begin:.1f} s")
        while any(raylet.exists() for raylet in raylets) and time.monotonic() < begin + 30:
            time.sleep(0.1)
        print(f"nothing left: {time.monotonic() - begin:.1f} s")
        assert not any(raylet.exists() for raylet in raylets)
