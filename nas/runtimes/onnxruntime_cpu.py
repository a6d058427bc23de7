"""ONNX Runtime on the CPU: layers and networks as sessions with bound inputs and outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from nas.errors import PreparationError
from nas.lowering.onnx import PACKAGES, VERSION, OnnxPiece, lower, lower_ahead
from nas.runtimes import Program, Runtime, timed
from nas.runtimes.host import describe_host, host_conditions
from nas.space.layer import Layer
from nas.versions import installed


class OnnxRuntimeCpu(Runtime):
    """ONNX Runtime with its CPU kernels.

    Denormal numbers are flushed to zero, and all sessions share one arena. Deploy with the session
    option `session.set_denormal_as_zero` to have the same.
    """

    lowering = VERSION
    packages = ("onnxruntime", *PACKAGES)
    extra = "onnx"

    def __init__(self, device: str, *, threads: int = 1, batch: int = 1) -> None:
        super().__init__(device)
        self.threads, self.batch = threads, batch
        self._settings: Any = None

    def describe(self) -> dict[str, Any]:
        """The host, ONNX Runtime's version, and how it runs."""
        self.require()
        return {
            "name": self.device,
            **describe_host(self.device, self.threads),
            "runtime": "onnxruntime",
            "runtime_version": installed("onnxruntime"),
            "threads": self.threads,
            "dtype": "float32",
            "batch": self.batch,
        }

    def conditions(self) -> dict[str, Any]:
        """Clock, governor and load of the host."""
        return host_conditions()

    def __enter__(self) -> Self:
        import torch

        # Sessions do so only once in a process, in the thread of the first, and never undo it.
        torch.set_flush_denormal(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import torch

        torch.set_flush_denormal(False)

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Export layers in as many processes as there are cores."""
        return lower_ahead(layers, self.batch, os.cpu_count() or 1)

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Sessions in a row, one for each layer or one for all, in memory that is bound once."""
        steps = [lower(layers, self.batch)] if fused else [lower([x], self.batch) for x in layers]
        return timed(self._wire(steps, layers[0]))

    def _wire(self, steps: Sequence[OnnxPiece], first: Layer) -> list[Callable[[], None]]:
        """Sessions whose inputs are the outputs of those before them, in memory bound once."""
        import onnxruntime as ort

        from nas.network.standalone import inputs, slots

        state: list[Any] = [
            None if tensor is None else ort.OrtValue.ortvalue_from_numpy(tensor.numpy())
            for tensor in slots(inputs(first, self.batch))
        ]
        calls = []
        for piece in steps:
            try:
                session = ort.InferenceSession(
                    piece.model, self._options(), ["CPUExecutionProvider"]
                )
            except Exception as error:  # its own, and no base class of them
                why = str(error).strip().splitlines()[0][:200]
                raise PreparationError(f"ONNX Runtime refuses {first.key}: {why}") from None
            binding = session.io_binding()
            for slot in piece.takes:
                binding.bind_ortvalue_input(f"in{slot}", state[slot])
            written = []
            for output in session.get_outputs():
                kind = _NUMPY[output.type]
                value = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, kind, "cpu")
                binding.bind_ortvalue_output(output.name, value)
                written.append(value)
            state = piece.after(state, written)
            calls.append(_call(session, binding))
        return calls

    def _options(self) -> Any:
        import onnxruntime as ort

        if self._settings is None:
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                       ort.OrtMemType.DEFAULT)  # fmt: skip
            ort.create_and_register_allocator(memory, None)
            options = ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
            self._settings = options
        return self._settings


def _call(session: Any, binding: Any) -> Callable[[], None]:
    return lambda: session.run_with_iobinding(binding)


_NUMPY = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}

RUNTIMES = {"onnxruntime-cpu": OnnxRuntimeCpu}
