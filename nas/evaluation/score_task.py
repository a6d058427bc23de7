"""Scoring a subnet as a task: what a worker is given once, and what it answers.

A worker holds the supernet and the search split as arrays; a task is an architecture and the hits
of a rival, if there is one to race against. The answer is a record that goes into the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data.dataset import Dataset, Images, Labels, Split
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.racing import Race
from nas.families import load_space
from nas.layers.attention import Kernel, fused
from nas.network.network import Network
from nas.space.task import Task
from nas.workers.ledger import Record


class Payload(NamedTuple):
    """One architecture to score, as JSON; the rival's hits on all images, packed; and those that
    are scored with it and may share what its first layers compute."""

    architecture: str
    rival: str = ""
    siblings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """How subnets are scored; the same for all workers.

    `race_error` bounds the probability of dropping a candidate that is not worse than its rival
    (0: everything is evaluated to the end), `reuse_mb` the activations that are kept (0: none).
    """

    space: str
    task: Task
    images: int
    race_error: float = 0.05
    reuse_mb: int = 1024
    threads: int = 1
    kernel: Kernel = fused  # of windows: workers must not choose each for itself
    device: str = "cpu"


class Scorer:
    """Scores one payload after the other with the evaluator of this process."""

    def __init__(self, evaluator: Evaluator, race_error: float) -> None:
        self.evaluator = evaluator
        self.siblings: tuple[str, ...] = ()
        self.race = None
        if race_error:
            self.race = Race.doubling(evaluator.images, 4 * evaluator.batch, race_error)

    def __call__(self, payload: Payload) -> Record:
        evaluator, space = self.evaluator, self.evaluator.network.space
        if payload.siblings != self.siblings:
            self.siblings = payload.siblings
            evaluator.plan(space.parse(text) for text in self.siblings)
        architecture = space.parse(payload.architecture)
        rival = unpack(payload.rival, evaluator.images) if payload.rival else None
        scored = evaluator.score(architecture, rival if self.race else None, self.race)
        return {
            "top1_percent": scored.top1_percent,
            "images": scored.images,
            "dropped": scored.dropped,
            "hits": pack(scored.hits),
        }


def pack(hits: NDArray[np.bool_]) -> str:
    """Hits (n,) as hexadecimal digits, four a digit."""
    return np.packbits(hits).tobytes().hex()


def unpack(text: str, images: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    return bits[:images].astype(bool)


class _Arrays(Split):
    """The first images of a split, in memory, on a canvas of one size."""

    def __init__(self, name: str, images: Images, labels: Labels) -> None:
        super().__init__(name, len(images))
        self.images, self.labels = images, labels

    def batch(self, indices: Sequence[int], canvas: int) -> tuple[Images, Labels]:
        return self.images[list(indices)], self.labels[list(indices)]


def cargo(evaluator: Evaluator) -> dict[str, Any]:
    """All that `load_scorer` needs besides the settings, as arrays."""
    data, network = evaluator.data, evaluator.network
    canvas = network.space.largest.resolution
    images, labels = evaluator.split.batch(range(evaluator.images), canvas)
    few = min(evaluator.calibrated_on, data.train.size) if network.batch_norms else 0
    calibration, _ = data.train.batch(range(few), canvas) if few else (images[:0], labels[:0])
    return {
        "weights": {k: v.cpu().numpy() for k, v in network.state_dict().items()},
        "images": images, "labels": labels, "calibration": calibration,
        "data": (data.name, data.task, data.mean, data.std, data.fingerprint),
    }  # fmt: skip


def load_scorer(settings: Scoring, arrays: dict[str, Any]) -> Scorer:
    """The scorer of a worker process."""
    torch.set_num_threads(1)
    space = load_space(settings.space, settings.task)
    network = Network.empty(space, space.largest)
    weights = {k: torch.from_numpy(np.array(v)) for k, v in arrays["weights"].items()}
    network.use_in_windows(settings.kernel).load_state_dict(weights)
    name, task, mean, std, fingerprint = arrays["data"]
    search = _Arrays("search", arrays["images"], arrays["labels"])
    few = arrays["calibration"]
    train = _Arrays("train", few, np.zeros(len(few), dtype=np.int64))
    data = Dataset(name, task, train, search, search, mean, std, fingerprint, augment=False)
    return scorer(network.to(settings.device), data, settings)


def scorer(network: Network, data: Dataset, settings: Scoring) -> Scorer:
    evaluator = Evaluator(
        network, data, data.search, settings.images,
        threads=settings.threads, reuse=settings.reuse_mb << 20,
    )  # fmt: skip
    return Scorer(evaluator, settings.race_error)
