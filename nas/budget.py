"""Budgets: the time that a winner may take on devices, limits of counts, times as text, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from nas.errors import UsageError

_UNIT_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_UNIT_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+|nan|inf)"
_FIX = "write a number and a unit, e.g. --budget 20ms"


@dataclass(frozen=True)
class Budget:
    """An upper limit on the latency of one inference, on a device if one is named.

    `Budget(latency_ms=20.0)` and `Budget.parse("20ms")` are the same; units are us, ms and s.
    `Budget.parse("ethos-u85-256=8ms")` names a device.
    """

    latency_ms: float
    device: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise UsageError(f"a budget must be a positive time, got {self.latency_ms} ms", _FIX)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that a text such as `20ms` says; raises `UsageError`."""
        device, _, time = text.rpartition("=")
        match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-zµ]*)\s*", time.lower())
        if match is None:
            raise UsageError(f"cannot read the budget {text!r}", _FIX)
        number, unit = float(match[1]), match[2].replace("µ", "u")
        if unit not in _UNIT_MS:
            problem = f"has the unknown unit {match[2]!r}" if unit else "has no unit"
            raise UsageError(f"the budget {text!r} {problem}; known: us, ms, s", _FIX)
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"the budget {text!r} is not a positive time", _FIX)
        return cls(latency_ms=number * _UNIT_MS[unit], device=device.strip())

    def __str__(self) -> str:
        time = f"{self.latency_ms:g}ms"
        return f"{self.device}={time}" if self.device else time


def alternatives(budgets: Iterable[Budget], device: str) -> list[dict[str, float]]:
    """The budgets that are answered one by one, each in milliseconds by device.

    Budgets of different devices are kept together; several of the same device are answered one by
    one. `device` is that of budgets without a name. The first device is the one that is searched
    on: that with several budgets, else that of the first budget.
    """
    by_device: dict[str, list[float]] = {}
    for budget in budgets:
        own = by_device.setdefault(budget.device or device, [])
        if budget.latency_ms not in own:
            own.append(budget.latency_ms)
    if not by_device:
        raise UsageError("a search needs a budget", _FIX)
    several = [name for name, own in by_device.items() if len(own) > 1]
    if len(several) > 1:
        raise UsageError(
            f"several budgets for each of {' and '.join(several)} can be combined in many ways",
            "give several budgets for one device only",
        )
    main = several[0] if several else next(iter(by_device))
    others = {name: own[0] for name, own in by_device.items() if name != main}
    return [{main: ms, **others} for ms in by_device[main]]


def readable_ms(ms: float | None, places: int = 2) -> str:
    """Milliseconds with so many decimals, or three digits where these would not show two of them.

    `12.35`, `0.0123`; `-` for None, which stands for what was not measured.
    """
    if ms is None:
        return "-"
    return f"{ms:.{places}f}" if ms >= 10 ** (1 - places) or ms == 0 else f"{ms:.3g}"


def parse_count(text: str, what: str) -> float:
    """The number that `5M`, `300k` or `1.5G` says; an error says `what` it is a number of."""
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-z]*)\s*", text.lower())
    factor = _UNIT_COUNT.get(match[2]) if match else None
    if match is None or factor is None:
        raise UsageError(f"cannot read {text!r} as a number of {what}", "e.g. 5M, 300k or 1.5G")
    number = float(match[1]) * factor
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"{text!r} is not a positive number of {what}", "e.g. 5M, 300k or 1.5G")
    return number


def whole_number(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> int:
    """What is given, as an int; `UsageError` unless it is a whole number from `least` to `most`."""
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or not least <= int(given) <= most:
        highest = f", at most {most:.0f}" if math.isfinite(most) else ""
        raise UsageError(
            f"{name} must be a whole number{_at_least(least)}{highest}, got {_short(given)}",
            "e.g. 8",
        )
    return int(given)


def real_number(name: str, given: Any, least: float = -math.inf) -> float:
    """What is given, as a float; `UsageError` unless it is a finite number, `least` or more."""
    number = isinstance(given, Real) and not isinstance(given, bool)
    if not number or not (math.isfinite(given) and float(given) >= least):
        raise UsageError(
            f"{name} must be a number{_at_least(least)}, got {_short(given)}", "e.g. 0.5"
        )
    return float(given)


def positive_number(name: str, given: Any) -> float:
    """What is given, as a float, also as text such as `5M`; `UsageError` unless it is above 0."""
    if isinstance(given, str):
        return parse_count(given, name)
    number = isinstance(given, Real) and not isinstance(given, bool)
    if not number or not (math.isfinite(given) and given > 0):
        raise UsageError(
            f"{name} must be a positive number, got {_short(given)}", "e.g. 5, 5e6 or '5M'"
        )
    return float(given)


def _at_least(least: float) -> str:
    return f", at least {least:g}" if math.isfinite(least) else ""


def _short(given: Any) -> str:
    return f"{given!r:.60}"
