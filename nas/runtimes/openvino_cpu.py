"""OpenVINO on the CPU: layers and networks compiled from ONNX, inputs bound to outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nas.errors import PreparationError
from nas.lowering.onnx import PACKAGES, VERSION, lower, lower_ahead
from nas.runtimes import Program, Runtime, timed
from nas.runtimes.host import describe_host, host_conditions
from nas.space.layer import Layer
from nas.versions import installed


class OpenVinoCpu(Runtime):
    """OpenVINO with its CPU plugin, one inference at a time.

    Everything runs in float32: by default the plugin takes bfloat16 where the processor has it.
    """

    lowering = VERSION
    # Each request has memory of its own, cold when layers run in turn: their sums were 1.4-2.0 of
    # networks of swin:micro, stacked rows 0.82-0.92. Error on the network left out of the fit, ten
    # networks each (Xeon, processor time, busy machine), network / isolated / stacked: vit:micro
    # 2.2 / 2.9 / 1.7 %, swin:micro 6.2 / 3.5 / 1.8 %.
    context = "stacked"
    packages = ("openvino", *PACKAGES)
    extra = "openvino"

    def __init__(self, device: str, *, threads: int = 1, batch: int = 1) -> None:
        super().__init__(device)
        self.threads, self.batch = threads, batch
        self._core: Any = None

    def describe(self) -> dict[str, Any]:
        """The host, OpenVINO's version, and how it runs."""
        self.require()
        return {
            "name": self.device,
            **describe_host(self.device, self.threads),
            "runtime": "openvino",
            "runtime_version": installed("openvino"),
            "threads": self.threads,
            "dtype": "float32",
            "batch": self.batch,
        }

    def conditions(self) -> dict[str, Any]:
        """Clock, governor and load of the host."""
        return host_conditions()

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Export layers in as many processes as there are cores."""
        return lower_ahead(layers, self.batch, os.cpu_count() or 1)

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Compiled requests in a row, one for each layer or one for all."""
        self.require()
        return timed(self._wire(layers, fused))

    def _wire(self, layers: Sequence[Layer], fused: bool) -> list[Callable[[], Any]]:
        """Requests whose inputs are the outputs of those before them, in memory bound once."""
        import openvino

        from nas.network.standalone import inputs, slots

        state: list[Any] = [
            None if tensor is None else openvino.Tensor(tensor.numpy())
            for tensor in slots(inputs(layers[0], self.batch))
        ]
        calls = []
        for group in [layers] if fused else [[layer] for layer in layers]:
            piece = lower(group, self.batch)
            request = self._compile(piece.model, group[0])
            for slot in piece.takes:
                request.set_tensor(f"in{slot}", state[slot])
            written = [request.get_output_tensor(i) for i in range(len(piece.writes))]
            state = piece.after(state, written)
            calls.append(_call(request))
        return calls

    def _compile(self, model: bytes, first: Layer) -> Any:
        import openvino

        if self._core is None:
            self._core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
        }
        try:
            read = self._core.read_model(model, b"")
            return self._core.compile_model(read, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            line = str(error).strip().splitlines()[-1][:200]
            raise PreparationError(f"{self.device} cannot compile {first.key}: {line}") from None


def _call(request: Any) -> Callable[[], Any]:
    # In this thread: an asynchronous start costs 50 microseconds more. Results stay where they are.
    return lambda: request.infer(share_outputs=True)


RUNTIMES = {"openvino-cpu": OpenVinoCpu}
