"""Ranges of int8 activations from a calibration set, and what int8 then costs, layer by layer.

Ranges are clipped by one of three methods: `minmax` keeps everything seen, `percentile` all but
one value in ten thousand at each end, `mse` searches the range of the least squared rounding error
(Banner et al., NeurIPS 2019; Nagel et al., 2021, https://arxiv.org/abs/2106.08295, section 3.1).
`best` takes for each layer the method whose int8 output is nearest to the layer's float32 output:
what suits the long tail behind a GELU is wrong for a LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UnknownNameError
from nas.layers.precision import Quantizer, rounded, scale_zero
from nas.network.network import Network, check_inputs
from nas.space.architecture import Architecture
from nas.space.layer import Layer

CLIPS = ("minmax", "percentile", "mse")
METHODS = (*CLIPS, "best")
_TAIL = 1e-4  # of the values at each end, cut by `percentile`
_SAMPLE = 2048  # values of each call that `percentile` and `mse` look at,
_EXTREMES = 32  # besides its largest and smallest
_STEPS = 32  # ranges that `mse` tries at each end


@dataclass(frozen=True)
class LayerError:
    """What int8 costs in one layer: relative squared error of its output, by method."""

    layer: str
    method: str  # whose ranges were taken
    error: dict[str, float]


class _Observer:
    """What flows into one quantizer: its extremes exactly, the rest as a weighted random sample.

    Rare large values decide the range of least error, and a plain sample misses them.
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> None:
        flat = x.detach().flatten().float().cpu()
        weights = torch.ones(len(flat))
        if len(flat) > _SAMPLE:
            top, bottom = flat.topk(_EXTREMES).values, -(-flat).topk(_EXTREMES).values
            picked = torch.randint(len(flat), (_SAMPLE,), generator=self._generator)
            inner = flat[picked].clamp(bottom[-1], top[-1])
            weights = torch.ones(_SAMPLE + 2 * _EXTREMES)
            weights[:_SAMPLE] = (len(flat) - 2 * _EXTREMES) / _SAMPLE
            flat = torch.cat([inner, top, bottom])
        self._values.append(flat)
        self._weights.append(weights)

    @property
    def seen(self) -> bool:
        return bool(self._values)

    def clip(self, method: str) -> tuple[float, float]:
        values, weights = torch.cat(self._values), torch.cat(self._weights)
        low, high = values.min().item(), values.max().item()
        if method == "minmax":
            return low, high
        values, order = values.sort()
        weights = weights[order] / weights.sum()
        if method == "percentile":
            share = weights.cumsum(0)
            inside = values[(share > _TAIL) & (share < 1 - _TAIL)]
            return (inside[0].item(), inside[-1].item()) if len(inside) else (low, high)
        return _least_error(values, weights, low, high)


def _least_error(values: Tensor, weights: Tensor, low: float, high: float) -> tuple[float, float]:
    """The range within [low, high] of the least squared rounding error, one end after the other."""

    def error(low: float, high: float) -> float:
        if not max(high, 0) > min(low, 0):
            return float("inf")
        scale, zero = scale_zero(low, high)
        back = rounded(values, scale, zero).sub_(zero).mul_(scale)
        return float((back - values).square_() @ weights)

    shares = [(i + 1) / _STEPS for i in range(_STEPS)]
    for _ in range(2):
        high = min((high * share for share in shares), key=lambda h: error(low, h))
        low = min((low * share for share in shares), key=lambda x: error(x, high))
    return low, high


@contextmanager
def _observing(quantizers: Sequence[Quantizer]) -> Iterator[list[_Observer]]:
    observers = [_Observer() for _ in quantizers]
    for quantizer, observer in zip(quantizers, observers):
        quantizer.observer = observer
    try:
        yield observers
    finally:
        for quantizer in quantizers:
            quantizer.observer = None


def quantizers(module: nn.Module) -> list[Quantizer]:
    """The quantizers in a module, in the order in which they were defined."""
    return [m for m in module.modules() if isinstance(m, Quantizer)]


@torch.no_grad()
def calibrate(
    network: Network,
    images: Tensor,
    architecture: Architecture | None = None,
    method: str = "best",
) -> list[LayerError]:
    """Set the int8 ranges of every layer from `images` (n, 3, resolution, resolution).

    Each layer sees what the float32 network before it gives. The ranges of a supernet, calibrated
    at its largest architecture, serve all its subnets. Returns the layers that can be int8, in
    order, with what that costs.
    """
    if method not in METHODS:
        raise UnknownNameError("clipping method", method, METHODS)
    architecture = architecture or network.architecture
    check_inputs(images, network.space, architecture)
    network.eval()
    state: tuple[Any, ...] = (images,)
    done = []
    for layer in network.space.layers(architecture):
        module = network.module(layer)
        own = quantizers(module)
        with _observing(own) as observers:
            after = run_layer(module, layer, state, bits=32)
        if own and "bits" in layer.sizes:
            done.append(_choose(module, layer, state, after, observers, method))
        state = after
    return done


def _choose(
    module: nn.Module,
    layer: Layer,
    state: tuple[Any, ...],
    expected: tuple[Any, ...],
    observers: Sequence[_Observer],
    method: str,
) -> LayerError:
    errors = {}
    for name in CLIPS if method == "best" else (method,):
        _set(module, observers, name)
        output = run_layer(module, layer, state, bits=8)
        errors[name] = _relative_error(output[0], expected[0])
    best = min(errors, key=lambda name: errors[name])
    _set(module, observers, best)
    return LayerError(layer.path, best, errors)


def _set(module: nn.Module, observers: Sequence[_Observer], method: str) -> None:
    for quantizer, observer in zip(quantizers(module), observers):
        quantizer.packed = None
        if observer.seen:  # not every operation of an int8 layer is int8
            quantizer.clip.copy_(torch.tensor(observer.clip(method)))


def _relative_error(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).square().sum() / expected.square().sum())


def run_layer(
    module: nn.Module, layer: Layer, state: tuple[Any, ...], bits: int | None = None
) -> tuple[Any, ...]:
    """One layer on its own, at its precision or another; `state` is left as it is."""
    first, *rest = state
    sizes = (layer.at_bits(bits) if bits else layer).elastic
    after: tuple[Any, ...] = module(first.clone(), *rest, **sizes)
    return after


@torch.no_grad()
def sensitivity(
    network: Network, images: Tensor, advance: Callable[[int], None] = lambda _: None
) -> dict[str, float]:
    """For each layer that can be int8: relative squared error of the logits if it alone is.

    `network` is a calibrated plain network, `images` (n, 3, resolution, resolution).
    """
    layers = network.space.layers(network.architecture)
    states: list[tuple[Any, ...]] = [(images,)]
    for layer in layers:
        states.append(run_layer(network.module(layer), layer, states[-1], bits=32))
    found = {}
    for i, layer in enumerate(layers):
        if "bits" not in layer.sizes:
            continue
        state = run_layer(network.module(layer), layer, states[i], bits=8)
        for later in layers[i + 1 :]:
            state = run_layer(network.module(later), later, state, bits=32)
        found[layer.path] = _relative_error(state[0], states[-1][0])
        advance(1)
    return found
