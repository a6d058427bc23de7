"""`ssh://`: the agent alone, every way in which it can fail, and a real SSH server with an ARM
machine behind it (Debian for arm64 under qemu, see tests/arm64_userland.sh)."""

from __future__ import annotations

import ast
import gc
import getpass
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.agent import client as link_module
from nas.agent import server as agent_module
from nas.agent.client import Link, agent_source
from nas.agent.server import Agent, Refusal, emulator
from nas.errors import DeviceError, PreparationError, UsageError, printable
from nas.families import load_space
from nas.latency.profiling import profile
from nas.latency.table import LatencyTable
from nas.runtimes import load_runtime
from nas.runtimes.ssh import AgentRuntime, _wired
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph

pytestmark = pytest.mark.quiet

pytest.importorskip("onnxruntime")

USERLAND = Path(os.environ.get("VITNAS_ARM64", ""))
ARM = USERLAND / "python"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="no sshd: apt install openssh-server")
needs_arm = pytest.mark.skipif(
    not os.environ.get("VITNAS_ARM64") or not ARM.exists(),
    reason="no VITNAS_ARM64: tests/arm64_userland.sh makes one",
)


@pytest.fixture(scope="module")
def layers() -> tuple[Layer, ...]:
    """The first layers of a network whose windows travel with the map, as integers."""
    space = load_space("swin:debug", Classification(4))
    return space.layers(space.largest)[:3]


class Here(AgentRuntime):
    """The agent as a process of this machine, with lines added to its source."""

    def __init__(self, extra: str = "", python: str = sys.executable) -> None:
        super().__init__("here", 1, 1)
        self.extra, self.python = extra, python

    def connect(self) -> Link:
        return Link(
            lambda line: [self.python, "-u", "-B", "-c", line],
            "here",
            lambda status, lines: DeviceError(f"ended with {status}: {' '.join(lines)}"),
            f"{agent_source()}\n{self.extra}",
        )


# -- the agent


def test_agent_runs_on_python_3_8_with_the_standard_library() -> None:
    tree = ast.parse(agent_source(), feature_version=(3, 8))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    assert names <= sys.stdlib_module_names | {"numpy", "onnxruntime"}


