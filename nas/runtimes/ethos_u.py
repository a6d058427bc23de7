"""Arm Ethos-U NPUs through Vela: what Arm's compiler expects a model to take, in cycles.

No NPU is needed, and nothing is measured: Vela schedules the int8 model and adds up its own model
of the hardware. Arm calls these estimates, not for comparison between accelerators or settings.
They are exactly the same every time. A model of which any operator would run on the host processor
has no time, for Vela counts none for these.
"""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from nas.errors import PreparationError, RunError
from nas.lowering.tflite import LOWERING
from nas.records import read_object, write_json
from nas.runtimes import Program, Runtime, Sample
from nas.space.layer import Layer
from nas.typed import MismatchError, decode
from nas.versions import installed

TIME_LIMIT_S = 600  # a whole network takes 1-30 s


class Setting(NamedTuple):
    """Sections of Vela's `Arm/vela.ini`, and the clock they say."""

    system: str
    memory: str
    clock_mhz: int


_FLASH = Setting("Ethos_U55_High_End_Embedded", "Shared_Sram", 500)
_DRAM = Setting("Ethos_U65_High_End", "Dedicated_Sram", 1000)
SETTINGS = {
    "ethos-u55-128": _FLASH,
    "ethos-u65-512": _DRAM,
    "ethos-u85-256": Setting("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_512KB", 1000),
    "ethos-u85-1024": Setting("Ethos_U85_SYS_DRAM_High", "Dedicated_Sram_512KB", 1000),
}

# Operators whose multiply-accumulates are those of the network, in the model and for Vela, which
# also counts what it makes of means, of softmax and of transpositions.
PRODUCTS = ("Conv2D", "DepthwiseConv2D", "FullyConnected", "BatchMatMul", "MatMul")


@dataclass(frozen=True)
class Compiled:
    """What Vela says of a model."""

    cycles: int
    macs: int  # of its products
    host: tuple[str, ...]  # operators left to the host processor


class EthosU(Runtime):
    """An accelerator in one configuration, as Vela models it.

    Alone, a layer also fetches its input from the memory outside of the NPU and brings its result
    there, which inside a network it mostly does not: sums of such rows are up to 24 % too large. So
    a row is what a layer adds to the one before it: `experiments/ethos_u.py`.
    """

    kind = "npu"
    lowering = LOWERING
    exact = True
    context = "network"
    packages = ("ethos-u-vela",)
    extra = "ethos-u"
    source = "vendor-model"

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.setting = SETTINGS[device]
        self._known: dict[str, Compiled] = {}

    def describe(self) -> dict[str, Any]:
        """The accelerator, Vela's version, and its settings of memory and clock."""
        self.require()
        return {
            "name": self.device,
            "processor": f"Arm {self.device.title()}",
            "machine": self.device.rpartition("-")[0],
            "runtime": "vela",
            "runtime_version": installed("ethos-u-vela"),
            "threads": 1,
            "dtype": "int8",
            "batch": 1,
            "clock_mhz": self.setting.clock_mhz,
            "system_config": self.setting.system,
            "memory_mode": self.setting.memory,
        }

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Compile layers, one by one or as one model; a call gives the times that Vela expects."""
        if fused:
            cycles = [self._cycles(*layers)]
        else:
            before: list[Layer | None] = [None, *layers[:-1]]
            cycles = [self._row_cycles(a, b) for a, b in zip(before, layers)]
        samples = [Sample(n / self.setting.clock_mhz / 1e3, 0) for n in cycles]
        return lambda: list(samples)

    def _row_cycles(self, before: Layer | None, layer: Layer) -> int:
        """The cycles that a layer adds to the one before it, if that runs on the NPU."""
        alone = self._cycles(layer)
        if before is None or self.compiled((before,)).host:
            return alone
        added = self._cycles(before, layer) - self._cycles(before)
        return added if added > 0 else alone

    def _cycles(self, *layers: Layer) -> int:
        compiled = self.compiled(layers)
        if compiled.host:
            raise PreparationError(_fallback(compiled))
        return compiled.cycles

    def note(self, layer: Layer) -> str:
        """The operators of a layer that would run on the host processor."""
        with suppress(PreparationError):  # `prepare` says why
            compiled = self.compiled((layer,))
            return _fallback(compiled) if compiled.host else ""
        return ""

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Lower layers one after the other, and compile them on all cores."""

        def done(layer: Layer, data: bytes) -> Layer:
            with suppress(PreparationError):
                self._stored(data)
            return layer

        with ThreadPoolExecutor(cpu_count()) as pool:
            yield from pool.map(done, layers, map(_lowered_or_empty, layers))

    def compiled(self, layers: Sequence[Layer]) -> Compiled:
        """Consecutive layers as one model, compiled once in a process and once on a machine."""
        key = "\n".join(layer.key for layer in layers)
        if key not in self._known:
            from nas.lowering.tflite.lowering import lower

            model = lower(layers)
            self._known[key] = (
                Compiled(0, 0, model.dynamic) if model.dynamic else self._stored(model.data)
            )
        return self._known[key]

    def _stored(self, model: bytes) -> Compiled:
        """What Vela says of a model, kept on disk by the model's hash and Vela's version."""
        folder = f"{self.device}-vela-{installed('ethos-u-vela')}-{LOWERING.replace('/', '-')}"
        name = f"{hashlib.sha256(model).hexdigest()}.json"
        path = Path(platformdirs.user_cache_dir("vitnas")) / "ethos-u" / folder / name
        with suppress(RunError, MismatchError):  # not there, or damaged
            return decode(Compiled, read_object(path))
        compiled = run_vela(model, self.device, self.setting)
        write_json(path, asdict(compiled))
        return compiled


