"""What the winner may cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from nas.errors import UsageError

_UNIT_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_FIX = "write a number and a unit, e.g. --budget 20ms"


@dataclass(frozen=True)
class Budget:
    """An upper limit on the latency of one inference.

    `Budget(latency_ms=20.0)` and `Budget.parse("20ms")` are the same; units are us, ms and s.
    """

    latency_ms: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise UsageError(f"a budget must be a positive time, got {self.latency_ms} ms", _FIX)

    @classmethod
    def parse(cls, text: str) -> Budget:
        match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+|nan|inf))\s*([a-zµ]*)\s*", text.lower())
        if match is None:
            raise UsageError(f"cannot read the budget {text!r}", _FIX)
        number, unit = float(match[1]), match[2].replace("µ", "u")
        if unit not in _UNIT_MS:
            problem = f"has the unknown unit {match[2]!r}" if unit else "has no unit"
            raise UsageError(f"the budget {text!r} {problem}; known: us, ms, s", _FIX)
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"the budget {text!r} is not a positive time", _FIX)
        return cls(latency_ms=number * _UNIT_MS[unit])

    def __str__(self) -> str:
        return f"{self.latency_ms:g}ms"
