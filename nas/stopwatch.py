"""Timing of layers and whole networks with torch on the CPU, one thread, batch 1.

As a program (`python -m nas.stopwatch`) it is the fresh process of a re-measurement: it reads
`{"space", "classes", "architectures", "rounds"}` as JSON from stdin, writes one line
`{"done": n}` per round to stdout, and last `{"samples_ms": [[...], ...]}`.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import nas
from nas.elastic import Network
from nas.errors import EvaluationError
from nas.family import SearchSpace, load_space
from nas.space import Architecture

WARM_UP = 3


class Sample(NamedTuple):
    """One call: elapsed time and the processor time that it used."""

    wall_ms: float
    cpu_ms: float

    @property
    def rounded(self) -> tuple[float, float]:
        return round(self.wall_ms, 4), round(self.cpu_ms, 4)


def keep_heap() -> None:
    """Let the C library keep freed memory instead of returning it to the system (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def quiet_process() -> None:
    """One thread, and a heap that is kept: how everything here is measured.

    By default glibc gives large blocks back to the system after each use; faulting them in again
    made networks up to 10 % slower and tripled the spread (840 page faults per inference, 0.5
    after). Denormal numbers, which masked attention makes, are flushed to zero: up to 2.9x in
    shifted windows. Deploy with `torch.set_flush_denormal(True)` and
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000` to have the same.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_heap()


def build(space: SearchSpace, architecture: Architecture, classes: int) -> Network:
    """A plain network with weights that need no drawing; the time does not depend on them."""
    network = Network.empty(space, architecture, classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)  # not zero, and far from denormal numbers
        for buffer in network.buffers():
            buffer.fill_(0.5)  # variances, and ranges of int8 inputs: nothing degenerate
    return network.deploy()


def image_for(architecture: Architecture) -> torch.Tensor:
    return torch.randn(1, 3, architecture.resolution, architecture.resolution)


@torch.inference_mode()
def time_layers(network: Network, image: torch.Tensor) -> list[tuple[str, Sample]]:
    """One inference with the clock read between layers: the key and the time of each."""
    state: tuple[Any, ...] = (image,)
    samples = []
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    for layer in network.space.layers(network.architecture, network.classes):
        state = network.layers[layer.path](*state, **layer.sizes)
        after, cpu_after = time.perf_counter_ns(), time.process_time_ns()
        samples.append((layer.key, Sample((after - wall) / 1e6, (cpu_after - cpu) / 1e6)))
        wall, cpu = after, cpu_after
    return samples


@torch.inference_mode()
def time_network(network: Network, image: torch.Tensor) -> Sample:
    """One whole inference."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    network(image)
    return Sample((time.perf_counter_ns() - wall) / 1e6, (time.process_time_ns() - cpu) / 1e6)


def measure_fresh(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    classes: int,
    rounds: int = 30,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[float]]:
    """Milliseconds of whole networks, `rounds` per network, taken in turns in a fresh process."""
    request = {
        "space": space.name,
        "classes": classes,
        "architectures": [a.to_json() for a in architectures],
        "rounds": rounds,
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "nas.stopwatch"],  # -P: never a `nas` of the working folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(nas.__file__).parents[1])},
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for line in process.stdout:
            answer = json.loads(line)
            if "samples_ms" in answer:
                samples: list[list[float]] = answer["samples_ms"]
                return samples
            advance(1)
        raise EvaluationError(
            f"the measuring process failed: {process.stderr.read().strip().splitlines()[-1:]}",
            "run the same command with --debug",
        )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _main() -> None:
    request = json.loads(sys.stdin.read())
    quiet_process()
    space = load_space(request["space"])
    architectures = [space.parse(text) for text in request["architectures"]]
    networks = [build(space, a, request["classes"]) for a in architectures]
    images = [image_for(a) for a in architectures]
    samples: list[list[float]] = [[] for _ in networks]
    for turn in range(WARM_UP + request["rounds"]):
        for network, image, own in zip(networks, images, samples):
            own.append(time_network(network, image).wall_ms)
        if turn >= WARM_UP:
            print(json.dumps({"done": turn - WARM_UP + 1}), flush=True)
    print(json.dumps({"samples_ms": [own[WARM_UP:] for own in samples]}), flush=True)


if __name__ == "__main__":
    _main()