def _lowered_or_empty(layer: Layer) -> bytes:
    from nas.lowering.tflite.lowering import lower

    with suppress(PreparationError):
        return lower([layer]).data
    return b""


def _fallback(compiled: Compiled) -> str:
    return f"fallback: {', '.join(compiled.host)}"


def run_vela(model: bytes, accelerator: str, setting: Setting) -> Compiled:
    """Compile a model; `PreparationError` if Vela fails, crashes or takes too long."""
    with tempfile.TemporaryDirectory(prefix="vitnas-vela-") as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(model)
        command = [sys.executable, "-m", "ethosu.vela", str(file)]
        command += ["--output-dir", folder, "--accelerator-config", accelerator]
        command += ["--config", "Arm/vela.ini", "--system-config", setting.system]
        command += ["--memory-mode", setting.memory, "--show-cpu-operations"]
        command += ["--verbose-performance"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise PreparationError(f"Vela took more than {TIME_LIMIT_S} s") from None
        if done.returncode:
            raise PreparationError(f"Vela failed: {_reason(done)}")
        return _read(Path(folder), done.stdout, setting)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {done.returncode}"])[-1]


def _read(folder: Path, output: str, setting: Setting) -> Compiled:
    # Vela calls all of them Passthrough; the tensors that they write have their names.
    host = tuple(dict.fromkeys(re.findall(r"^\s+CPU: \w+ = (\w+)", output, re.MULTILINE)))
    if host:
        return Compiled(0, 0, host)
    summary = next(iter(_rows(folder, "*_summary_*.csv")), {})
    cycles = round(float(summary.get("cycles_total", 0)))
    clock = float(summary.get("core_clock", 0))
    if cycles <= 0 or clock != setting.clock_mhz * 1e6:
        raise PreparationError(f"Vela reported {cycles} cycles at {clock:.0f} Hz")
    macs = sum(
        int(row["MAC Count"])
        for row in _rows(folder, "*_per-layer.csv")
        if row["Original Operator"] in PRODUCTS and row["NNG Operator"] in PRODUCTS
    )
    return Compiled(cycles, macs, ())


def _rows(folder: Path, pattern: str) -> list[dict[str, str]]:
    text = "".join(path.read_text() for path in folder.glob(pattern))
    return list(csv.DictReader(text.splitlines()))


RUNTIMES = dict.fromkeys(SETTINGS, EthosU)
