"""Words and numbers of a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any

from nas.budget import Budget, readable_ms
from nas.run_record import Answer, RunRecord
from nas.settings import DEVICE, Settings
from nas.strategy.quality import Quality

_ROUND = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # budgets of a ladder, in a decade
_TIMES = " \N{MULTIPLICATION SIGN} "
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def command(settings: Settings) -> str:
    """The command line of a run, with every option that differs from its default."""
    first, *_ = settings.budgets
    device, *others = first
    words = ["vitnas", "search"]
    alternatives = [Budget(budgets[device]) for budgets in settings.budgets]
    for budget in [*alternatives, *(Budget(first[other], other) for other in others)]:
        words += ["--budget", str(budget)]
    if device != DEVICE:
        words += ["--device", device]
    for own in fields(Settings):
        value = getattr(settings, own.name)
        if own.name == "budgets" or value == own.default:
            continue
        option = own.metadata["option"].name or own.name.replace("_", "-")
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
    """A count as a person reads it: 12,345 or 1.2 × 10¹²."""
    if n < 10**7:
        return f"{n:,}"
    mantissa, _, exponent = f"{Decimal(n):.1e}".partition("e+")
    return f"{mantissa}{_TIMES}10{exponent.translate(_SUPERSCRIPTS)}"


def odds(part: int, whole: int) -> str:
    """How often a uniform draw from the whole is in the part: `62 %`, or `1 in 1.2 × 10¹²`."""
    if not part:
        return "none"
    return f"{100 * part / whole:.0f} %" if 10 * part >= whole else f"1 in {number(whole // part)}"


def verdict(quality: Quality) -> str:
    """What the gap to the bound means, beside the error of the surrogate that gives both."""
    assert quality.gap is not None
    assert quality.error is not None  # both or neither
    return "within its error" if quality.gap <= quality.error else "more than its error"


def headline(record: RunRecord) -> str:
    """The result in one sentence; one budget is compared with the best dense network that fits."""
    answers = record.by_budget
    if len(answers) > 1:
        low, high = answers[0].winner, answers[-1].winner
        if len({a.winner.id for a in answers}) == 1:
            every = "both" if len(answers) == 2 else f"all {len(answers)}"
            return (
                f"{low.test_percent:.1f} % in {readable_ms(low.measured_ms, 1)} ms: "
                f"one network answers {every} budgets"
            )
        return (
            f"{len(answers)} budgets answered, from {low.test_percent:.1f} % in "
            f"{readable_ms(low.measured_ms, 1)} ms to {high.test_percent:.1f} % in "
            f"{readable_ms(high.measured_ms, 1)} ms"
        )
    (answer,) = answers
    w, budget = answer.winner, answer.budget_ms
    ms, often = w.measured_ms, ""
    if w.measured_quantile_ms is not None:
        ms, often = w.measured_quantile_ms, f" for {100 * record.quantile:g} % of inferences"
    text = (
        f"{w.test_percent:.1f} % in {readable_ms(ms, 1)} ms{often}: the winner uses "
        f"{100 * ms / budget:.0f} % of the {budget:g} ms budget"
    )
    gain = above_dense(answer)
    if gain is None:
        return text + "; no dense network fits."
    side = "above" if gain >= 0 else "below"
    return f"{text}, {abs(gain):.1f} points {side} the best dense network found within it."


def above_dense(answer: Answer) -> float | None:
    """Points of test accuracy that the winner is above the best dense network of its budget."""
    dense = answer.baseline("best dense")
    if dense is None or dense.test_percent is None:
        return None
    return answer.winner.test_percent - dense.test_percent


def ladder(
    archive: Sequence[tuple[float, float]], limit: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Round budgets in ms, each with the best known accuracy whose prediction fits its limit.

    `archive` holds predicted ms and accuracies in percent; `limit` says what a prediction may be
    within a budget. Budgets that add nothing are left out.
    """
    steps: list[tuple[float, float]] = []
    for decade in range(-4, 6):
        for factor in _ROUND:
            budget = float(f"{factor}e{decade}")
            reach = limit(budget)
            fits = [percent for ms, percent in archive if ms <= reach]
            best = max(fits, default=0.0)
            if fits and (not steps or best >= steps[-1][1] + 0.05):
                steps.append((budget, best))
    return steps


def class_scores(record: RunRecord) -> list[tuple[str, list[float | None]]]:
    """The test accuracies of each class, by its name: of winner and baselines of the lowest budget.

    Empty where the metric of the task has none. A network that was tested before they were recorded
    has None everywhere.
    """
    answer = record.by_budget[0]
    networks = [answer.winner, *answer.baselines]
    count = len(answer.winner.test_by_class)
    names = record.task.get("classes")
    called = names if isinstance(names, list) else range(count)
    by_class = [n.test_by_class or (None,) * count for n in networks]
    return [(str(name), list(row)) for name, row in zip(called, zip(*by_class))]
