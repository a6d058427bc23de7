"""The far end of `ssh://`: loads ONNX models, runs them and says how long each took.

It is sent to the device with every connection and needs Python 3.8, numpy and onnxruntime there,
not vitnas. It writes no file: models and tensors stay in memory and end with the connection.

On standard input come requests, each a line of JSON; `size` in it says how many bytes follow the
line. Each is answered with a line of JSON on standard output: what was asked for, or `error` (its
kind) and `text`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import struct
import sys
import time
import zlib
from typing import Any

PROTOCOL = 1
IDLE_S = 3 * 3600  # ends by itself where the connection went without a word

# What /sys, /proc and ELF headers call processors, by the family that `uname -m` belongs to.
FAMILIES = {
    "arm": ("aarch64", "arm64", "armv", "arm"),
    "x86": ("x86_64", "amd64", "i386", "i686", "x86"),
    "riscv": ("riscv",),
}
ELF = {40: "arm", 183: "arm", 3: "x86", 62: "x86", 243: "riscv"}
PARTS = {  # Arm's own, of MIDR_EL1
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}  # fmt: skip
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def clock() -> tuple[int, int]:
    """Wall and processor time in nanoseconds."""
    return time.perf_counter_ns(), time.process_time_ns()


def read(path: str) -> str:
    """The text of a small file of the system; "" where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""


def family(machine: str) -> str:
    """The family of processors that a name of `uname -m` belongs to; itself if it is unknown."""
    for name, prefixes in FAMILIES.items():
        if machine.lower().startswith(prefixes):
            return name
    return machine.lower()


def elf_family(path: str) -> str:
    """The family that a program was built for, by its ELF header; "" if that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return ""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    return ELF.get(struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])[0], "another")


def cpu_fields() -> dict[str, str]:
    """The fields of /proc/cpuinfo by name, those of its first processor."""
    lines = [line.partition(":") for line in read("/proc/cpuinfo").splitlines()]
    fields: dict[str, str] = {}
    for key, colon, value in lines:
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def emulator() -> list[str]:
    """The signs found that this machine is emulated by another one; each of them alone is enough.

    Emulators show their guest a false /proc/self, not a false /proc/thread-self.
    """
    ours, fields = family(platform.machine()), cpu_fields()
    modalias = read("/sys/devices/system/cpu/modalias")
    name = fields.get("model name", "") + fields.get("vendor_id", "")
    maps = read("/proc/thread-self/maps")
    signs = {
        "interpreter of another processor": elf_family("/proc/thread-self/exe") not in ("", ours),
        "kernel of another processor": (
            family(read("/proc/sys/kernel/arch") or platform.machine()) != ours
        ),
        "system of another processor": (
            modalias.startswith("cpu:type:") and family(modalias[len("cpu:type:") :]) != ours
        ),
        "cpuinfo of another processor": (
            (ours == "arm" and ("vendor_id" in fields or "flags" in fields))
            or (ours == "x86" and ("CPU implementer" in fields or "VirtualApple" in name))
        ),
        "emulated processor": "QEMU TCG" in name,
        "emulated machine": read("/sys/class/dmi/id/product_name") == "QEMU Virtual Machine",
        "emulator in memory": any(
            line.rsplit("/", 1)[-1].startswith(("qemu-", "rosetta", "box64", "FEX"))
            for line in maps.splitlines()
        ),
        "emulator as process": read("/proc/thread-self/comm").startswith(("qemu-", "box64", "FEX")),
        "emulator registered": os.path.exists(
            f"/proc/sys/fs/binfmt_misc/qemu-{platform.machine()}"
        ),
        "emulator's settings": "QEMU_LD_PREFIX" in os.environ or "QEMU_CPU" in os.environ,
    }  # fmt: skip
    return [sign for sign, seen in signs.items() if seen]


def processor() -> str:
    """What the processor is called, with as much of its model as the system tells."""
    fields = cpu_fields()
    part = fields.get("CPU part", "")
    if fields.get("CPU implementer") == "0x41" and part in PARTS:
        return "Arm " + PARTS[part]
    if part:
        return f"Arm {fields.get('CPU implementer', '?')} part {part}"
    kind = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return " ".join([fields.get("model name", platform.machine()), *kind])


class Refusal(Exception):
    """A request could not be met; `kind` and `text` say why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text


