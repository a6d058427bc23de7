"""What a report says in words and numbers of what a run has recorded."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any

from nas.budget import Budget
from nas.settings import Settings

_DEVICE = "torch-cpu"  # that of a search that names none
_OPTIONS = {"source_run": "from"}  # where a setting has another name on the command line
_ROUND = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # budgets of a ladder, in a decade
_TIMES = " \N{MULTIPLICATION SIGN} "
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_NOT_JUDGED = ("bound", "gap", "error", "gain_10_percent")
_OLD: dict[str, Any] = {  # what runs of version 0.1 have not recorded
    "verb": "measured",
    "hypervolume": [],
    "set_aside": 0,
    "dropped": 0,
    "imported_scores": 0,
}


def complete(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` holds, with defaults for what an earlier version did not record.

    Its answers are sorted by budget; what stands beside them is of the first that was asked for.
    """
    settings = {f.name: f.default for f in fields(Settings) if f.name != "budgets"}
    whole = {**settings, **_OLD, **result}
    answers = result.get("answers") or [whole]
    answers = [_complete(answer, whole["device"]) for answer in answers]
    return {**whole, "answers": sorted(answers, key=lambda a: float(a["budget_ms"]))}


def _complete(answer: Mapping[str, Any], device: str) -> dict[str, Any]:
    feasible = answer["feasible"]
    every, fitting = feasible["architectures"], feasible["within_budget"]
    quality = {"architectures": every, "within_budget": fitting}
    exported = answer.get("exported", {})
    if "folder" not in exported:  # once there was one a run
        exported = {"folder": "winner", "differences": exported}
    return {
        "budgets": {device: answer["budget_ms"]},
        "limit_ms": answer["budget_ms"],
        **answer,
        "exported": exported,
        "quality": answer.get("quality") or {**dict.fromkeys(_NOT_JUDGED), **quality},
    }


def command(settings: Mapping[str, Any]) -> str:
    """The command line of a run: every option that is not its default."""
    first, *_ = budgets = settings.get("budgets") or [{settings["device"]: settings["budget_ms"]}]
    device, *others = first
    words = ["vitnas", "search"]
    for budget in [*(Budget(b[device]) for b in budgets), *(Budget(first[o], o) for o in others)]:
        words += ["--budget", str(budget)]
    if device != _DEVICE:
        words += ["--device", device]
    for field in fields(Settings)[1:]:
        value = settings.get(field.name, field.default)
        option = _OPTIONS.get(field.name, field.name.replace("_", "-"))
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", _value(value)]
    return shlex.join(words)


def _value(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.9g}{unit}"
    return f"{value:.9g}"


def number(n: int) -> str:
    """A count to be read: 12,345 or 1.2 × 10¹²."""
    if n < 10**7:
        return f"{n:,}"
    mantissa, _, exponent = f"{Decimal(n):.1e}".partition("e+")
    return f"{mantissa}{_TIMES}10{exponent.translate(_SUPERSCRIPTS)}"


def odds(part: int, whole: int) -> str:
    """How often a uniform draw from the whole is in the part: `62 %`, or `1 in 1.2 × 10¹²`."""
    if not part:
        return "none"
    return f"{100 * part / whole:.0f} %" if 10 * part >= whole else f"1 in {number(whole // part)}"


def verdict(quality: Mapping[str, Any]) -> str:
    """What the gap to the bound means, beside the error of what it was computed with."""
    return "within its error" if quality["gap"] <= quality["error"] else "more than its error"


def headline(result: Mapping[str, Any]) -> str:
    """The result in one sentence; of one budget against the best dense network that also fits."""
    answers = result["answers"]
    if len(answers) > 1:
        low, high = answers[0]["winner"], answers[-1]["winner"]
        if len({a["winner"]["id"] for a in answers}) == 1:
            every = "both" if len(answers) == 2 else f"all {len(answers)}"
            return (
                f"{low['test_top1_percent']:.1f} % in {low['measured_ms']:.1f} ms: "
                f"one network answers {every} budgets"
            )
        return (
            f"{len(answers)} budgets answered, from {low['test_top1_percent']:.1f} % in "
            f"{low['measured_ms']:.1f} ms to {high['test_top1_percent']:.1f} % in "
            f"{high['measured_ms']:.1f} ms"
        )
    (answer,) = answers
    w, budget = answer["winner"], answer["budget_ms"]
    text = (
        f"{w['test_top1_percent']:.1f} % in {w['measured_ms']:.1f} ms: the winner uses "
        f"{100 * w['measured_ms'] / budget:.0f} % of the {budget:g} ms budget"
    )
    gain = above_dense(answer)
    if gain is None:
        return text + "; no dense network fits."
    side = "above" if gain >= 0 else "below"
    return f"{text}, {abs(gain):.1f} points {side} the best dense network found within it."


def above_dense(answer: Mapping[str, Any]) -> float | None:
    """Points of test accuracy that the winner is above the best dense network of its budget."""
    dense = next((b for b in answer["baselines"] if b["name"] == "best dense"), None)
    if dense is None:
        return None
    return float(answer["winner"]["test_top1_percent"] - dense["test_top1_percent"])


def ladder(
    archive: Sequence[Mapping[str, float]], limit: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Round budgets in ms, each with the best known accuracy whose prediction fits its limit.

    `limit` says what a prediction may be within a budget. Budgets that add nothing are left out.
    """
    steps: list[tuple[float, float]] = []
    for decade in range(-4, 6):
        for factor in _ROUND:
            budget = float(f"{factor}e{decade}")
            reach = limit(budget)
            fits = [r["expected_top1_percent"] for r in archive if r["predicted_ms"] <= reach]
            best = max(fits, default=0.0)
            if fits and (not steps or best >= steps[-1][1] + 0.05):
                steps.append((budget, best))
    return steps
