"""LiteRT on the CPU in int8: models of `nas.lowering.tflite`, interpreted with XNNPACK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nas.errors import PreparationError
from nas.lowering.tflite import LOWERING
from nas.runtimes import Program, Runtime, timed
from nas.runtimes.host import describe_host, host_conditions
from nas.space.layer import Layer
from nas.versions import installed


class LiteRtCpu(Runtime):
    """LiteRT with XNNPACK, all in int8, whatever the precision of a block.

    Layers are models of their own, run one after the other; each reads its own random input.
    """

    lowering = LOWERING
    packages = ("ai-edge-litert",)
    extra = "litert"

    def __init__(self, device: str, *, threads: int = 1) -> None:
        super().__init__(device)
        self.threads = threads

    def describe(self) -> dict[str, Any]:
        """The host, LiteRT's version, and how it runs."""
        self.require()
        return {
            "name": self.device,
            **describe_host(self.device, self.threads),
            "runtime": "litert",
            "runtime_version": installed("ai-edge-litert"),
            "threads": self.threads,
            "dtype": "int8",
            "batch": 1,
        }

    def conditions(self) -> dict[str, Any]:
        """Clock, governor and load of the host."""
        return host_conditions()

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Lower layers to int8, one by one or as one model, each with an interpreter of its own."""
        pieces = [tuple(layers)] if fused else [(layer,) for layer in layers]
        return timed([self._call(piece) for piece in pieces])

    def _call(self, layers: tuple[Layer, ...]) -> Callable[[], None]:
        import numpy as np
        from ai_edge_litert.interpreter import (  # type: ignore[import-untyped,unused-ignore]
            Interpreter,
        )

        from nas.lowering.tflite.lowering import lower

        model = lower(layers)
        if model.dynamic:
            raise PreparationError(
                f"{', '.join(model.dynamic)} of pruned windows have no lowering to LiteRT here"
            )
        interpreter = Interpreter(model_content=model.data, num_threads=self.threads)
        interpreter.allocate_tensors()
        rng = np.random.default_rng(0)
        for detail in interpreter.get_input_details():
            values = rng.integers(-128, 128, detail["shape"], dtype=np.int8)
            interpreter.set_tensor(detail["index"], values)
        invoke: Callable[[], None] = interpreter.invoke
        return invoke


RUNTIMES = {"litert-cpu": LiteRtCpu}