class Agent:
    """Holds the models that were sent, and programs: models in a row on tensors bound once."""

    def __init__(self) -> None:
        self.numpy: Any = None
        self.runtime: Any = None
        self.options: Any = None
        self.sessions: dict[str, Any] = {}
        self.programs: dict[int, list[tuple[str, Any, Any]]] = {}
        self.buffers: dict[tuple[Any, ...], Any] = {}

    def hello(self, threads: int) -> dict[str, Any]:
        """Load numpy and ONNX Runtime, and say what this device and its software are."""
        # From 1.29 on it would write an identifier to the home directory, and send what runs here.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import numpy
            import onnxruntime
        except Exception as error:  # numpy and onnxruntime of unlike versions raise many kinds
            raise Refusal("missing", str(error)) from None
        self.numpy, self.runtime = numpy, onnxruntime
        onnxruntime.set_default_logger_severity(3)
        memory = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
            onnxruntime.OrtMemType.DEFAULT,
        )  # fmt: skip
        onnxruntime.create_and_register_allocator(memory, None)
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        self.options.add_session_config_entry("session.use_env_allocators", "1")
        self.options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return {
            "protocol": PROTOCOL,
            "machine": platform.machine(),
            "system": platform.system() + " " + platform.release(),
            "board": read("/proc/device-tree/model") or read("/sys/class/dmi/id/product_name"),
            "processor": processor(),
            "cores": os.cpu_count() or 1,
            "python": platform.python_version(),
            "runtime_version": onnxruntime.__version__,
            "providers": onnxruntime.get_available_providers(),
            "emulator": emulator(),
        }

    def conditions(self) -> dict[str, Any]:
        """The load, clock, governor and temperature right now; 0 or "" where one cannot be read."""
        cpu = "/sys/devices/system/cpu/cpu0/cpufreq/"
        clock_khz = read(cpu + "scaling_cur_freq")
        heat = read("/sys/class/thermal/thermal_zone0/temp")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return {
            "load": round(load, 2),
            "clock_mhz": int(clock_khz) // 1000 if clock_khz.isdigit() else 0,
            "governor": read(cpu + "scaling_governor"),
            "celsius": int(heat) // 1000 if heat.isdigit() else 0,
        }

    def load(self, model: str, blob: bytes) -> dict[str, Any]:
        """Keep a model: its bytes come compressed, and are called after the hash of them."""
        data = zlib.decompress(blob)
        if hashlib.sha256(data).hexdigest() != model:
            raise Refusal("request", "a model arrived damaged")
        try:
            session = self.runtime.InferenceSession(
                data, self.options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise Refusal("model", str(error)) from None
        self.sessions[model] = session
        return {"loaded": model}

    def prepare(
        self, program: int, inputs: list[Any], steps: list[Any], blob: bytes
    ) -> dict[str, Any]:
        """Wire models: `steps` name a model, what it reads (by name) and writes (in order).

        `inputs` are values 0, 1, ...: type, shape, and how many bytes of `blob` they are (0 for
        random numbers).
        """
        missing = sorted({step["model"] for step in steps} - set(self.sessions))
        if missing:
            return {"missing": missing}
        values: dict[int, Any] = {}
        taken: dict[Any, int] = {}
        for number, (kind, shape, size) in enumerate(inputs):
            values[number] = self.input(number, kind, shape, blob[:size])
            blob = blob[size:]
        ready = []
        for step in steps:
            session = self.sessions[step["model"]]
            binding = session.io_binding()
            for name, number in step["reads"].items():
                binding.bind_ortvalue_input(name, values[number])
            for output, number in zip(session.get_outputs(), step["writes"]):
                values[number] = self.buffer(output, taken)
                binding.bind_ortvalue_output(output.name, values[number])
            ready.append((step["model"], session, binding))
        self.programs[program] = ready
        return {"missing": []}

    def input(self, number: int, kind: str, shape: list[int], data: bytes) -> Any:
        """An input of a program, made of `data`, or of random numbers that all programs share."""
        numpy = self.numpy
        if data:
            array = numpy.frombuffer(data, kind).reshape(shape)
            return self.runtime.OrtValue.ortvalue_from_numpy(array.copy())
        where: tuple[Any, ...] = ("input", number, kind, tuple(shape))
        if where not in self.buffers:
            array = numpy.random.RandomState(0).standard_normal(shape).astype(kind)
            self.buffers[where] = self.runtime.OrtValue.ortvalue_from_numpy(array)
        return self.buffers[where]

    def buffer(self, output: Any, taken: dict[Any, int]) -> Any:
        """Memory for an output: shared between programs, since only one runs at a time."""
        kind, shape = TYPES.get(output.type), output.shape
        if kind is None or not all(isinstance(n, int) for n in shape):
            raise Refusal("model", f"output {output.name} of type {output.type}")
        where = (kind, tuple(shape), taken.setdefault((kind, tuple(shape)), 0))
        taken[kind, tuple(shape)] += 1
        if where not in self.buffers:
            self.buffers[where] = self.runtime.OrtValue.ortvalue_from_shape_and_type(
                shape, self.numpy.dtype(kind).type, "cpu"
            )
        return self.buffers[where]

    def run(self, program: int) -> dict[str, Any]:
        """Run a program once; wall and processor time of each of its models, in nanoseconds."""
        samples = []
        wall, cpu = clock()
        try:
            for _, session, binding in self.programs[program]:
                session.run_with_iobinding(binding)
                after, cpu_after = clock()
                samples.append([after - wall, cpu_after - cpu])
                wall, cpu = after, cpu_after
        except Exception as error:
            raise Refusal("model", str(error)) from None
        return {"samples": samples}

    def forget(self, programs: list[int]) -> dict[str, Any]:
        """Drop programs, and models that no other program uses."""
        for program in programs:
            self.programs.pop(program, None)
        used = {model for steps in self.programs.values() for model, _, _ in steps}
        for model in set(self.sessions) - used:
            del self.sessions[model]
        return {"programs": len(self.programs)}


def answer(agent: Agent, request: dict[str, Any], blob: bytes) -> Any:
    """What the agent replies to a request, by the name of the operation in `do`."""
    operation = request.pop("do")
    if operation not in ("hello", "conditions", "load", "prepare", "run", "forget"):
        raise Refusal("request", "unknown request")
    if operation in ("load", "prepare"):
        request["blob"] = blob
    return getattr(agent, operation)(**request)


def serve(greeting: str) -> None:
    """Answer requests until the connection ends."""
    incoming = sys.stdin.buffer
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    agent = Agent()
    outgoing.write(greeting.encode() + b"\n")
    outgoing.flush()
    while True:
        signal.alarm(IDLE_S)
        line = incoming.readline()
        if not line:
            return
        request = json.loads(line)
        # A run that hangs ends here too: nobody may be left to end it.
        signal.alarm(request.pop("limit_s"))
        blob = incoming.read(request.pop("size"))
        try:
            reply = answer(agent, request, blob)
        except Refusal as refusal:
            reply = {"error": refusal.kind, "text": refusal.text[:2000]}
        except MemoryError:
            reply = {"error": "memory", "text": "out of memory"}
        outgoing.write(json.dumps(reply).encode() + b"\n")
        outgoing.flush()
