"""`nas.search`: one function for networks on a device, and for any space of a user's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from nas.errors import UnknownNameError, UsageError
from nas.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

    from nas.budget import Budget
    from nas.problem.result import Exploration
    from nas.run_record import RunRecord
    from nas.space.domains import Space
    from nas.space.family import SearchSpace

    Budgets = str | float | Budget | Sequence[str | float | Budget]


@overload
def search(
    budget: Budgets,
    *,
    space: str = ...,
    device: str = ...,
    data: str = ...,
    confidence: float = ...,
    quantile: float = ...,
    max_params: float | str | None = ...,
    max_macs: float | str | None = ...,
    min_params: float | str | None = ...,
    min_macs: float | str | None = ...,
    supernet: str | Path = ...,
    table: str | Path | Sequence[str | Path] = ...,
    out: str | Path | None = ...,
    resume: bool = ...,
    source_run: str | Path = ...,
    fresh: bool = ...,
    evaluations: int = ...,
    search_images: int = ...,
    final_images: int = ...,
    test_images: int = ...,
    score: str = ...,
    reference_images: int = ...,
    searcher: str = ...,
    sampler: str = ...,
    batch: int = ...,
    surrogate: bool = ...,
    race_error: float = ...,
    seed: int = ...,
    workers: int = ...,
    ray_address: str | None = ...,
    gpus: float = ...,
    timeout_s: float = ...,
    reuse_mb: int = ...,
) -> RunRecord: ...
@overload
def search(
    budget: Budgets,
    *,
    space: Space[Any] | SearchSpace,
    latency: Any,
    score: Callable[[Any], float] | DataFrame,
    evaluations: int = ...,
    seed: int = ...,
    searcher: str = ...,
    sampler: str = ...,
    noise: float = ...,
    limits: Mapping[str, tuple[Any, Any]] | None = ...,
    batch: int = ...,
    workers: int = ...,
    ray_address: str | None = ...,
    timeout_s: float = ...,
    failed_share: float = ...,
    latency_calls: int | None = ...,
    out: str | Path | None = ...,
    resume: bool = ...,
) -> Exploration: ...
def search(budget: Budgets, *, space: Any = Settings.space, **keywords: Any) -> Any:
    """The best within a latency budget, or within each of several.

    `space` by name: the networks of a family, scored with the weights of a supernet and measured
    on a device; returns a `RunRecord` (`nas.run.main.search_networks`). `space` as a `Space` of
    your own, with a `latency` and a `score`: no model and no device; returns an `Exploration`
    (`nas.problem.search.search_space`). The keywords are explained there.
    """
    out = keywords.get("out")
    if not isinstance(out, str | os.PathLike | None):
        raise UsageError(f"out must be the path of a folder, got {out!r:.60}", 'e.g. "runs/first"')
    if isinstance(space, str):
        from nas.run.main import search_networks

        _require_known(search_networks, keywords, "nas.search")
        return search_networks(budget, space=space, **keywords)
    if "latency" not in keywords or "score" not in keywords:
        raise UsageError(
            "a space of your own needs a latency and a score",
            "nas.search(budget, space=..., latency=..., score=...)",
        )
    from nas.problem.search import search_space

    _require_known(search_space, keywords, "nas.search over a space of your own")
    return search_space(space, budget, **keywords)


def _require_known(function: Callable[..., Any], keywords: Mapping[str, Any], what: str) -> None:
    """Raise `UnknownNameError` for the first keyword that a function does not have."""
    known = inspect.signature(function).parameters
    for name in keywords:
        if name not in known:
            raise UnknownNameError(f"keyword of {what}", name, known)