def test_chained_and_fused_models_compute_what_torch_does(layers: tuple[Layer, ...]) -> None:
    from nas.lowering.onnx import lower
    from nas.network.standalone import build, inputs, run, slots

    torch.manual_seed(0)
    state = inputs(layers[0], 1)
    with torch.inference_mode():
        expected = [t for t in slots(run(build(layers), state)) if t is not None]
    given = [None if t is None else t.numpy() for t in slots(state)]
    values = [[str(v.dtype), v.shape, v.nbytes] for v in given if v is not None]
    numbers: list[int | None] = [None if v is None else 0 for v in given]
    agent = Agent()
    agent.hello(1)
    for number, pieces in enumerate(([lower([x]) for x in layers], [lower(layers)])):
        steps = []
        for step in _wired(pieces, numbers, 1):
            name = hashlib.sha256(step.model).hexdigest()
            agent.load(name, zlib.compress(step.model))
            steps.append({"model": name, "reads": step.reads, "writes": step.writes})
        blob = b"".join(v.tobytes() for v in given if v is not None)
        assert agent.prepare(number, values, steps, blob) == {"missing": []}
        samples = agent.run(number)["samples"]
        assert len(samples) == len(steps)
        outputs = agent.programs[number][-1][2].copy_outputs_to_cpu()
        floats = [o for o in outputs if o.dtype == np.float32]
        np.testing.assert_allclose(floats[0], expected[0].numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_that_arrives_damaged_is_refused() -> None:
    agent = Agent()
    agent.hello(1)
    with pytest.raises(Refusal, match="damaged"):
        agent.load("0" * 64, zlib.compress(b"another model"))


def test_describe_samples_and_what_is_sent(
    layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    request = Link.request

    def counted(self: Link, do: str, *args: object, **fields: object) -> dict[str, object]:
        sent.append(do)
        return request(self, do, *args, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(Link, "request", counted)
    runtime = Here()
    assert runtime.source == "emulated-time"  # until the device has shown that it is real
    with runtime:
        found = runtime.describe()
        assert found["cores"] == os.cpu_count()
        assert found["machine"] == os.uname().machine
        assert found["runtime"] == "onnxruntime"
        assert found["threads"] == found["batch"] == 1
        assert "load" in runtime.conditions()
        sent.clear()
        separate, fused = runtime.prepare(layers, False), runtime.prepare(layers, True)
        assert sent.count("load") == len({x.key for x in layers}) + 1
        sent.clear()
        again = runtime.prepare(layers, False)
        assert "load" not in sent  # a model is sent once
        assert len(separate()) == len(again()) == len(layers)
        (whole,) = fused()
        assert 0 < whole.cpu < 1000
        assert 0 < whole.wall < 1000
        del separate, fused
        gc.collect()
        link = runtime._link
        assert link is not None
        link._forget()
        assert link.request("forget", programs=[]) == {"programs": 1}
        assert len(again()) == len(layers)  # it keeps its models


def test_nothing_is_left_behind(
    layers: tuple[Layer, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TMPDIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with Here() as runtime:
        runtime._link.prepare([], [])  # type: ignore[union-attr]
        runtime.prepare(layers[:1], True)()
        process = runtime._link._process  # type: ignore[union-attr]
    assert process.poll() == 0
    assert not list(tmp_path.iterdir())


# -- signs of an emulator

FAKES = {
    "interpreter of another processor": {"elf": "x86"},
    "kernel of another processor": {"/proc/sys/kernel/arch": "x86_64"},
    "system of another processor": {"/sys/devices/system/cpu/modalias": "cpu:type:x86,ven0000"},
    "cpuinfo of another processor": {"/proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags : fpu"},
    "emulated machine": {"/sys/class/dmi/id/product_name": "QEMU Virtual Machine"},
    "emulator in memory": {"/proc/thread-self/maps": "7f00-7f01 r-xp 0 08:01 3 /usr/bin/qemu-arm"},
    "emulator as process": {"/proc/thread-self/comm": "qemu-aarch64-st"},
}


def signs(monkeypatch: pytest.MonkeyPatch, machine: str, files: dict[str, str]) -> list[str]:
    board = {"/proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd08"}
    texts = board | files if machine == "aarch64" else files
    monkeypatch.setattr(agent_module, "read", lambda path: texts.get(path, ""))
    monkeypatch.setattr(agent_module, "elf_family", lambda _: files.get("elf", ""))
    monkeypatch.setattr(agent_module.platform, "machine", lambda: machine)
    for name in ("QEMU_CPU", "QEMU_LD_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(agent_module.os.path, "exists", lambda _: False)
    return emulator()


@pytest.mark.parametrize("sign", FAKES)
def test_every_sign_alone_gives_an_emulator_away(
    sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert signs(monkeypatch, "aarch64", FAKES[sign]) == [sign]


def test_real_machines_show_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    raspberry = {
        "/proc/sys/kernel/arch": "aarch64",
        "/sys/devices/system/cpu/modalias": "cpu:type:aarch64:feature:,0000,0001",
        "/proc/thread-self/comm": "python3",
        "/proc/thread-self/maps": "5500-5501 r-xp 0 08:01 3 /home/qemu-user/bin/python3.11",
        "elf": "arm",
    }
    assert signs(monkeypatch, "aarch64", raspberry) == []
    # a 32-bit userland on its 64-bit kernel
    assert signs(monkeypatch, "armv7l", raspberry) == []
    cloud = {"/proc/cpuinfo": "vendor_id : GenuineIntel\nflags : fpu hypervisor", "elf": "x86"}
    assert signs(monkeypatch, "x86_64", cloud) == []


def test_a_slow_product_alone_gives_an_emulator_away() -> None:
    slow = "def clock(now=clock): return tuple(1000 * ns for ns in now())"
    hidden = "def emulator(): return []"
    with Here(extra=f"{hidden}\n{slow}") as runtime:
        assert runtime.describe()["emulator"] == "floating point as slow as in software"
        assert runtime.source == "emulated-time"
    with Here(extra=hidden) as runtime:
        assert runtime.describe()["emulator"] == ""
        assert runtime.source == "measured"


# -- what can go wrong


@pytest.mark.parametrize(
    "samples",
    [
        "[[float('nan'), 1]]",
        "[[-5, 1]]",
        "[[0, 0]]",
        "[[1, 2, 3]]",
        "[['1', 2]]",
        "[[True, True]]",
        "[[1.5, 1]]",
        "[[10**15, 1]]",
        "[[10**4000, 1]]",
        "[[1, 1], [1, 1]]",
        "[]",
        "'\\x1b[2J'",
        "{'a': 1}",
    ],
)
def test_times_that_no_run_takes_are_refused(samples: str, layers: tuple[Layer, ...]) -> None:
    lie = f"lie = False\nrun = Agent.run\nAgent.run = lambda self, program: {{'samples': {samples}}} if program > 1 else run(self, program)"
    with Here(extra=lie) as runtime:
        program = runtime.prepare(layers[:1], True)
        with pytest.raises(DeviceError, match="answered with what no agent answers") as caught:
            program()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "hello",
    [
        "dict(self, cores=0)",
        "dict(self, cores='2')",
        "dict(self, run_this='rm')",
        "dict(self, emulator=None)",
        "dict(self, emulator=[1])",
        "dict(self, protocol=2)",
        "dict(self, machine=['aarch64'])",
        "{}",
        "[]",
    ],
)
def test_another_hello_is_refused(hello: str) -> None:
    lie = f"hello = Agent.hello\ndef lying(self): return {hello}\nAgent.hello = lambda self, threads: lying(hello(self, threads))"
    with pytest.raises(DeviceError, match="answered with what no agent answers"), Here(extra=lie):
        pass


def test_texts_from_the_device_fit_a_line() -> None:
    lie = "def processor(): return 'x\\x1b[31m\\n' * 500"
    with Here(extra=lie) as runtime:
        name = runtime.describe()["processor"]
    assert name.isprintable()
    assert len(name) <= 100
    assert printable("a\n\tb\x1b") == "a b"


@pytest.mark.parametrize(
    "raw", ["'{' * 9", "'[' * 100_000", "'x' * (1 << 21)", "'1'", "chr(27) + '[31m'"]
)
def test_answers_that_are_no_json_objects_are_refused(raw: str) -> None:
    lie = f"json.dumps = lambda *_: {raw}"
    with pytest.raises(DeviceError, match="answered with") as caught, Here(extra=lie):
        pass
    assert str(caught.value).isprintable()


def test_an_agent_that_is_killed_half_way(layers: tuple[Layer, ...]) -> None:
    die = "run = Agent.run\nAgent.run = lambda self, program: os.kill(os.getpid(), 9) if program > 1 else run(self, program)"
    with Here(extra=die) as runtime:
        program = runtime.prepare(layers[:1], True)
        with pytest.raises(DeviceError, match="ended with -9"):
            program()


def test_a_run_that_hangs_ends_on_both_sides(
    layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = "run = Agent.run\nAgent.run = lambda self, program: time.sleep(99) if program > 1 else run(self, program)"
    monkeypatch.setattr(link_module, "GRACE_S", 0.5)
    began = time.monotonic()
    for extra, word in (
        (hang, f"ended with -{signal.SIGALRM.value}"),
        (f"{hang}\nsignal.alarm = lambda _: 0", "no answer within"),
    ):
        with Here(extra=extra) as runtime:
            runtime.prepare(layers[:1], True)
            link = runtime._link
            assert link is not None
            with pytest.raises(DeviceError, match=word):
                link.request("run", program=2, limit_s=1)
    assert time.monotonic() - began < 15


def test_models_that_do_not_load_and_memory_that_ends_are_the_layers_failure(
    layers: tuple[Layer, ...],
) -> None:
    for text, word in (
        ("Refusal('model', 'Could not find an implementation')", "Could not find"),
        ("MemoryError()", "too little memory"),
    ):
        fail = f"calls, buffer = [], Agent.buffer\ndef failing(self, *args):\n    calls.append(1)\n    if len(calls) > 1: raise {text}\n    return buffer(self, *args)\nAgent.buffer = failing"
        with Here(extra=fail) as runtime, pytest.raises(PreparationError, match=word):
            runtime.prepare(layers[:1], True)


# -- the client


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called ssh, first on PATH; what it does is written into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text("#!/bin/sh\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return program


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("pi@board: Permission denied (publickey).", 255, ["none of your keys", "ssh-copy-id"]),
        ("Host key verification failed.", 255, ["not known here", "ssh-keyscan", "-p 2222"]),
        (
            "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
            255,
            ["another host key", "ssh-keygen -R board"],
        ),
        ("ssh: Could not resolve hostname board: Name or service not known", 255, ["nobody knows"]),
        ("ssh: connect to host board port 2222: Connection refused", 255, ["no SSH server"]),
        ("ssh: connect to host board port 2222: Connection timed out", 255, ["does not answer"]),
        ("ssh: connect to host board port 2222: No route to host", 255, ["cannot be reached"]),
        ("Timeout, server board not responding.", 255, ["stopped answering", "goes on"]),
        ("client_loop: send disconnect: Broken pipe", 255, ["connection broke", "goes on"]),
        ("sh: 1: exec: python3: not found", 127, ["has no python3", "python=PATH"]),
        ("", 93, ["older than 3.8", "python=PATH"]),
        ("Killed", 137, ["ended the agent", "memory", "goes on"]),
        ("OSError: [Errno 28] No space left on device", 1, ["full disk"]),
        ("\x1b[2Jhello\x07" + 999 * "x", 255, ["cannot be reached"]),
    ],
)
def test_what_the_client_says_becomes_one_line_with_the_fix(
    said: str, status: int, words: list[str], fake_ssh: Path, tmp_path: Path
) -> None:
    (tmp_path / "said").write_text(said)
    fake_ssh.write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit {status}\n")
    with pytest.raises(DeviceError) as caught:
        load_runtime("ssh://pi@board:2222").describe()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400
    for word in words:
        assert word in text


def test_the_client_never_asks_and_never_trusts(fake_ssh: Path, tmp_path: Path) -> None:
    fake_ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nexit 255\n')
    with pytest.raises(DeviceError):
        load_runtime("ssh://pi@board:2222,config=/etc/mine,python=~/venv/bin/python").describe()
    words = (tmp_path / "words").read_text().splitlines()
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes"} <= set(words)
    assert words[:2] == ["-F", "/etc/mine"]
    assert words[words.index("--") + 1] == "board"
    assert words[-1].startswith("exec ~/venv/bin/python -u -B -c 'import sys")


def test_a_login_script_may_write_and_a_silent_shell_ends(
    fake_ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = 'for last; do :; done; echo "Welcome!"; echo; sh -c "$last"'
    fake_ssh.write_text(f"#!/bin/sh\n{run}\n")
    with load_runtime(f"ssh://board,python={sys.executable}") as runtime:
        assert runtime.describe()["kind"] == ("arm" if os.uname().machine == "aarch64" else "cpu")
    fake_ssh.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(link_module, "START_S", 0.5)
    with pytest.raises(DeviceError, match="no answer within"):
        load_runtime("ssh://board").describe()
    fake_ssh.write_text("#!/bin/sh\nexec yes\n")
    with pytest.raises(DeviceError, match="something else than the agent"):
        load_runtime("ssh://board").describe()


def test_a_python_without_onnxruntime_is_told_what_to_install(fake_ssh: Path) -> None:
    run = 'for last; do :; done; sh -c "$last"'
    bare = "/usr/bin/python3"
    if (
        not Path(bare).exists()
        or subprocess.run([bare, "-c", "import onnxruntime"], capture_output=True).returncode == 0
    ):
        pytest.skip("no Python without onnxruntime here")
    fake_ssh.write_text(f"#!/bin/sh\n{run}\n")
    with pytest.raises(DeviceError, match="pip install onnxruntime"):
        load_runtime(f"ssh://board,python={bare}").describe()


@pytest.mark.parametrize(
    "device",
    [
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://pi@-board",
        "ssh://board:0",
        "ssh://board:99999",
        "ssh://board;ls",
        "ssh://$(ls)",
        "ssh://board,python=python3;ls",
        "ssh://board,python=$(ls)",
        "ssh://board,python=",
        "ssh://board,runtime=tensorrt",
        "ssh://board,threads=0",
    ],
)
def test_addresses_that_are_none(device: str) -> None:
    with pytest.raises(UsageError):
        load_runtime(device)


# -- a real server


class Server:
    """sshd on the loopback interface with keys and settings of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        for name in ("host", "user"):
            self.make_key(name)
        shutil.copy(folder / "user.pub", folder / "authorized")
        self.known((folder / "host.pub").read_text())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"Host board\nHostName 127.0.0.1\nPort {self.port}\nUser {getpass.getuser()}\n"
            f"IdentityFile {folder}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile /dev/null\n"
        )
        if os.geteuid() == 0:  # where sshd started by root wants to be able to confine itself
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.PIPE, text=True
        )
        for _ in range(100):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.stop()
        raise RuntimeError("sshd did not start")

    def make_key(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
        subprocess.run(command, check=True)

    def known(self, key: str) -> None:
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}" if key else "")

    def device(self, python: str | Path) -> str:
        return f"ssh://board,config={self.config},python={python}"

    def agents(self) -> list[int]:
        """Agents that came through this server and still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            via = f"127.0.0.1 {self.port}\0".encode()
            if b"sys.stdin.buffer.read" in command and via in environment + b"\0":
                found.append(int(process.name))
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@needs_sshd
def test_this_machine_over_ssh_is_measured(server: Server, layers: tuple[Layer, ...]) -> None:
    with load_runtime(server.device(sys.executable)) as runtime:
        assert runtime.describe()["emulator"] == ""
        assert runtime.source == "measured"
        assert len(runtime.prepare(layers, False)()) == len(layers)
        assert len(server.agents()) == 1
    _until(lambda: not server.agents())


@needs_sshd
def test_a_lost_connection_leaves_no_agent(server: Server, layers: tuple[Layer, ...]) -> None:
    with load_runtime(server.device(sys.executable)) as runtime:
        program = runtime.prepare(layers[:1], True)
        runtime._link._process.kill()  # type: ignore[attr-defined]
        with pytest.raises(DeviceError, match="goes on from what was measured"):
            program()
        _until(lambda: not server.agents())
    with load_runtime(server.device(sys.executable)) as runtime:
        program = runtime.prepare(layers[:1], True)
        for process in server.agents():
            os.kill(process, signal.SIGKILL)
        with pytest.raises(DeviceError, match="goes on from what was measured"):
            program()


@needs_sshd
def test_keys_are_checked_on_both_sides(server: Server) -> None:
    server.make_key("another")
    runtime = load_runtime(server.device(sys.executable))
    server.known("")
    with pytest.raises(DeviceError, match="not known here"):
        runtime.describe()
    server.known((server.folder / "another.pub").read_text())
    with pytest.raises(DeviceError, match="another host key"):
        runtime.describe()
    server.known((server.folder / "host.pub").read_text())
    server.make_key("user")
    with pytest.raises(DeviceError, match="none of your keys"):
        runtime.describe()
    server.stop()
    with pytest.raises(DeviceError, match="no SSH server"):
        runtime.describe()


@needs_sshd
def test_a_missing_python_is_named(server: Server) -> None:
    with pytest.raises(DeviceError, match="has no python4"):
        load_runtime(server.device("python4")).describe()


@needs_sshd
@needs_arm
def test_an_emulated_arm_machine_is_profiled_and_never_called_measured(
    server: Server, layers: tuple[Layer, ...]
) -> None:
    with load_runtime(server.device(ARM)) as runtime:
        found = runtime.describe()
        assert found["kind"] == "arm"
        assert found["machine"] == "aarch64"
        assert found["processor"] == "Arm Cortex-A72"
        # Signs that do not depend on each other: any of them alone is enough.
        assert len(found["emulator"].split(", ")) >= 4
        assert runtime.source == "emulated-time"
        separate = runtime.prepare(layers, False)()
        (whole,) = runtime.prepare(layers, True)()
    assert len(separate) == len(layers)
    assert whole.cpu > 0
    _until(lambda: not server.agents())


@needs_sshd
@needs_arm
def test_a_whole_table_of_an_emulated_machine_says_so(server: Server, tmp_path: Path) -> None:
    space = (
        load_space("vit:debug", Classification(4))
        .restrict("sparsity", 0)
        .restrict("precision", "fp32")
    )
    space = space.restrict("resolution", 16)
    table = profile(space, server.device(ARM), tmp_path / "table", rounds=1)
    assert table.rows.keys() == Graph.of(space).items().keys()
    assert all(row.usable and row.median > 0 for row in table.rows.values())
    m = LatencyTable.load(tmp_path / "table").manifest
    assert (m["source"], m["device"]["kind"], m["device"]["machine"]) == (
        "emulated-time", "arm", "aarch64")  # fmt: skip
    assert table.calibration.held_out >= 20


@needs_arm
def test_an_emulator_that_hides_is_still_seen() -> None:
    """Its files and its name may say nothing, as in a system that is emulated as a whole."""
    with Here("def emulator(): return []", str(ARM)) as runtime:
        assert runtime.describe()["emulator"] == "floating point as slow as in software"
        assert runtime.source == "emulated-time"


def _until(true: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
