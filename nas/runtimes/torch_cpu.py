"""torch on the CPU, eager: layers run one after the other as they are written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from nas.errors import PreparationError
from nas.runtimes import Program, Runtime, Sample, check_option
from nas.runtimes.host import describe_host, host_conditions, quiet_process
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
        """The host, torch's version, and how it runs."""
        return {
            "name": self.device,
            **describe_host(self.device, self.threads),
            "runtime": "torch-eager",
            "runtime_version": installed("torch"),
            "threads": self.threads,
            "dtype": self.dtype,
            "batch": self.batch,
        }

    def conditions(self) -> dict[str, Any]:
        """Clock, governor and load of the host."""
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
        """Modules in a row, the clock read after each layer or after the last only."""
        import torch

        from nas.layers import attention
        from nas.network.standalone import build, inputs

        dtype = getattr(torch, self.dtype)
        kernel = getattr(attention, self.kernel) if self.kernel else None
        steps = build(layers, dtype=dtype, kernel=kernel)
        state = inputs(layers[0], self.batch, dtype=dtype)

        @torch.inference_mode()
        def program() -> list[Sample]:
            samples = []
            now = state  # layers may write into it: it holds random numbers, whatever they are
            wall, cpu = time.perf_counter_ns(), time.process_time_ns()
            for i, (module, sizes) in enumerate(steps):
                now = module.run(now, **sizes)
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


RUNTIMES = {"torch-cpu": TorchCpu}
