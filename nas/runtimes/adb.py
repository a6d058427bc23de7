"""Android devices over adb: `adb://SERIAL`. No phone has been tried yet, only a false adb in tests.

ONNX Runtime's own `onnxruntime_perf_test` runs the models. It is not in the releases: build it
(https://onnxruntime.ai/docs/build/android.html), then
`adb push onnxruntime_perf_test libonnxruntime.so /data/local/tmp/`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from nas.errors import (
    DeviceError,
    MissingPackageError,
    PreparationError,
    UsageError,
    VitnasError,
    printable,
)
from nas.lowering.onnx import PACKAGES, VERSION, lower, lower_ahead
from nas.runtimes import Program, Runtime, Sample, check_threads
from nas.space.layer import Layer

LIMIT_S = 600
RUNS = 10  # of which the tool gives the median, after one that it drops
MEDIAN_S = re.compile(r"^P50 Latency: *([0-9.e-]+) *s", re.MULTILINE)
LONGEST_MS = 3_600_000.0


class Adb(Runtime):
    """ONNX Runtime on an Android device; inputs are zeros, denormal numbers are flushed.

    Every layer is a process of its own there, so rows are timed alone.
    """

    kind = "arm"
    context = "isolated"
    single = False  # the tool there says the median of its runs
    lowering = VERSION
    packages = PACKAGES
    extra = "onnx"
    example = "SERIAL"
    source: str = "emulated-time"  # until the device has shown that it is none

    def __init__(
        self,
        device: str,
        *,
        address: str,
        tool: str = "/data/local/tmp/onnxruntime_perf_test",
        threads: int = 1,
        batch: int = 1,
    ) -> None:
        super().__init__(device)
        if not re.fullmatch(r"[\w][\w.:-]*", address):
            raise UsageError(f"{address!r} is no serial number", "`adb devices` shows them")
        if not re.fullmatch(r"/[\w./-]+", tool):
            raise UsageError(f"tool={tool} is no path there", "e.g. tool=/data/local/tmp/perf")
        self.serial, self.tool = address, tool
        self.threads, self.batch = threads, batch
        self._folder = f"/data/local/tmp/vitnas-{secrets.token_hex(6)}"
        self._pushed: set[str] = set()

    def describe(self) -> dict[str, Any]:
        """What the device says of itself, and whether the measuring tool is there.

        Raises `DeviceError` if it is not. Sets `source`: an emulator is never called measured.
        """
        self.require()
        found = self._shell(
            "getprop ro.product.model; getprop ro.soc.model; getprop ro.build.version.release; "
            "uname -m; nproc; getprop ro.kernel.qemu; getprop ro.boot.qemu; echo end; "
            f"sha256sum {self.tool} 2>/dev/null || echo none"
        )
        lines = [printable(line, 80) for line in found.splitlines()]
        if len(lines) != 9 or lines[7] != "end" or not re.match(r"[0-9a-f]{64}\b", lines[8]):
            raise DeviceError(
                f"{self.serial} has no {self.tool}",
                "see nas/runtimes/adb.py on how to get it there",
            )
        emulated = "1" in lines[5:7]
        self.source = "emulated-time" if emulated else "measured"
        cores = int(lines[4]) if lines[4].isdecimal() else 0
        check_threads(self.device, self.threads, cores or self.threads)
        return {
            "name": self.device,
            "kind": "arm" if lines[3].startswith(("aarch64", "arm")) else "cpu",
            "processor": lines[1] or lines[0],
            "machine": lines[3],
            "board": lines[0],
            "system": f"Android {lines[2]}",
            "cores": cores,
            "emulator": "Android emulator" if emulated else "",
            "runtime": "onnxruntime_perf_test",
            "runtime_version": lines[8][:12],
            "threads": self.threads,
            "dtype": "float32",
            "batch": self.batch,
        }

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pushed:
            self._pushed.clear()
            with contextlib.suppress(VitnasError):  # nobody is there any more
                self._adb("shell", f"rm -r {self._folder}")

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Export layers in as many processes as there are cores here."""
        return lower_ahead(layers, self.batch, os.cpu_count() or 1)

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Send a model for each layer, or one for all; each call has the tool run them."""
        groups = [layers] if fused else [[layer] for layer in layers]
        paths = [self._push(lower(group, self.batch).model) for group in groups]
        return lambda: [self._time(path) for path in paths]

    def _push(self, model: bytes) -> str:
        path = f"{self._folder}/{sha256(model).hexdigest()[:24]}.onnx"
        if path not in self._pushed:
            if not self._pushed:
                self._shell(f"mkdir {self._folder}")
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                file.write_bytes(model)
                self._checked("push", str(file), path)
            self._pushed.add(path)
        return path

    def _time(self, path: str) -> Sample:
        library = self.tool.rpartition("/")[0]
        options = f"-e cpu -m times -r {RUNS} -x {self.threads} -y 1 -z -I"
        status, said = self._adb("shell", f"LD_LIBRARY_PATH={library} {self.tool} {options} {path}")
        match = MEDIAN_S.search(said)
        if status or match is None:
            self._refuse(said)
            last = printable((said.strip().splitlines() or ["nothing"])[-1])
            raise PreparationError(f"onnxruntime_perf_test on {self.serial} said: {last}")
        try:
            milliseconds = 1e3 * float(match[1])
        except ValueError:
            milliseconds = 0.0
        if not 0 < milliseconds < LONGEST_MS:
            raise DeviceError(
                f"{self.serial} gave a time of {match[1]} s", "is the tool the right one?"
            )
        return Sample(milliseconds, 0.0)

    def _shell(self, line: str) -> str:
        return self._checked("shell", line)

    def _checked(self, *words: str) -> str:
        status, said = self._adb(*words)
        if status:
            self._refuse(said)
            last = printable((said.strip().splitlines() or [f"status {status}"])[-1])
            raise DeviceError(
                f"adb {words[0]} failed on {self.serial}: {last}", "see `adb devices`"
            )
        return said

    def _refuse(self, said: str) -> None:
        """Raise what adb itself says about the connection."""
        reasons = REASONS | {f"device '{self.serial}' not found": REASONS["no devices"]}
        for word, (message, fix) in reasons.items():
            if word in said:
                raise DeviceError(f"{self.serial} {message}", fix)

    def _adb(self, *words: str) -> tuple[int, str]:
        try:
            done = subprocess.run(
                ["adb", "-s", self.serial, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_S,
            )
        except FileNotFoundError:
            fix = "apt install adb, or Google's platform tools"
            raise MissingPackageError(f"{self.device} needs the program adb", fix) from None
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self.serial} gave no answer within {LIMIT_S} s", "see `adb devices`"
            ) from None
        return done.returncode, done.stdout.decode("utf-8", "replace").replace("\r", "")


REASONS = {
    "unauthorized": ("has not allowed this computer", "unlock it and accept the question it shows"),
    "device offline": ("is offline", "plug it in again, or `adb reconnect`"),
    "no devices": ("is not connected", "turn on USB debugging; `adb devices` must show it"),
    "No space left": ("has a full disk", "free some below /data/local/tmp"),
}

RUNTIMES = {"adb://": Adb}
