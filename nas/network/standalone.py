"""Layers as torch modules that can be timed or lowered: built, filled, deployed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas.layers.attention import Kernel, fastest_in_windows
from nas.layers.elastic import ElasticModule
from nas.network.network import deploy
from nas.space.layer import Layer

Steps = list[tuple[ElasticModule, dict[str, int]]]


def build(
    layers: Sequence[Layer],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    kernel: Kernel | None = None,
) -> Steps:
    """Deployed modules with weights that need no drawing; the time does not depend on them.

    Layers of one path and size share a module, as they do in a network of several phases.
    `kernel` is that of attention in windows, by default the faster one on this CPU.
    """
    kernel = kernel or fastest_in_windows()
    modules: dict[Any, ElasticModule] = {}
    for layer in layers:
        if (place := (layer.path, layer.module, layer.args)) not in modules:
            module = _filled(layer)
            deploy(module, kernel)
            modules[place] = module.to(device, dtype)
    return [(modules[x.path, x.module, x.args], x.elastic) for x in layers]


def _filled(layer: Layer) -> ElasticModule:
    """A module whose weights are constants."""
    with torch.device("meta"):
        module = layer.build()
    module = module.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.01)  # not zero, and far from denormal numbers
        for buffer in module.buffers():
            buffer.fill_(0.5)  # variances, and ranges of int8 inputs: nothing degenerate
    return module


def inputs(
    layer: Layer, batch: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Any, ...]:
    """Random inputs of a layer: the state that the layers before it would hand to it."""
    return tuple(_moved(item, dtype, device) for item in layer.inputs(batch))


def _moved(item: Any, dtype: torch.dtype, device: str) -> Any:
    if isinstance(item, Tensor):
        return item.to(device, dtype) if item.is_floating_point() else item.to(device)
    return tuple(_moved(part, dtype, device) for part in item) if isinstance(item, tuple) else item


def run(steps: Steps, state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state after all steps, given the state before them."""
    for module, sizes in steps:
        state = module.run(state, **sizes)
    return state


def slots(state: Any) -> list[Tensor | None]:
    """The tensors of a state, flat; None where there is none."""
    if isinstance(state, tuple):
        return [tensor for item in state for tensor in slots(item)]
    return [state]
