"""GPU runtimes on a clock of the CPU and a stand-in for TensorRT: all but the devices themselves.

Tests that need a GPU say so and are skipped without one.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from random import Random
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from nas.errors import PreparationError, VitnasError
from nas.families import load_space
from nas.network.standalone import build, inputs, run
from nas.runtimes import load_runtime, tensorrt, torch_cuda
from nas.tasks.classification import Classification

SPACE = load_space("swin:debug", Classification(3)).restrict("precision", "fp32")
LAYERS = SPACE.layers(SPACE.largest)
PRUNED = next(
    layers
    for layers in (SPACE.layers(SPACE.draw(Random(seed))) for seed in range(50))
    if layers[1].module.__name__ == "WindowScore"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class CpuMark:
    """A mark with the time at which it was recorded."""

    def __init__(self, clock: CpuClock) -> None:
        self.clock = clock

    def record(self) -> None:
        self.at = self.clock.now()

    def elapsed_time(self, end: CpuMark) -> float:
        return end.at - self.at


class CpuClock:
    """Milliseconds of the process, or of a script that says how much each reading adds."""

    device = "cpu"

    def __init__(self, now=lambda: time.perf_counter() * 1e3) -> None:
        self.now, self.captures, self.waits = now, 0, 0

    def mark(self) -> CpuMark:
        return CpuMark(self)

    def synchronize(self) -> None:
        self.waits += 1

    def capture(self, work):
        self.captures += 1
        work()  # a capture runs the Python code once
        return work


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch):
    monkeypatch.setattr(torch_cuda, "WARM_UP_S", 0.0)


@pytest.fixture(params=["torch-cuda", "torch-cuda-graph"])
def runtime(request, monkeypatch):
    runtime = load_runtime(request.param)
    clock = CpuClock()
    monkeypatch.setattr(runtime, "clock", lambda: clock)
    return runtime


def test_a_network_as_a_whole_and_by_layer(runtime):
    with runtime:
        whole, apart = (runtime.prepare(LAYERS, fused) for fused in (True, False))
        for _ in range(3):
            (total,), rows = whole(), apart()
            assert total.wall > 0
            assert len(rows) == len(LAYERS)
            assert all(row.wall > 0 and row.cpu == 0 for row in rows)


def test_only_the_graph_runtime_captures_once_for_each_piece(runtime):
    clock = runtime.clock()
    with runtime:
        program = runtime.prepare(LAYERS[:2], fused=False)
        program(), program()
    assert clock.captures == (runtime.device == "torch-cuda-graph")
    assert clock.waits >= 3


def test_samples_are_the_means_of_each_call_over_passes():
    """Calls that move the clock by 1 and 3 ms, or by a multiple of that."""
    now, ran = [0.0], []
    clock = CpuClock(lambda: now[0])

    def wire():
        inputs_of_pass = object()

        def call(ms):
            ran.append(inputs_of_pass)
            now[0] += ms * scale[0]

        return [lambda: call(1.0), lambda: call(3.0)]

    scale = [0.01]
    program = torch_cuda.in_passes(clock, wire, captured=False)
    ran.clear()
    scale[0] = 1.0
    first, second = program()
    assert (first.wall, second.wall) == (pytest.approx(1.0), pytest.approx(3.0))
    passes = round(torch_cuda.SAMPLE_MS / 0.04)  # a pass took 0.04 ms when it was prepared
    assert len(ran) == 2 * 2 * passes  # two calls, run twice: the first to warm up
    assert len(set(ran)) == passes  # each pass has inputs of its own
    scale[0] = 2.0
    assert program()[0].wall == pytest.approx(2.0)


@pytest.mark.parametrize(("pass_ms", "passes"), [(1e-6, 32), (0.25, 4), (30.0, 1)])
def test_short_pieces_are_repeated_within_limits(pass_ms, passes):
    now, wired = [0.0], []

    def wire():
        wired.append(1)
        return [lambda: now.__setitem__(0, now[0] + pass_ms)]

    program = torch_cuda.in_passes(CpuClock(lambda: now[0]), wire, captured=True)
    assert len(wired) == 1 + passes
    assert program()[0].wall == pytest.approx(pass_ms)


def test_layers_run_on_the_state_that_the_one_before_left():
    steps, state = build(LAYERS), inputs(LAYERS[0], 1)
    with torch.inference_mode():
        expected = run(steps, state)[0]
        calls = torch_cuda._one_by_one(steps, state)
        for _ in range(2):  # the second pass starts anew
            for call in calls:
                call()
            now = dict(zip(call.func.__code__.co_freevars, call.func.__closure__))["now"]
            torch.testing.assert_close(now.cell_contents[0], expected)


def test_int8_layers_fail_with_a_reason(runtime):
    space = load_space("swin:debug", Classification(3)).restrict("precision", "int8")
    with runtime, pytest.raises(PreparationError, match="int8"):
        runtime.prepare(space.layers(space.largest), fused=True)


def test_what_torch_cannot_run_is_a_preparation_error(runtime, monkeypatch):
    def capture(work):
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    monkeypatch.setattr(runtime.clock(), "capture", capture)
    with runtime:
        if runtime.device == "torch-cuda":
            assert runtime.prepare(LAYERS[:1], fused=True)()
            return
        with pytest.raises(PreparationError, match="not permitted when stream") as caught:
            runtime.prepare(LAYERS[:1], fused=True)
    assert str(caught.value).isprintable()


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(torch_cuda, "version", lambda _: "2.13.0+cpu")
    with pytest.raises(VitnasError, match="CUDA build of torch"):
        torch_cuda.require_cuda("torch-cuda")
    monkeypatch.setattr(torch_cuda, "version", lambda _: "2.13.0+cu130")
    monkeypatch.setattr(torch_cuda, "_has_driver", lambda: False)
    with pytest.raises(VitnasError, match="NVIDIA driver"):
        torch_cuda.require_cuda("torch-cuda")
    monkeypatch.setattr(torch_cuda, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VitnasError, match="no GPU"):
        torch_cuda.require_cuda("torch-cuda")


def test_conditions_are_what_nvidia_smi_says(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "$1" | grep -q clocks.sm || exit 1\n'
        "echo '1755, 2619, 38, 121.5, [N/A], 97, 580.95.05'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert torch_cuda.gpu_conditions() == {
        "sm_clock_mhz": 1755, "memory_clock_mhz": 2619, "temperature_c": 38, "power_w": 121.5,
        "power_limit_w": "[N/A]", "utilization_percent": 97, "driver": "580.95.05",
    }  # fmt: skip
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2; exit 9\n")
    assert torch_cuda.gpu_conditions() == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert torch_cuda.gpu_conditions() == {}


@needs_gpu
@pytest.mark.parametrize("name", ["torch-cuda", "torch-cuda-graph"])
def test_layers_add_up_to_the_network_on_a_gpu(name):
    with load_runtime(name) as runtime:
        whole, apart = (runtime.prepare(LAYERS, fused) for fused in (True, False))
        totals, sums = zip(*((whole()[0].wall, sum(s.wall for s in apart())) for _ in range(20)))
    assert 0.5 < np.median(sums) / np.median(totals) < 2


@needs_gpu
def test_a_graph_is_no_slower_than_its_launches():
    medians = []
    for name in ("torch-cuda", "torch-cuda-graph"):
        with load_runtime(name) as runtime:
            program = runtime.prepare(LAYERS, fused=True)
            medians.append(np.median([program()[0].wall for _ in range(20)]))
    assert medians[1] < medians[0] * 1.1


# --- TensorRT, with ONNX Runtime behind the names of its package ---


def _array(address: int, shape, kind) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    buffer = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(buffer, kind).reshape(shape)


KINDS = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}


class Engine:
    """An engine that runs its ONNX model on memory at the addresses it was given."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.taken = {x.name: x for x in self.session.get_inputs()}
        self.given = {x.name: x for x in self.session.get_outputs()}
        self.all = {**self.taken, **self.given}
        self.num_io_tensors = len(self.all)
        self.addresses: dict[str, int] = {}

    def get_tensor_name(self, i: int) -> str:
        return list(self.all)[i]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.taken else "out"

    def get_tensor_dtype(self, name: str):
        return SimpleNamespace(name=KINDS[self.all[name].type])

    def get_tensor_shape(self, name: str):
        return self.all[name].shape

    def create_execution_context(self) -> Engine:
        return self

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def _memory(self, name: str) -> np.ndarray:
        kind = "float32" if KINDS[self.all[name].type] == "FLOAT" else "int64"
        return _array(self.addresses[name], self.all[name].shape, kind)

    def execute_async_v3(self, stream: int) -> None:
        results = self.session.run(None, {name: self._memory(name) for name in self.taken})
        for name, result in zip(self.given, results):
            self._memory(name)[:] = result


