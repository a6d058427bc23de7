"""Scoring a subnet as a task: what a worker is given once, and what it answers.

A worker holds the supernet and the search split in memory. A task is an architecture, and the
outcomes of a rival if there is one to race against; the answer is a record for the journal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch

from nas.data import Dataset, Held
from nas.evaluation.accuracy import Evaluator, Scored
from nas.evaluation.racing import Outcomes, Race
from nas.families import load_space
from nas.layers.attention import Kernel, fused
from nas.network.network import Network
from nas.space.task import Metric, Task, share_variance
from nas.workers.ledger import Record

_FLOATS = "float16:"  # before packed outcomes that are no hits
_PERCENT = {"key": "{}_percent", "least": 0, "most": 100}


class Payload(NamedTuple):
    """One architecture to score, as JSON, with the packed outcomes of its rival on all samples.

    `siblings` are the architectures that are scored with it and may share its first layers.
    """

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
        """The record of one architecture, as the journal has it beside its header."""
        evaluator, space = self.evaluator, self.evaluator.network.space
        if payload.siblings != self.siblings:
            self.siblings = payload.siblings
            evaluator.plan(space.parse(text) for text in self.siblings)
        architecture = space.parse(payload.architecture)
        rival = unpack(payload.rival, evaluator.images) if payload.rival and self.race else None
        return record_of(evaluator.score(architecture, rival, self.race))


@dataclass(frozen=True)
class ScoreRecord:
    """A line of a journal of scores: an architecture, and its score or why it has none.

    See `record_of`; the `id` is that of the architecture.
    """

    id: str
    architecture: str
    origin: str = ""
    percent: float | None = field(default=None, metadata=_PERCENT)
    images: int | None = field(default=None, metadata={"least": 1})
    dropped: bool = False
    variance: float | None = field(default=None, metadata={"least": 0})
    hits: str = ""
    outcomes: str = ""
    error: str | None = None

    def __post_init__(self) -> None:
        if self.id != sha256(self.architecture.encode()).hexdigest()[:12]:
            raise ValueError("its id is not that of its architecture")
        if self.error is None and (self.percent is None or self.images is None):
            raise ValueError("it has neither a score of images nor an error")
        bytes.fromhex(self.outcomes.removeprefix(_FLOATS))
        require_hits_of(self.hits, self.images or 0)


@dataclass(frozen=True)
class AccuracyRecord:
    """A line of a journal of examinations: of finals, or on the test split.

    `hits` say which samples were right, packed; empty where they are not known, or a sample is not
    just right or wrong.
    """

    id: str
    images: int = field(metadata={"least": 1})
    percent: float = field(metadata=_PERCENT)
    variance: float | None = field(default=None, metadata={"least": 0})
    by_class: tuple[float | None, ...] = ()
    hits: str = ""

    def __post_init__(self) -> None:
        require_hits_of(self.hits, self.images)


def require_hits_of(hits: str, images: int) -> None:
    """Raise `ValueError` unless packed hits are those of so many images, or none at all."""
    bytes.fromhex(hits)
    if hits and len(hits) != 2 * -(-images // 8):
        raise ValueError(f"hits are not those of {images} images")


def record_of(scored: Scored) -> Record:
    """A score as JSON: the percentage under `METRIC_percent`, and what later races need.

    Hits stand packed under `hits`; the variance of the score follows from them. Other outcomes
    stand under `outcomes`, if there are any, beside the `variance`.
    """
    record = {
        scored.metric.key: scored.percent,
        "images": scored.images,
        "dropped": scored.dropped,
    }
    found = scored.outcomes
    if found is not None and found.dtype == bool:
        return {**record, "hits": pack(found)}
    record["variance"] = scored.variance
    return record if found is None else {**record, "outcomes": pack(found)}


def tested_record(scored: Scored) -> Record:
    """An accuracy in an examination as JSON, as `AccuracyRecord` has it beside the id."""
    by_class, found = rounded_by_class(scored), scored.outcomes
    hits = {} if found is None or found.dtype != bool else {"hits": pack(found)}
    return {
        scored.metric.key: scored.percent,
        "images": scored.images,
        "variance": scored.variance,
        **({"by_class": list(by_class)} if by_class else {}),
        **hits,
    }


def rounded_by_class(scored: Scored) -> tuple[float | None, ...]:
    """The score of each class as it is written down; empty where the metric has none."""
    percents = scored.metric.by_class(scored.observed)
    return tuple(None if percent is None else round(percent, 4) for percent in percents)


def variance_in(record: Record, metric: Metric) -> float:
    """The variance of the score in a record, over draws of as many samples, in points squared."""
    known: float | None = record.get("variance")
    return share_variance(record[metric.key], record["images"]) if known is None else known


def rival_in(record: Record) -> str:
    """The packed outcomes in a record of a candidate; empty where its metric has none."""
    return str(record.get("hits", record.get("outcomes", "")))


def pack(outcomes: Outcomes) -> str:
    """Outcomes (n,) as hexadecimal digits: hits four a digit, float16 numbers after their name."""
    if outcomes.dtype == bool:
        return np.packbits(outcomes).tobytes().hex()
    return _FLOATS + outcomes.astype("<f2").tobytes().hex()


def unpack(text: str, images: int) -> Outcomes:
    """The outcomes (images,) that `pack` made a text of."""
    if text.startswith(_FLOATS):
        return np.frombuffer(bytes.fromhex(text.removeprefix(_FLOATS)), dtype="<f2")[:images]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    return bits[:images].astype(bool)


def cargo(evaluator: Evaluator) -> dict[str, Any]:
    """All that `load_scorer` needs besides the settings: weights, and the samples in memory."""
    data, network = evaluator.data, evaluator.network
    size = network.space.largest.resolution
    search = Held("search", evaluator.split.batch(range(evaluator.images), size))
    calibrated = evaluator.calibrated_on if network.batch_norms else 1
    few = range(max(calibrated, evaluator.metric.references))
    train = Held("train", data.train.batch(few, size))
    return {
        "weights": {k: v.cpu().numpy() for k, v in network.state_dict().items()},
        "data": replace(data, train=train, search=search, test=search),
        "metric": evaluator.metric,
    }


def load_scorer(settings: Scoring, arrays: dict[str, Any]) -> Scorer:
    """The scorer of a worker process."""
    torch.set_num_threads(1)
    space = load_space(settings.space, settings.task)
    network = Network.empty(space, space.largest)
    weights = {k: torch.from_numpy(np.array(v)) for k, v in arrays["weights"].items()}
    network.use_in_windows(settings.kernel).load_state_dict(weights)
    return scorer(network.to(settings.device), arrays["data"], settings, arrays["metric"])


def scorer(
    network: Network, data: Dataset, settings: Scoring, metric: Metric | None = None
) -> Scorer:
    """The scorer of this process, of a network that is there already."""
    evaluator = Evaluator(
        network, data, data.search, settings.images, metric=metric,
        threads=settings.threads, reuse=settings.reuse_mb << 20,
    )  # fmt: skip
    return Scorer(evaluator, settings.race_error)
