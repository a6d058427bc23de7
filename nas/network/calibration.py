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

from nas.errors import EvaluationError, UnknownNameError
from nas.layers.elastic import ElasticModule
from nas.layers.precision import Quantizer, rounded, scale_zero
from nas.network.network import Network, check_inputs
from nas.space.architecture import Architecture
from nas.space.layer import Layer

CLIPS = ("minmax", "percentile", "mse")
METHODS = (*CLIPS, "best")
_TAIL = 1e-4  # of the values at each end, cut by `percentile`
_DROPPED = 13  # of the 23 bits of a float32's fraction, when values are counted
_BINS = 2 ** (31 - _DROPPED)  # of each sign
_NOTHING = 1e-30  # a range that is smaller holds nothing but 0: its unit would be denormal
_PART = 2**22  # values that are counted at once
_STEPS = 32  # ranges that `mse` tries at each end


@dataclass(frozen=True)
class LayerError:
    """What int8 costs in one layer: relative squared error of its output, by method."""

    layer: str
    method: str  # whose ranges were taken
    error: dict[str, float]


class _Observer:
    """What flows into one quantizer: its extremes, and how often values occur, told apart to 0.1 %.

    Values are counted by the leading bits of their float32, in bins that are at most 2**-10 of
    them wide. So quantiles are known as well as that, however many values there are and in however
    many calls they come. A sample would miss the rare large ones, which decide the range.
    """

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")
        self._counts = torch.zeros(2 * _BINS, dtype=torch.int64)  # on the device of the values

    def __call__(self, x: Tensor) -> None:
        for part in torch.split(x.detach().flatten(), _PART):  # bounds the memory
            values = part.float()
            low, high = (end.item() for end in values.aminmax())
            if not -torch.inf < low <= high < torch.inf:
                raise EvaluationError(
                    "values that are not finite reach a layer that is calibrated for int8",
                    "look for NaN and infinity in its weights and in the images",
                )
            self.low, self.high = min(self.low, low), max(self.high, high)
            bits = values.view(torch.int32)
            size = (bits & 0x7FFFFFFF) >> _DROPPED
            bins = torch.where(bits < 0, _BINS - 1 - size, _BINS + size)
            self._counts = self._counts.to(x.device) + torch.bincount(bins, minlength=2 * _BINS)

    @property
    def seen(self) -> bool:
        return self.low <= self.high

    def clip(self, method: str) -> tuple[float, float]:
        """The range by a method; where it would hold nothing but 0, all that was seen."""
        for low, high in (self._clip(method), (self.low, self.high)):
            if max(high, 0) - min(low, 0) > _NOTHING:
                return low, high
        return -1.0, 1.0  # an input that is always 0 stays 0 in any range

    def _clip(self, method: str) -> tuple[float, float]:
        if method == "minmax":
            return self.low, self.high
        self._counts = self._counts.cpu()
        if method == "percentile":
            return self._quantiles()
        bins = self._counts.nonzero().flatten()
        values = _edges(bins, 0.5).clamp_(self.low, self.high)
        return _least_error(values, self._counts[bins] / self._counts.sum(), self.low, self.high)

    def _quantiles(self) -> tuple[float, float]:
        """Never less than numpy's `lower` and `higher` quantiles; at most 2**-10 of them more."""
        total = self._counts.cumsum(0)
        cut = int(_TAIL * (int(total[-1]) - 1))  # so many values at each end
        ends = torch.tensor([cut + 1, int(total[-1]) - cut])  # ranks from 1
        first, last = torch.searchsorted(total, ends)
        low = _edges(first, 0.0 if first >= _BINS else 1.0).item()
        high = _edges(last, 1.0 if last >= _BINS else 0.0).item()
        return max(low, self.low), min(high, self.high)


def _edges(bins: Tensor, share: float) -> Tensor:
    """The value that lies in each bin at so much of its width, from its end near 0."""
    size = torch.where(bins < _BINS, _BINS - 1 - bins, bins - _BINS)
    bits = (size << _DROPPED) + int(share * 2**_DROPPED)
    values = bits.to(torch.int32).view(torch.float32)
    return torch.where(bins < _BINS, -values, values)


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
    module: ElasticModule,
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
    expected_size = expected.square().sum().clamp(min=1e-30)  # a layer may answer nothing but 0
    return float((output - expected).square().sum() / expected_size)


def run_layer(
    module: ElasticModule, layer: Layer, state: tuple[Any, ...], bits: int | None = None
) -> tuple[Any, ...]:
    """One layer on its own, at its precision or another; `state` is left as it is."""
    first, *rest = state
    sizes = (layer.at_bits(bits) if bits else layer).elastic
    return module.run((first.clone(), *rest), **sizes)


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
