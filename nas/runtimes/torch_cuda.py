"""torch on an NVIDIA GPU: eager, and as replay of a captured CUDA graph.

At batch 1 most networks here are bound by launching their kernels: eager shows that, a graph shows
what the kernels take. Hence two runtimes, not two options: their tables have nothing in common.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, Self

from nas.errors import PreparationError, VitnasError
from nas.runtimes import Program, Runtime, Sample, check_option
from nas.space.layer import Layer
from nas.versions import installed

if TYPE_CHECKING:
    from nas.network.standalone import Steps

DTYPES = ("float32", "float16", "bfloat16")
WARM_UP_S = 0.1  # for each piece: kernels are loaded and chosen, clocks rise
SAMPLE_MS = 1.0  # passes are repeated until a sample takes as long
MOST_PASSES = 32

Call = Callable[[], Any]  # launches one piece


class Mark(Protocol):
    """A point in the stream of the device; `torch.cuda.Event` is one."""

    def record(self) -> None:
        """Put the mark behind everything that was launched so far."""

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from this mark to `end`."""


class Clock(Protocol):
    """What measuring needs of a device; tests bring one for the CPU."""

    device: str

    def mark(self) -> Mark:
        """A new mark, not yet recorded."""

    def synchronize(self) -> None:
        """Wait until everything that was launched is done."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work`, marks included; what is returned runs it again without Python."""


class Events:
    """CUDA events. External ones become nodes of a captured graph and can be read after it ran."""

    device = "cuda"

    def __init__(self, external: bool = False) -> None:
        self.external = external

    def mark(self) -> Mark:
        """A CUDA event that takes the time."""
        import torch

        make: Callable[..., Mark] = torch.cuda.Event
        return make(enable_timing=True, external=self.external)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        import torch

        torch.cuda.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work as a CUDA graph; the result replays it."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


