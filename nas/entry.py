"""`nas.search`: one function for networks on a device, and for any space of a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from nas.errors import UsageError

if TYPE_CHECKING:
    from nas.budget import Budget
    from nas.problem.result import Exploration
    from nas.run_record import RunRecord
    from nas.space.domains import Space
    from nas.space.family import SearchSpace

    Budgets = str | float | Budget | Sequence[str | float | Budget]


@overload
def search(budget: Budgets, *, space: str = ..., **settings: Any) -> RunRecord: ...
@overload
def search(
    budget: Budgets,
    *,
    space: Space[Any] | SearchSpace,
    latency: Any,
    score: Any,
    **settings: Any,
) -> Exploration: ...
def search(budget: Budgets, *, space: Any = "swin:micro", **settings: Any) -> Any:
    """The best within a latency budget, or within each of several.

    `space` by name: the networks of a family, scored with the weights of a supernet and measured
    on a device; returns a `RunRecord` (`nas.run.main.search_networks`). `space`
    as a `Space` of your own, with a `latency` and a `score`: no model and no device
    (`nas.problem.search.search_space`); returns an `Exploration`.
    """
    if isinstance(space, str):
        from nas.run.main import search_networks

        return search_networks(budget, space=space, **settings)
    if "latency" not in settings or "score" not in settings:
        raise UsageError(
            "a space of your own needs a latency and a score",
            "nas.search(budget, space=..., latency=..., score=...)",
        )
    from nas.problem.search import search_space

    return search_space(space, budget, **settings)
