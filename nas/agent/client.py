"""The near end of `nas.agent.server`, which runs in another process, usually elsewhere.

What comes back is written by whoever is there: it is parsed as JSON, never executed, and every
field is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import subprocess
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from nas.errors import DeviceError, PreparationError, VitnasError, printable

START_S = 60  # for the connection, and Python there
HELLO_S = 120  # numpy and onnxruntime start slowly from a memory card
REQUEST_S = 600
GRACE_S = 5  # the agent ends itself first, so that nothing goes on running there
LONGEST_NS = 3_600_000_000_000
LINE_BYTES = 1 << 20
OLD_PYTHON = 93  # exit status of the first line there, which even Python 2 understands

# The command that runs a line of Python at the other end.
Command = Callable[[str], Sequence[str]]
# Why such a command ended: its exit status and the last lines it wrote to standard error.
Explain = Callable[[int | None, Sequence[str]], VitnasError]


def agent_source() -> str:
    """The program of the agent, which is sent to the device with every connection."""
    return Path(__file__).with_name("server.py").read_text()


class Hello(NamedTuple):
    """What an agent says of its device."""

    machine: str
    system: str
    board: str
    processor: str
    cores: int
    python: str
    runtime_version: str
    emulator: tuple[str, ...]  # signs of one


class Link:
    """A connection to an agent: `command` starts Python there, `explain` says why it ended."""

    def __init__(
        self, command: Command, name: str, explain: Explain, source: str | None = None
    ) -> None:
        self.name, self._explain = name, explain
        self._nonce = secrets.token_hex(8)
        self._lines: deque[str] = deque(maxlen=40)
        self._forgotten: list[int] = []
        self._count = 0
        code = f"{source or agent_source()}\nserve('vitnas {self._nonce}')\n".encode()
        first = (
            f"import sys; sys.version_info >= (3, 8) or sys.exit({OLD_PYTHON}); "
            f"exec(compile(sys.stdin.buffer.read({len(code)}), 'agent', 'exec'))"
        )
        self._process = subprocess.Popen(
            command(first),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        try:
            with _Deadline(self._process, START_S) as deadline:
                self._send(code)
                self._greeting(deadline)
        except BaseException:
            self.close()
            raise

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while line := stream.readline(4096):
                if text := printable(line.decode("utf-8", "replace")):
                    self._lines.append(text)

    def _greeting(self, deadline: _Deadline) -> None:
        """Skip what login scripts write before the agent's first line."""
        for _ in range(200):
            line = self._line(deadline)
            if line.strip() == f"vitnas {self._nonce}".encode():
                return
        raise DeviceError(f"{self.name} answers with something else than the agent", SILENT)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # why it ended is said when the answer is read
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _line(self, deadline: _Deadline) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline(LINE_BYTES)
        if line.endswith(b"\n"):
            return line
        if len(line) >= LINE_BYTES:
            raise DeviceError(f"{self.name} answered with an endless line", SILENT)
        raise self._ended(deadline)

    def _ended(self, deadline: _Deadline) -> VitnasError:
        """Why the connection ended. Nothing is lost: all that was measured is in the journal."""
        if deadline.passed:
            return DeviceError(
                f"{self.name} gave no answer within {deadline.limit_s:.0f} s",
                "look at the load of the device, then run the same command again to go on",
            )
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        self._reader.join(2)
        return self._explain(status, list(self._lines))

    def request(
        self, do: str, blob: bytes = b"", limit_s: float = REQUEST_S, **fields: Any
    ) -> dict[str, Any]:
        """Send a request and wait for its answer, a JSON object.

        Raises `DeviceError` or `PreparationError` where the agent answers with an error, with
        something else than JSON, or not within `limit_s` seconds.
        """
        message = {"do": do, **fields, "size": len(blob), "limit_s": math.ceil(limit_s)}
        with _Deadline(self._process, limit_s + GRACE_S) as deadline:
            self._send(json.dumps(message).encode() + b"\n" + blob)
            line = self._line(deadline)
        try:
            reply = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise self._garbage(printable(line.decode("utf-8", "replace"))) from None
        if not isinstance(reply, dict):
            raise self._garbage(printable(reply))
        if "error" in reply:
            raise self._refused(do, reply)
        return reply

    def _refused(self, do: str, reply: Mapping[str, Any]) -> VitnasError:
        kind, text = (printable(reply.get(key, "")) for key in ("error", "text"))
        if kind == "model":
            return PreparationError(f"onnxruntime on {self.name}: {text}")
        if kind == "memory":
            return PreparationError(f"{self.name} has too little memory for this")
        if kind == "missing":
            fix = "run there: python3 -m pip install onnxruntime (or name its Python: ,python=PATH)"
            return DeviceError(f"the Python on {self.name} cannot import onnxruntime: {text}", fix)
        return DeviceError(f"{self.name} refused {do}: {text}", "look there, and try again")

    def _garbage(self, what: str) -> DeviceError:
        return DeviceError(f"{self.name} answered with what no agent answers: {what}", SILENT)

    def hello(self, threads: int) -> Hello:
        """Have the agent load ONNX Runtime with so many threads; what it says of its device.

        Raises `DeviceError` if it cannot, or says what no device says.
        """
        reply = self.request("hello", limit_s=HELLO_S, threads=threads)
        providers = reply.pop("providers", None)
        signs = reply.pop("emulator", None)
        if reply.pop("protocol", None) != 1 or not _words(providers) or not _words(signs):
            raise self._garbage("another hello")
        fields = [field for field in Hello._fields if field != "emulator"]
        self._check(reply, {key: int if key == "cores" else str for key in fields})
        if not 1 <= reply["cores"] <= 4096:
            raise self._garbage(f"{printable(reply['cores'])} cores")
        texts: dict[str, Any] = {
            key: printable(v, 100) if key != "cores" else v for key, v in reply.items()
        }
        return Hello(**texts, emulator=tuple(printable(sign, 60) for sign in signs))

    def conditions(self) -> dict[str, Any]:
        """Load, clock, governor and temperature there, as far as they can be read."""
        reply = self.request("conditions", limit_s=60)
        kinds = {"load": float, "clock_mhz": int, "governor": str, "celsius": int}
        self._check(reply, kinds)
        return {k: printable(v, 60) if isinstance(v, str) else v for k, v in reply.items() if v}

    def _check(self, reply: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
        """Raise `DeviceError` unless the reply has exactly these fields, each of its type."""
        if reply.keys() != kinds.keys():
            raise self._garbage(f"fields {printable(sorted(reply))}")
        for key, kind in kinds.items():
            if type(reply[key]) is not kind:
                raise self._garbage(f"{key} = {printable(reply[key], 60)}")

    def prepare(
        self, inputs: Sequence[tuple[str, Sequence[int], bytes]], steps: Sequence[Step]
    ) -> int:
        """Have models wired into a program there, sending those missing; the program's number."""
        self._forget()
        models = {sha256(step.model).hexdigest(): step.model for step in steps}
        number = self._count = self._count + 1
        shapes = [[kind, list(shape), len(data)] for kind, shape, data in inputs]
        wiring = [
            {"model": sha256(s.model).hexdigest(), "reads": s.reads, "writes": s.writes}
            for s in steps
        ]
        blob = b"".join(data for _, _, data in inputs)
        for _ in range(2):
            reply = self.request("prepare", blob, program=number, inputs=shapes, steps=wiring)
            missing = reply.get("missing")
            if not isinstance(missing, list) or not set(map(str, missing)) <= models.keys():
                raise self._garbage(f"missing = {printable(missing)}")
            if not missing:
                return number
            for model in missing:
                # Weights are constants: they shrink to next to nothing.
                self.request("load", zlib.compress(models[model], 1), model=model)
        raise self._garbage("models are missing after they were sent")

    def run(self, program: int, count: int) -> list[tuple[float, float]]:
        """Run a program once; wall and processor time in ms of each of its `count` steps."""
        samples = self.request("run", program=program).get("samples")
        if not isinstance(samples, list) or len(samples) != count:
            raise self._garbage(f"samples = {printable(samples)}")
        return [self._sample(sample) for sample in samples]

    def _sample(self, sample: Any) -> tuple[float, float]:
        if (
            not isinstance(sample, list)
            or len(sample) != 2
            or not all(type(ns) is int and 0 <= ns < LONGEST_NS for ns in sample)
            or sample[0] == 0
        ):
            raise self._garbage(f"a time of {printable(sample, 60)} nanoseconds")
        return sample[0] / 1e6, sample[1] / 1e6

    def forget(self, program: int) -> None:
        """Note that a program is no longer needed; it goes when the next one is prepared."""
        self._forgotten.append(program)

    def _forget(self) -> None:
        if self._forgotten:
            programs, self._forgotten = self._forgotten, []
            self.request("forget", programs=programs, limit_s=60)

    def close(self) -> None:
        """End the connection; the agent ends when it sees that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(2)


class Step(NamedTuple):
    """A model in a program: which values it reads (by input name) and writes (in order)."""

    model: bytes
    reads: dict[str, int]
    writes: list[int]


SILENT = "try `ssh HOST true`: it must print nothing, and stay connected"


class _Deadline:
    """Kills a process that answers too late; `passed` says that it did."""

    def __init__(self, process: subprocess.Popen[bytes], limit_s: float) -> None:
        self.limit_s, self.passed = limit_s, False
        self._process = process
        self._timer = threading.Timer(limit_s, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.passed = True
        self._process.kill()

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _words(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 40 and all(type(x) is str for x in value)
