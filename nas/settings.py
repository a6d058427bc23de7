"""What determines a run's result, and what only determines how fast it comes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nas.errors import UnknownNameError, UsageError
from nas.strategy.constraints import SAMPLERS
from nas.strategy.searchers import searcher_names


@dataclass(frozen=True)
class Settings:
    """What determines a run's result; a resumed run must have the same.

    `budgets` are answered one by one: milliseconds by device, the first device of each the one
    that is searched on.
    """

    budgets: tuple[dict[str, float], ...]
    space: str = "swin:micro"
    data: str = "scenes"
    confidence: float = 0.95  # that a prediction within the limit measures within the budget
    supernet: str = ""  # folder; empty for the shipped one
    source_run: str = ""  # directory of a run whose scores are known
    evaluations: int = 8
    search_images: int = 400
    test_images: int = 500
    searcher: str = "evolution"
    sampler: str = "trellis"
    batch: int = 8
    surrogate: bool = True
    race_error: float = 0.05
    max_params: float | None = None
    max_macs: float | None = None
    fresh: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        if self.searcher not in searcher_names():
            raise UnknownNameError("searcher", self.searcher, searcher_names())
        if not 0.5 <= self.confidence < 1:
            raise UsageError(
                f"a confidence is at least 0.5 and below 1, got {self.confidence}", "e.g. 0.95"
            )
        if not 0 <= self.race_error < 1:
            raise UsageError(
                f"the error of races is at least 0 and below 1, got {self.race_error}", "e.g. 0.05"
            )
        if self.batch < 1:
            raise UsageError(f"a batch is at least 1, got {self.batch}", "e.g. 8")
        if self.seed < 0:
            raise UsageError(f"a seed is at least 0, got {self.seed}", "e.g. 0")

    @property
    def device(self) -> str:
        """The device that is searched on."""
        return next(iter(self.budgets[0]))

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.budgets[0])

    def to_json(self) -> dict[str, Any]:
        """With the budget of the first answer and its device, as readers of a run want them."""
        own = asdict(self) | {"budgets": [dict(b) for b in self.budgets]}
        return {"budget_ms": self.budgets[0][self.device], "device": self.device, **own}


@dataclass(frozen=True)
class Distribution:
    """Where scores are computed; the result is the same anywhere on one kind of machine."""

    workers: int = 0
    ray_address: str | None = None
    gpus: float = 0.0  # of each worker
    timeout_s: float = 600.0  # of one candidate, by workers
    reuse_mb: int = 512  # activations that candidates share, by process

    def __post_init__(self) -> None:
        if self.gpus and not self.workers and self.ray_address is None:
            raise UsageError(
                "GPUs are given to workers, and there are none",
                "add --workers, or --ray-address for a cluster",
            )