class Package(ModuleType):
    """As much of `tensorrt` as is used; it keeps what it was asked for."""

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(FP16="fp16")

    def __init__(self, refuses: bytes = b"") -> None:
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)  # torch looks for it
        self.flags: list[str] = []
        self.engines: list[Engine] = []
        self.refuses = refuses

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None: ...

    def Builder(self, logger):
        config = SimpleNamespace(
            set_memory_pool_limit=lambda pool, limit: None, set_flag=self.flags.append
        )
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(model=b""),
            create_builder_config=lambda: config,
            build_serialized_network=lambda network, config: network.model,
        )

    def OnnxParser(self, network, logger):
        def parse(model: bytes) -> bool:
            network.model = model
            return not (self.refuses and self.refuses in model)

        return SimpleNamespace(parse=parse, num_errors=1, get_error=lambda i: "no kernel\nfor it")

    def Runtime(self, logger):
        def deserialize(model: bytes) -> Engine:
            self.engines.append(Engine(model))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture
def package(monkeypatch):
    pytest.importorskip("onnxscript", reason="layers are lowered by ONNX's exporter")
    pytest.importorskip("onnxruntime", reason="stands behind the engines")
    package = Package()
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    monkeypatch.setattr(tensorrt.TensorRt, "require", lambda self: None)
    monkeypatch.setattr(tensorrt.TensorRt, "clock", lambda self: CpuClock())
    return package


