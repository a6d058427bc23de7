"""Any Linux device with Python and onnxruntime, over SSH: `ssh://USER@HOST[:PORT]`.

The agent (`nas.agent.server`) is sent with every connection; nothing is installed or left there.
It says what processor it runs on, and whether that is a real one: times of an emulated processor
mean nothing and are never called measured.
"""

from __future__ import annotations

import os
import re
import shlex
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from nas.agent.client import OLD_PYTHON, Hello, Link, Step
from nas.errors import DeviceError, MissingPackageError, UsageError, VitnasError
from nas.lowering.onnx import PACKAGES, VERSION, OnnxPiece, lower, lower_ahead
from nas.runtimes import Program, Runtime, Sample, check_option, check_threads
from nas.space.layer import Layer

ADDRESS = re.compile(
    r"(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>[\w.][\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::(?P<port>\d+))?"
)
# Nobody is asked for a password, only known hosts are spoken to, and a dead line is noticed.
OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=6",
    "LogLevel=ERROR",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
)
COMMAND = re.compile(r"~?[\w./+-]+")  # of a Python: a name or a path, nothing that a shell expands
SLOW_GFLOPS = 0.7
SLOW_SIGN = "floating point as slow as in software"


class AgentRuntime(Runtime):
    """ONNX Runtime behind an agent. Subclasses say by `connect` how the agent is started.

    The source is `emulated-time` until the device has shown that it is a real one.
    """

    kind = "arm"
    lowering = VERSION
    packages = PACKAGES
    extra = "onnx"
    source: str = "emulated-time"

    def __init__(self, device: str, threads: int, batch: int) -> None:
        super().__init__(device)
        self.threads, self.batch = threads, batch
        self._link: Link | None = None
        self._hello: Hello | None = None

    def connect(self) -> Link:
        """Start an agent and return the connection to it."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the agent says of the device; connects to it the first time."""
        self.require()
        if self._hello is None:
            with self:
                pass
        hello = self._hello
        assert hello is not None
        check_threads(self.device, self.threads, hello.cores)
        return {
            "name": self.device,
            "kind": "arm" if hello.machine.startswith(("aarch64", "arm")) else "cpu",
            "processor": hello.processor,
            "machine": hello.machine,
            "board": hello.board,
            "cores": hello.cores,
            "emulator": ", ".join(hello.emulator),
            "runtime": "onnxruntime",
            "runtime_version": hello.runtime_version,
            "threads": self.threads,
            "dtype": "float32",
            "batch": self.batch,
        }

    def conditions(self) -> dict[str, Any]:
        """System, Python, load, clock and temperature there; empty without a connection."""
        if self._link is None or self._hello is None:
            return {}
        versions = {"system": self._hello.system, "python": self._hello.python}
        return versions | self._link.conditions()

    def __enter__(self) -> Self:
        self._link = self.connect()
        try:
            hello = self.judge(self._link, self._link.hello(self.threads))
            if self._hello not in (None, hello):
                raise DeviceError(
                    f"{self.device} is another device than a moment ago: {hello.processor}",
                    "give each device its own address",
                )
        except BaseException:
            self._link.close()
            self._link = None
            raise
        self._hello = hello
        return self

    def judge(self, link: Link, hello: Hello) -> Hello:
        """Set `source` by what the device says and does; `hello`, with more signs of emulation."""
        if _slow(link):
            hello = hello._replace(emulator=(*hello.emulator, SLOW_SIGN))
        self.source = "emulated-time" if hello.emulator else "measured"
        return hello

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Export layers in as many processes as there are cores here."""
        return lower_ahead(layers, self.batch, os.cpu_count() or 1)

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Send the models of layers, one by one or as one, and wire them there."""
        from nas.network.standalone import inputs, slots

        if self._link is None:
            raise DeviceError(f"{self.device} is not connected", "use it in a `with` block")
        pieces = [lower(layers, self.batch)] if fused else [lower([x], self.batch) for x in layers]
        state: list[int | None] = []
        values: list[tuple[str, tuple[int, ...], bytes]] = []
        for tensor in slots(inputs(layers[0], self.batch)):
            state.append(None if tensor is None else len(values))
            if tensor is not None:
                array = tensor.numpy()
                # Random numbers are made there; orders of windows are sent: they must be orders.
                data = b"" if tensor.is_floating_point() else array.tobytes()
                values.append((str(array.dtype), array.shape, data))
        steps = _wired(pieces, state, len(values))
        return _RemoteProgram(self._link, self._link.prepare(values, steps), len(steps))


class _RemoteProgram:
    """A program that an agent holds for as long as this object lives."""

    def __init__(self, link: Link, number: int, count: int) -> None:
        self._link, self._number, self._count = link, number, count
        weakref.finalize(self, link.forget, number)

    def __call__(self) -> list[Sample]:
        return [Sample(*times) for times in self._link.run(self._number, self._count)]


def _wired(pieces: Sequence[OnnxPiece], state: list[int | None], free: int) -> list[Step]:
    """The steps of a program; `state` holds numbers of values, of which `free` is the next."""
    steps = []
    for piece in pieces:
        written = list(range(free, free + len(piece.writes)))
        free += len(written)
        reads = {f"in{slot}": number for slot in piece.takes if (number := state[slot]) is not None}
        steps.append(Step(piece.model, reads, written))
        state = piece.after(state, written)
    return steps


