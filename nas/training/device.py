"""The device of a training: whether it is there, and what is fastest on it."""

from __future__ import annotations

import re
import time
from copy import deepcopy

import torch
from torch import Tensor

from nas.data import Dataset
from nas.errors import UnknownNameError, VitnasError
from nas.network.network import Network

_TRIED_ON = 4  # samples, to see which data type is faster


def faster_in_bf16(network: Network, data: Dataset) -> bool:
    """Whether a network trains faster where its products are of bfloat16, by measurement.

    Matrix products do on most processors of today; convolutions of few channels do not.
    """
    parameter = next(network.parameters())
    if parameter.is_cuda:
        return bool(torch.cuda.is_bf16_supported())
    samples = data.first(data.train, _TRIED_ON, network.architecture.resolution)
    inputs = channels_last(samples[network.space.parts.takes])

    tried = deepcopy(network).train()  # what norms see here is not the network's

    def seconds(bf16: bool) -> float:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = tried(inputs)
        outputs.float().sum().backward()
        return time.process_time() - start

    times = [(seconds(True), seconds(False)) for _ in range(3)][1:]  # the first ones are slower
    return min(bf16 for bf16, _ in times) < min(exact for _, exact in times)


def channels_last(inputs: Tensor) -> Tensor:
    """Pictures with the channels of a pixel side by side: convolutions are faster so."""
    if inputs.ndim != 4:
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last)


def check_device(name: str) -> None:
    """Raise `VitnasError` unless training can run on the device: `cpu`, `cuda` or `cuda:N`."""
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,3}))?", name):
        raise UnknownNameError("training device", name, ["cpu", "cuda", "cuda:0"])
    if name != "cpu" and not torch.cuda.is_available():
        raise VitnasError("torch sees no CUDA device", "use --device cpu, or install a CUDA build")
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= (count := torch.cuda.device_count()):
        raise VitnasError(f"torch sees {count} CUDA devices, none is {name}", "use --device cuda:0")