class TorchCuda(Runtime):
    """torch eager on the GPU that CUDA_VISIBLE_DEVICES puts first.

    A sample is the mean over as many passes as take a millisecond, back to back, each with an
    input of its own; weights and maps are as warm in the L2 cache as the network itself leaves
    them. Clocks are left alone: what they were stands in the manifest. TF32 is as torch has it by
    default (`float32_matmul_precision`). int8 layers have no int8 kernel here and fail.
    """

    kind = "gpu"
    single = False  # a sample is the mean of passes
    captured = False

    def __init__(self, device: str, *, dtype: str = "float32", batch: int = 1) -> None:
        super().__init__(device)
        self.dtype, self.batch = check_option("dtype", dtype, DTYPES), batch

    def clock(self) -> Clock:
        """What measures times; tests bring another one."""
        return Events(external=self.captured)

    def describe(self) -> dict[str, Any]:
        """The GPU, the versions of torch and CUDA, data type and precision of products."""
        require_cuda(self.device)
        import torch

        return {
            "name": self.device,
            "processor": torch.cuda.get_device_name(),
            "machine": platform.machine(),
            "runtime": "torch-cuda-graph" if self.captured else "torch-cuda",
            "runtime_version": f"{installed('torch')}, CUDA {torch.version.cuda}",
            "threads": 1,
            "dtype": self.dtype,
            "batch": self.batch,
            "matmul_precision": torch.get_float32_matmul_precision(),
        }

    def conditions(self) -> dict[str, Any]:
        """Clocks, temperature and power of the GPU."""
        return gpu_conditions()

    def __enter__(self) -> Self:
        import torch

        torch.manual_seed(0)
        return self

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Modules in a row on the GPU, in passes that a sample is the mean of."""
        import torch

        from nas.network.standalone import build, inputs, run

        for layer in layers:
            if layer.sizes.get("bits") == 8:
                raise PreparationError(
                    f"{self.device} has no int8 kernels for {layer.key}",
                    "use onnxruntime-cpu for int8",
                )
        clock, dtype = self.clock(), getattr(torch, self.dtype)
        try:
            steps = build(layers, dtype, clock.device)

            def wire() -> list[Call]:
                state = inputs(layers[0], self.batch, dtype, clock.device)
                return [lambda: run(steps, state)] if fused else _one_by_one(steps, state)

            return in_passes(clock, wire, self.captured)
        except (RuntimeError, TypeError, ValueError) as error:
            message = (str(error).splitlines() or [type(error).__name__])[0]
            raise PreparationError(f"{self.device} cannot run {layers[0].key}: {message}") from None


class TorchCudaGraph(TorchCuda):
    """torch on the GPU, captured once as a CUDA graph and replayed: launches cost next to nothing.

    The clock is read by event nodes inside the graph, between layers or around each pass.
    """

    captured = True


def _one_by_one(steps: Steps, state: tuple[Any, ...]) -> list[Call]:
    """A call for each layer, on the state that the one before it left."""
    now = state

    def call(module: Any, sizes: dict[str, int], first: bool) -> None:
        nonlocal now
        now = module.run(state if first else now, **sizes)

    return [partial(call, module, sizes, first=i == 0) for i, (module, sizes) in enumerate(steps)]


def in_passes(clock: Clock, wire: Callable[[], Sequence[Call]], captured: bool) -> Program:
    """A program whose samples are the times of the calls of one pass, in their order.

    `wire` gives the calls of a pass, with an input of its own each time it is asked. Passes are
    repeated until a sample takes a millisecond; a mark stands before, between and after the calls.
    """
    import torch

    with torch.inference_mode():
        pass_ms = _warm_up(clock, wire())
        passes = [wire() for _ in range(max(1, min(MOST_PASSES, round(SAMPLE_MS / pass_ms))))]
        marks = [[clock.mark() for _ in range(len(calls) + 1)] for calls in passes]

        def work() -> None:
            for calls, own in zip(passes, marks):
                own[0].record()
                for call, mark in zip(calls, own[1:]):
                    call()
                    mark.record()

        launch = clock.capture(work) if captured else work
        clock.synchronize()

    @torch.inference_mode()
    def program() -> list[Sample]:
        launch()  # after other programs: this one's weights are elsewhere, clocks have dropped
        launch()
        clock.synchronize()
        spent = [[a.elapsed_time(b) for a, b in pairwise(own)] for own in marks]
        return [Sample(sum(column) / len(column), 0.0) for column in zip(*spent)]

    return program


def _warm_up(clock: Clock, calls: Sequence[Call]) -> float:
    """Milliseconds of a pass after `WARM_UP_S` of them."""
    start, end = clock.mark(), clock.mark()
    begun = time.perf_counter()
    while True:
        start.record()
        for call in calls:
            call()
        end.record()
        clock.synchronize()
        if time.perf_counter() - begun > WARM_UP_S:
            return max(start.elapsed_time(end), 1e-6)


def require_cuda(device: str) -> None:
    """Raise `VitnasError` with the fix if torch cannot use a GPU; imports torch only if it may."""
    release = version("torch")
    if release.endswith("+cpu"):
        raise VitnasError(
            f"{device} needs a CUDA build of torch, this is {release}",
            "see https://pytorch.org/get-started/locally",
        )
    if not _has_driver():
        raise VitnasError(f"{device} finds no NVIDIA driver", "install it: nvidia-smi must run")
    import torch

    if not torch.cuda.is_available():
        raise VitnasError(f"{device} finds no GPU", "check that nvidia-smi lists one")


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


# What nvidia-smi calls it, and what the manifest does.
_QUERY = {
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "utilization.gpu": "utilization_percent",
    "driver_version": "driver",
}


def gpu_conditions() -> dict[str, Any]:
    """Clocks, temperature and power of the GPU, as far as nvidia-smi tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [program, *query, *_device_id()], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if answer.returncode or not answer.stdout.strip():
        return {}
    values = answer.stdout.splitlines()[0].split(", ")
    return {key: _number(value) for key, value in zip(_QUERY.values(), values)}


def _device_id() -> list[str]:
    """Arguments that name torch's GPU to nvidia-smi, which ignores CUDA_VISIBLE_DEVICES."""
    import torch

    if not torch.cuda.is_available():
        return []
    return ["-i", f"GPU-{torch.cuda.get_device_properties().uuid}"]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip()


RUNTIMES = {"torch-cuda": TorchCuda, "torch-cuda-graph": TorchCudaGraph}
