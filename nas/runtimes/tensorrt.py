"""TensorRT on an NVIDIA GPU: layers and networks as engines built from ONNX.

Not yet run on a GPU: tested against a stand-in of the package only (tests/test_torch_cuda.py).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from nas.errors import PreparationError, VitnasError
from nas.lowering.onnx import PACKAGES, VERSION, lower, lower_ahead
from nas.runtimes import Program, Runtime, check_option
from nas.runtimes.torch_cuda import Call, Clock, Events, gpu_conditions, in_passes, require_cuda
from nas.space.layer import Layer
from nas.versions import installed

WORKSPACE = 2**30  # bytes that a kernel may take beside its inputs and outputs


class TensorRt(Runtime):
    """Engines that TensorRT builds, run one after the other in one stream, buffers held by torch.

    TF32 is on, as by default. With `dtype=float16` it may choose float16 kernels where they are
    faster (a flag that TensorRT 11 no longer has). int8 layers fail: it wants activations without a
    zero point.
    """

    kind = "gpu"
    single = False  # a sample is the mean of passes
    lowering = VERSION
    packages = ("tensorrt", *PACKAGES)
    extra = "tensorrt"

    def __init__(self, device: str, *, dtype: str = "float32", batch: int = 1) -> None:
        super().__init__(device)
        self.dtype, self.batch = check_option("dtype", dtype, ("float32", "float16")), batch

    def clock(self) -> Clock:
        """What measures times; tests bring another one."""
        return Events()

    def describe(self) -> dict[str, Any]:
        """The GPU, the versions of TensorRT and CUDA, and the data type."""
        self.require()
        release = installed("tensorrt")
        if self.dtype == "float16" and int(release.partition(".")[0]) > 10:
            raise VitnasError(
                f"TensorRT {release} does not choose float16 by itself",
                "pip install 'tensorrt<11', or use float32",
            )
        require_cuda(self.device)
        import torch

        return {
            "name": self.device,
            "processor": torch.cuda.get_device_name(),
            "machine": platform.machine(),
            "runtime": "tensorrt",
            "runtime_version": f"{release}, CUDA {torch.version.cuda}",
            "threads": 1,
            "dtype": self.dtype,
            "batch": self.batch,
        }

    def conditions(self) -> dict[str, Any]:
        """Clocks, temperature and power of the GPU."""
        return gpu_conditions()

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Export layers in as many processes as there are cores."""
        return lower_ahead(layers, self.batch, os.cpu_count() or 1)

    def __enter__(self) -> Self:
        import torch

        # In the default stream TensorRT would synchronise around each engine.
        make: Callable[[], Any] = torch.cuda.Stream
        stream = make() if torch.cuda.is_available() else None
        self._stream = ExitStack()
        self._stream.enter_context(torch.cuda.stream(stream))
        torch.manual_seed(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Engines in a row, one for each layer or one for all, repeated until a sample is long."""
        self.require()
        clock = self.clock()
        calls = self._wire(layers, fused, clock.device)
        return in_passes(clock, lambda: calls, captured=False)

    def _wire(self, layers: Sequence[Layer], fused: bool, device: str) -> list[Call]:
        """Engines whose inputs are the outputs of those before them, in memory bound once."""
        import tensorrt
        import torch

        from nas.network.standalone import inputs, slots

        state: list[Any] = slots(inputs(layers[0], self.batch, device=device))
        calls: list[Call] = []
        for group in [layers] if fused else [[layer] for layer in layers]:
            piece = lower(group, self.batch)
            engine = self._engine(piece.model, group[0])
            context = engine and engine.create_execution_context()
            if context is None:
                raise PreparationError(f"{self.device} cannot build an engine for {group[0].key}")
            given = {f"in{slot}": state[slot] for slot in piece.takes}
            written = []
            for i in range(engine.num_io_tensors):
                name = engine.get_tensor_name(i)
                if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT:
                    tensor = given[name]
                else:
                    kind = getattr(torch, _TORCH[engine.get_tensor_dtype(name).name])
                    shape = tuple(engine.get_tensor_shape(name))
                    tensor = torch.empty(shape, dtype=kind, device=device)
                    written.append(tensor)
                context.set_tensor_address(name, tensor.data_ptr())
            calls.append(partial(_launch, context, engine, (given, written)))
            state = piece.after(state, written)
        return calls

    def _engine(self, model: bytes, first: Layer) -> Any:
        """The engine of an ONNX model; None where TensorRT cannot build one."""
        import tensorrt

        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(0)
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse(model):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise PreparationError(f"{self.device} cannot read {first.key}: {_line(errors)}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE)
        if self.dtype == "float16":
            config.set_flag(tensorrt.BuilderFlag.FP16)
        plan = builder.build_serialized_network(network, config)
        return plan and tensorrt.Runtime(logger).deserialize_cuda_engine(plan)


def _launch(context: Any, engine: Any, tensors: Any) -> None:
    # `engine` and `tensors` are what the context points to: they live as long as this call.
    import torch

    stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
    context.execute_async_v3(stream)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


_TORCH = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32"}

RUNTIMES = {"tensorrt": TensorRt}