def _slow(link: Link) -> bool:
    """Whether a product of matrices takes longer than on any real processor.

    Emulators work floating point out in software, 0.01 to 0.3 GFLOP/s; a Cortex-A53 at 1 GHz
    has 3. This sees an emulated machine that hides everything else.
    """
    size = 96
    step = Step(_product(size), {"a": 0}, [1])
    program = link.prepare([("float32", (size, size), b"")], [step])
    times = [link.run(program, 1)[0] for _ in range(8)]
    link.forget(program)
    # Other load makes wall time longer, and several threads processor time.
    best_ms = min(min(wall, cpu or wall) for wall, cpu in times)
    return 2 * size**3 / best_ms / 1e6 < SLOW_GFLOPS


def _product(size: int) -> bytes:
    """A product of two square matrices as an ONNX model."""
    from onnx import TensorProto, helper

    a, b = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("a", "b")
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "product", [a], [b])
    opsets = [helper.make_opsetid("", 13)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


class Ssh(AgentRuntime):
    """A device that the OpenSSH client reaches with a key, and whose host key is known.

    `config` is a file for `ssh -F`; without it `~/.ssh/config` holds, aliases and jump hosts too.
    `python` is the Python there that has onnxruntime, e.g. `~/venv/bin/python`.
    """

    example = "user@host"

    def __init__(
        self,
        device: str,
        *,
        address: str,
        runtime: str = "onnxruntime",
        python: str = "python3",
        config: str = "",
        threads: int = 1,
        batch: int = 1,
    ) -> None:
        super().__init__(device, threads, batch)
        check_option("runtime", runtime, ("onnxruntime",))
        match = ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match["port"] or 22) < 65536:
            raise UsageError(
                f"{address!r} is no address", "write ssh://USER@HOST or ssh://HOST:PORT"
            )
        if not COMMAND.fullmatch(python):
            raise UsageError(f"python={python} is no name or path", "e.g. python=~/venv/bin/python")
        self.python, self.config = python, config
        self._host = match["host"].strip("[]")
        self._login = ["-p", match["port"]] if match["port"] else []
        self._login += ["-l", match["user"]] if match["user"] else []

    def connect(self) -> Link:
        """Start the agent by the OpenSSH client; raises `DeviceError` with what that says."""
        try:
            return Link(self._command, self._host, self._explain)
        except FileNotFoundError:
            fix = "apt install openssh-client, or what your system calls it"
            raise MissingPackageError(f"{self.device} needs the program ssh", fix) from None

    def _command(self, line: str) -> list[str]:
        options = [word for option in OPTIONS for word in ("-o", option)]
        config = ["-F", self.config] if self.config else []
        there = f"exec {self.python} -u -B -c {shlex.quote(line)}"
        return ["ssh", *config, *self._login, "-T", "-x", "-a", *options, "--", self._host, there]

    def _explain(self, status: int | None, lines: Sequence[str]) -> VitnasError:
        text = "\n".join(lines)
        found = next((reason for word, reason in REASONS.items() if word in text), None)
        message, fix = found or _ending(status, self.python)
        login = " ".join(["ssh", *self._login, self._host])
        said = f" ({lines[-1]})" if lines else ""
        fix = fix.format(login=login, host=self._host)
        return DeviceError(f"{self._host} {message}{said}", fix)


def _ending(status: int | None, python: str) -> tuple[str, str]:
    if status == OLD_PYTHON:
        return f"has a {python} older than 3.8", "name a newer one: ,python=PATH"
    if status in (126, 127):
        return f"has no {python}", "install Python there, or name it: ,python=PATH"
    if status == 255:
        return "cannot be reached, or the connection broke", "try `{login}`, then " + AGAIN
    return "ended the agent, perhaps for want of memory", "see `dmesg` there, then " + AGAIN


AGAIN = "run the same command again: it goes on from what was measured"
# What the OpenSSH client says, and what it means.
REASONS = {
    "IDENTIFICATION HAS CHANGED": (
        "has another host key than before",
        "if it was reinstalled: `ssh-keygen -R {host}`, then log in once with `{login}`",
    ),
    "Host key verification failed": (
        "has a host key that is not known here",
        "log in once with `{login}` and compare the key it shows, or see ssh-keyscan",
    ),
    "Permission denied": (
        "accepts none of your keys",
        "`ssh-copy-id` puts one there; it has to work without a password: `{login}`",
    ),
    "Could not resolve": ("is a name that nobody knows", "use the address, or mend ~/.ssh/config"),
    "Connection refused": (
        "runs no SSH server there",
        "start it, or name its port: ssh://HOST:PORT",
    ),
    "timed out": ("does not answer", "is it switched on, and on this network? try `{login}`"),
    "No route to host": ("cannot be reached from here", "is it on this network? try `{login}`"),
    "No space left": ("has a full disk", "free some there; vitnas itself writes nothing"),
    "not responding": ("stopped answering", "look after it, then " + AGAIN),
}

RUNTIMES = {"ssh://": Ssh}
