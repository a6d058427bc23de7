"""torch on the CPU, eager: layers run one after the other as they are written."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nas.errors import PreparationError
from nas.runtimes import Program, Runtime, Sample, check_option
from nas.space.layer import Layer
from nas.versions import installed


class TorchCpu(Runtime):
    """torch eager on the CPU, in a `quiet_process`."""

    def __init__(
        self, device: str, *, threads: int = 1, dtype: str = "float32", batch: int = 1
    ) -> None:
        super().__init__(device)
        self.threads, self.batch = threads, batch
        self.dtype = check_option("dtype", dtype, ("float32", "bfloat16"))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.device,
            **describe_host(),
            "runtime": "torch-eager",
            "runtime_version": installed("torch"),
            "threads": self.threads,
            "dtype": self.dtype,
            "batch": self.batch,
        }

    def conditions(self) -> dict[str, Any]:
        return host_conditions()

    def __enter__(self) -> Self:
        import torch

        self._threads = torch.get_num_threads()
        quiet_process(self.threads)
        torch.manual_seed(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import torch

        torch.set_num_threads(self._threads)
        torch.set_flush_denormal(False)

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        import torch

        from nas.network.standalone import build, inputs

        dtype = getattr(torch, self.dtype)
        steps = build(layers, dtype=dtype)
        state = inputs(layers[0], self.batch, dtype=dtype)

        @torch.inference_mode()
        def program() -> list[Sample]:
            samples = []
            now = state  # layers may write into it: it holds random numbers, whatever they are
            wall, cpu = time.perf_counter_ns(), time.process_time_ns()
            for i, (module, sizes) in enumerate(steps):
                now = module(*now, **sizes)
                if not fused or i == len(steps) - 1:
                    after, cpu_after = time.perf_counter_ns(), time.process_time_ns()
                    samples.append(Sample((after - wall) / 1e6, (cpu_after - cpu) / 1e6))
                    wall, cpu = after, cpu_after
            return samples

        try:
            program()  # packs int8 weights, and shows what this type cannot do
        except RuntimeError as error:
            raise PreparationError(
                f"{self.device} cannot run {layers[0].key}: {str(error).splitlines()[0]}"
            ) from None
        return program


def quiet_process(threads: int = 1) -> None:
    """So many threads, a heap that is kept, no denormal numbers: how everything here is measured.

    By default glibc gives large blocks back to the system after each use; faulting them in again
    made networks up to 10 % slower and tripled the spread (840 page faults per inference, 0.5
    after). Denormal numbers, which masked attention makes, are flushed to zero: up to 2.9x in
    shifted windows. Deploy with `torch.set_flush_denormal(True)` and
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000` to have the same.
    """
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_heap()


def keep_heap() -> None:
    """Let the C library keep freed memory instead of returning it to the system (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def describe_host() -> dict[str, Any]:
    """Processor, machine and cores of the host."""
    return {"processor": _processor(), "machine": platform.machine(), "cores": _cores()}


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {k.strip(): v.strip() for k, v in fields.items()}


def _processor() -> str:
    fields = _cpuinfo()
    parts = [f"{k} {fields[k]}" for k in ("cpu family", "model") if k in fields]
    name = fields.get("model name", platform.processor() or platform.machine())
    return " ".join([name, *parts])


def host_conditions() -> dict[str, Any]:
    """Clock, governor and load of the host, as far as they can be read."""
    import os

    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    if mhz := _cpuinfo().get("cpu MHz"):
        found["clock_mhz"] = round(float(mhz))
    try:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        found["governor"] = path.read_text().strip()
    except OSError:
        pass
    return found


RUNTIMES = {"torch-cpu": TorchCpu}
