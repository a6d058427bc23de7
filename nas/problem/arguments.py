"""The arguments of a search over a user's own space, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.budget import Budget, positive_number, real_number
from nas.errors import UsageError
from nas.space.domains import Space
from nas.space.family import SearchSpace


def read_space(given: Any) -> Space[Any] | SearchSpace:
    """The space that is searched; `UsageError` if it is none."""
    if not isinstance(given, Space | SearchSpace):
        raise UsageError(
            f"space must be a nas.Space, a space of nas.load_space or its name, "
            f"got a {type(given).__name__}",
            "e.g. nas.Space(Net, width=nas.Choice(16, 32))",
        )
    return given


def read_budgets(given: str | float | Budget | Sequence[str | float | Budget]) -> list[float]:
    """One budget, or each of several, in the unit of costs; text and `Budget`s in milliseconds."""
    if isinstance(given, Iterable) and not isinstance(given, str):
        found = [number for budget in given for number in read_budgets(budget)]
        if not found:
            raise UsageError("a search needs a budget", "e.g. budget=20.0")
        return found
    own = Budget.parse(given) if isinstance(given, str) else given
    number = own.latency_ms if isinstance(own, Budget) else own
    return [positive_number("the budget", number)]


@dataclass(frozen=True)
class Bounds:
    """The lowest and the highest that a cost may be: infinite where there is no such bound."""

    low: float
    high: float

    @property
    def written(self) -> Any:
        """The upper bound alone, or both as JSON has them."""
        low, high = (None if math.isinf(bound) else bound for bound in (self.low, self.high))
        return high if low is None else [low, high]


def read_limits(given: Any) -> dict[str, tuple[Any, Bounds]]:
    """The further limits: a cost and its bounds for each name."""
    if not isinstance(given, Mapping):
        raise UsageError(
            f"limits must be a mapping of names, got {given!r:.60}",
            'e.g. limits={"memory": (cost, 5.0)}',
        )
    found = {}
    for name, pair in given.items():
        if name == "budget":
            raise UsageError("a further limit cannot be called budget", "give it another name")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError(
                f"the limit {name} must be a cost and its bound, got {pair!r:.60}",
                'e.g. limits={"memory": (cost, 5.0)}, or (cost, (2.0, 5.0))',
            )
        found[name] = (pair[0], _bounds(f"the limit {name}", pair[1]))
    return found


def _bounds(name: str, given: Any) -> Bounds:
    """An upper bound, or a pair of a lower and an upper one, of which one may be None."""
    if not isinstance(given, tuple | list):
        return Bounds(-math.inf, positive_number(name, given))
    if len(given) != 2 or all(bound is None for bound in given):
        raise UsageError(
            f"{name} must have two bounds, got {given!r:.60}", "e.g. (4e6, 5e6), or (4e6, None)"
        )
    low, high = given
    found = Bounds(
        -math.inf if low is None else positive_number(name, low),
        math.inf if high is None else positive_number(name, high),
    )
    if found.low > found.high:
        raise UsageError(
            f"{name} has a lower bound of {found.low:g} above the upper one of {found.high:g}",
            "write the lower one first",
        )
    return found


def read_share(name: str, given: Any) -> float:
    """A share; `UsageError` unless it is a number from 0 to 1."""
    if (share := real_number(name, given, 0)) > 1:
        raise UsageError(f"{name} must be at most 1, got {share:g}", "e.g. 0.25")
    return share
