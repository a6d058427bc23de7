"""Whole networks measured end to end, in a fresh process.

As a program (`python -m nas.latency.end_to_end`) it is that process. It reads a line of JSON from
stdin, `{"device", "space", "task", "architectures", "rounds", "layers", "kernel"}`, and ends at
once when stdin is closed. To stdout it writes one line `{"done": n}` per round, and last
`{"samples": [[...], ...], "layers": [...], "wall_over_cpu": [...], "cpu": [[...], ...]}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import nas
from nas.errors import EvaluationError, PreparationError, VitnasError
from nas.families import load_space
from nas.runtimes import Sample, load_runtime, visit
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.tasks import load_task

WARM_UP = 1  # rounds


class Measurement(NamedTuple):
    """What was measured of one network, in the unit of its runtime."""

    samples: list[float]  # of whole inferences
    layers: list[list[float]]  # of each layer, in network order; nothing if not asked for
    wall_over_cpu: float  # well above 1 if the process was held up; 0 if the device does not tell
    cpu: Sequence[
        float
    ] = ()  # processor time of the same inferences; 0 if the device does not tell


def measure_fresh(
    device: str,
    space: SearchSpace,
    architectures: Sequence[Architecture],
    rounds: int = 10,
    layers: bool = False,
    advance: Callable[[int], None] = lambda _: None,
    kernel: str = "",
) -> list[Measurement]:
    """Measure whole networks on a device, in a fresh process.

    Networks take turns; a round gives three samples of each. With `layers` every round also times
    each network layer by layer. `advance` is called with 1 after each round. `kernel` is
    that of attention in windows (see `Runtime`). Raises `EvaluationError` where a network cannot
    be run, or the process fails.
    """
    request = {
        "device": device,
        "space": space.name,
        "task": space.task.to_json(),
        "architectures": [a.to_json() for a in architectures],
        "rounds": rounds,
        "layers": layers,
        "kernel": kernel,
    }
    path = [str(Path(nas.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        # -P: never a `nas` of the working folder.
        [sys.executable, "-P", "-m", "nas.latency.end_to_end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    try:
        with suppress(BrokenPipeError):  # why it ended is said below
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:  # what a library prints
                continue
            if "error" in answer:
                raise EvaluationError(*answer["error"])
            if "samples" in answer:
                columns = (answer[key] for key in ("samples", "layers", "wall_over_cpu", "cpu"))
                return [Measurement(*own) for own in zip(*columns)]
            advance(1)
        raise EvaluationError(
            f"the measuring process failed: {process.stderr.read().strip().splitlines()[-1:]}",
            "run the same command with --debug",
        )
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                stream.close()


def _main() -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        _measure(request)
    except VitnasError as error:
        print(json.dumps({"error": [error.message, error.fix]}), flush=True)


def _end_with_the_parent() -> None:
    """End this process when the one that started it has ended, however that ended.

    That one keeps the other end of the standard input open. Reading it here takes no time.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


def _measure(request: dict[str, Any]) -> None:
    space = load_space(request["space"], load_task(request["task"]))
    architectures = [space.parse(text) for text in request["architectures"]]
    networks = [space.layers(a) for a in architectures]
    with load_runtime(request["device"]) as runtime:
        runtime.kernel = request["kernel"]
        try:
            whole = [runtime.prepare(layers, fused=True) for layers in networks]
            split = networks if request["layers"] else []
            parts = [runtime.prepare(layers, fused=False) for layers in split]
        except PreparationError as error:
            fix = error.fix or "measure it on another device: vitnas list devices"
            raise EvaluationError(error.message, fix) from None
        samples: list[list[Sample]] = [[] for _ in networks]
        parted: list[list[list[Sample]]] = [[[] for _ in own] for own in networks]
        warm_up = 0 if runtime.exact else WARM_UP
        for turn in range(warm_up + (1 if runtime.exact else request["rounds"])):
            for i in range(len(networks)):
                for programs, found in ((whole, [samples[i]]), (parts, parted[i])):
                    for timed in visit(programs[i], runtime) if programs else ():
                        for own, sample in zip(found, timed if turn >= warm_up else ()):
                            own.append(sample)
            if turn >= warm_up:
                print(json.dumps({"done": turn - warm_up + 1}), flush=True)
    answer = {
        "samples": [_walls(own) for own in samples],
        "layers": [[_walls(own) for own in layers] for layers in parted],
        "wall_over_cpu": [_held_up(own) for own in samples],
        "cpu": [[round(sample.cpu, 5) for sample in own] for own in samples],
    }
    print(json.dumps(answer), flush=True)


def _walls(samples: Sequence[Sample]) -> list[float]:
    return [round(sample.wall, 5) for sample in samples]


def _held_up(samples: Sequence[Sample]) -> float:
    known = [sample.wall / sample.cpu for sample in samples if sample.cpu > 0]
    return round(median(known), 3) if known else 0.0


if __name__ == "__main__":
    _main()
