"""A network in int8: accuracy before and after by clipping method, and what each layer costs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.data import Dataset
from nas.deployment import ONNX, Card
from nas.errors import UsageError
from nas.evaluation.accuracy import Evaluator
from nas.export import default_formats, export_network, saturates
from nas.latency.end_to_end import measure_fresh
from nas.network.calibration import METHODS, calibrate, sensitivity
from nas.network.network import Network
from nas.progress import bar
from nas.space.architecture import Architecture, at_precision
from nas.training.rounding import LEARNING_RATE, train_rounded

_SENSITIVITY_IMAGES = 16
_ROUNDS = 10
_RUN = 8  # training samples that the ONNX file answers


def quantize(
    network: Network,
    data: Dataset,
    *,
    images: int = 400,
    calibration: int = 64,
    train: int = 0,
    rate: float = LEARNING_RATE,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare a plain float32 network with itself in int8, for each method of clipping.

    Every block is in int8; of a network that has int8 blocks already, those that it has.
    Ranges come from the first `calibration` training images, accuracies from the first `images` of
    the search split; the test split is not touched. With `out`, the network in int8 with the ranges
    of `best` is written there as safetensors, `.pt2` and, where ONNX is installed, as ONNX QDQ. It
    is first trained on so many images (`train`, at this `rate`) as it will be deployed: the method
    `trained`.
    Returns `fp32`, `methods`, `layers` (in order), `measured_ms` (torch eager, one thread), and
    with an ONNX file whether it `saturates` in the int8 kernels that ONNX Runtime has here.
    `changed_percent` of a method is the share of answers that differ from those in float32, None
    where the task does not say what an answer is. `error` and `logit_error` of a layer are relative
    squared errors: 1e-4 is a hundredth of the length of its output, and of the logits.
    """
    wide = at_precision(network.architecture, "fp32")
    narrow = network.architecture
    if narrow == wide:
        narrow = at_precision(wide, "int8")
    space = network.space.with_int8()
    evaluator = Evaluator(network, data, data.search, images)
    if train and out is None:
        raise UsageError("a network is trained into a folder", "name it by --out")
    first = data.first(data.train, calibration, space.largest.resolution)
    ranges = space.parts.resized(first[space.parts.takes], wide.resolution)
    methods = {}
    with bar("quantize", len(METHODS) + 1, "networks") as advance:
        percent, before = evaluator.answered_by(_plain(network, wide).deploy())
        advance(1, "float32")
        for method in METHODS:
            quantized = _plain(network, narrow)
            layers = calibrate(quantized, ranges, method=method)
            methods[method] = _compared(quantized, evaluator, before)
            advance(1, method)
    with bar("sensitivity", len(layers), "layers") as advance:
        alone = sensitivity(quantized, ranges[:_SENSITIVITY_IMAGES], advance)
    with bar("measure", _ROUNDS, "rounds") as advance:
        both = measure_fresh("torch-cpu", space, [wide, narrow], _ROUNDS, advance=advance)
    result = {
        "architecture": asdict(narrow),
        "search_images": evaluator.images,
        "calibration_images": len(ranges),
        "fp32": {evaluator.metric.key: round(percent, 3)},
        "methods": methods,
        "layers": [{**asdict(x), "logit_error": alone[x.layer]} for x in layers],
        "measured_ms": {
            name: round(float(np.median(own.samples)), 4)
            for name, own in zip(("fp32", "int8"), both)
        },
    }
    if train and out is not None:
        train_rounded(quantized, _plain(network, wide), data, train, out / "training", rate)
        methods["trained"] = _compared(quantized, evaluator, before)
    if out is not None:
        result["exported"] = written = _export(quantized, ranges[:1].contiguous(), data, out)
        if ONNX in written:
            result["saturates"] = saturates(quantized, ranges[:_RUN], out)
    return result


def _compared(
    quantized: Network, evaluator: Evaluator, before: Tensor | None
) -> dict[str, float | None]:
    """The score of a network in int8, and how many answers differ from those `before`."""
    percent, after = evaluator.answered_by(deepcopy(quantized).deploy())
    return {
        evaluator.metric.key: round(percent, 3),
        "changed_percent": changed_percent(before, after),
    }


def changed_percent(before: Tensor | None, after: Tensor | None) -> float | None:
    """The share of answers that differ; None for a task that does not say what its answers are."""
    if before is None or after is None:
        return None
    return round(float(100 * (before != after).float().mean()), 3)


def _plain(network: Network, architecture: Architecture) -> Network:
    """The network with the same weights at another precision."""
    return network.inherit(architecture).eval()


def _export(network: Network, image: torch.Tensor, data: Dataset, out: Path) -> dict[str, float]:
    with torch.no_grad():
        expected = network(image)
    card = Card.of(network.space, network.architecture, data)
    return export_network(network, image, expected, out, default_formats(), card=card)
