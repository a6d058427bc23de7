"""torch.compile on the CPU: each piece exported, then compiled by inductor to C++.

A piece takes 1 to 10 seconds to compile, the very first up to 40 (headers are precompiled): use it
for small spaces or single architectures. On an Intel Xeon with AMX (1 thread, torch 2.13) blocks of
vit:micro and swin:micro took 1.03-1.12 of their eager time: it does not pay there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nas.errors import PreparationError, VitnasError
from nas.runtimes import Program, Sample
from nas.runtimes.torch_cpu import TorchCpu
from nas.space.layer import Layer

if TYPE_CHECKING:
    from nas.network.standalone import Steps

# A piece: the state before it to the state after it.
Compiled = Callable[..., tuple[Any, ...]]


class TorchCompile(TorchCpu):
    """Inductor on the CPU, in a process like that of `torch-cpu`; needs a C++ compiler.

    A network as one piece is compiled as one, across its layers; rows are compiled layer by layer.
    """

    def describe(self) -> dict[str, Any]:
        """The host, torch's version, how it runs, and the C++ compiler."""
        return {
            **super().describe(),
            "runtime": "torch-inductor",
            "compiler": _compiler(self.device),
        }

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Compile layers, one by one or as one piece; the first call is over when this returns."""
        import torch

        from nas.layers import attention
        from nas.network.standalone import build, inputs

        _compiler(self.device)
        dtype = getattr(torch, self.dtype)
        state = inputs(layers[0], self.batch, dtype=dtype)
        try:
            with torch.no_grad(), _quiet():
                kernel = getattr(attention, self.kernel) if self.kernel else None
                pieces = _compile(build(layers, dtype=dtype, kernel=kernel), state, fused)
        except Exception as error:  # inductor's have no common base
            message = (str(error).splitlines() or [type(error).__name__])[0]
            raise PreparationError(
                f"{self.device} cannot compile {layers[0].key}: {message}"
            ) from None

        @torch.no_grad()
        def program() -> list[Sample]:
            samples = []
            now = state
            wall, cpu = time.perf_counter_ns(), time.process_time_ns()
            for piece in pieces:
                now = piece(*now)
                after, cpu_after = time.perf_counter_ns(), time.process_time_ns()
                samples.append(Sample((after - wall) / 1e6, (cpu_after - cpu) / 1e6))
                wall, cpu = after, cpu_after
            return samples

        return program


def _compile(steps: Steps, state: tuple[Any, ...], fused: bool) -> list[Compiled]:
    """The compiled pieces; each was run once, on the state that the ones before it leave."""
    pieces = []
    for group in [steps] if fused else [[step] for step in steps]:
        pieces.append(_compile_piece(group, state))
        state = pieces[-1](*state)
    return pieces


def _compile_piece(steps: Steps, state: tuple[Any, ...]) -> Compiled:
    import torch
    from torch import nn

    from nas.network.standalone import run

    class Piece(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(module for module, _ in steps)

        def forward(self, *state: Any) -> tuple[Any, ...]:
            return run(steps, state)

    run(steps, state)  # packs int8 weights, which the export then sees as constants
    # An exported module has code of its own: layers as they are share one `forward` with all others
    # of their class, of which torch.compile keeps eight versions at most.
    exported = torch.export.export(Piece(), state).module()
    # That code runs with these shapes only: guards would be 20-40 microseconds for nothing.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    compiled: Compiled = torch.compile(exported, fullgraph=True, dynamic=False, options=options)
    return compiled


def _compiler(device: str) -> str:
    """The C++ compiler and its version, on one line."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise VitnasError(f"{device} needs the C++ compiler {name}", "apt install g++, or set CXX")
    answer = subprocess.run([path, "--version"], capture_output=True, text=True)
    return (answer.stdout.splitlines() or [name])[0].strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence compilers, which log and warn about their own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


RUNTIMES = {"torch-compile": TorchCompile}