def test_engines_pass_on_what_torch_would(package):
    layers = PRUNED[:3]  # the second scores windows, the third takes the best
    runtime = load_runtime("tensorrt")
    with runtime:
        program = runtime.prepare(layers, fused=False)
        samples = program()
    assert len(samples) == len(layers)
    assert all(sample.wall > 0 for sample in samples)
    first, last = package.engines[0], package.engines[-1]
    image = torch.from_numpy(first._memory("in0").copy())
    with torch.inference_mode():
        expected = run(build(layers), (image,))[0]
    got = torch.from_numpy(last._memory("out0").copy())
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_network_is_one_engine_and_float16_a_flag(package):
    with load_runtime("tensorrt,dtype=float16") as runtime:
        assert len(runtime.prepare(LAYERS[:2], fused=True)()) == 1
    assert len(package.engines) == 1
    assert package.flags == ["fp16"]


def test_a_model_that_tensorrt_refuses_is_a_preparation_error(package):
    package.refuses = b"Conv"
    with load_runtime("tensorrt") as runtime, pytest.raises(PreparationError) as caught:
        runtime.prepare(LAYERS[:1], fused=True)
    assert "no kernel for it" in str(caught.value)
    assert str(caught.value).isprintable()


def test_tensorrt_without_its_package_says_so():
    code = "from nas.runtimes import load_runtime; load_runtime('tensorrt').describe()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if answer.returncode == 0:
        pytest.skip("TensorRT is installed")
    assert "pip install 'vitnas[tensorrt]'" in answer.stderr
