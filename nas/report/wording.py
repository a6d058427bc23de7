"""Words and numbers of a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any

from nas.budget import Budget, readable_ms
from nas.latency.fit import Agreement
from nas.run_record import Answer, RunRecord
from nas.settings import DEVICE, Settings
from nas.strategy.quality import Quality

_ROUND = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # budgets of a ladder, in a decade
SHOWN = 0.05  # points, the least that are not written as 0.0
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
    compared = lead(answer)
    if not compared:
        return f"{text}; no dense network fits."
    return f"{text}; it is {compared} found within it.{better(answer)}"


def lead(answer: Answer) -> str:
    """What the winner is beside the best dense network of its budget; "" where there is none."""
    gain = above_dense(answer)
    if gain is None:
        return ""
    if is_dense(answer):
        return "itself dense: the best dense network"
    side, error = "above" if gain >= 0 else "below", answer.above_dense_error_points
    return f"{points(abs(gain), error)} {side} the best dense network"


def points(difference: float, error: float | None) -> str:
    """A difference of accuracies, with its standard error where that is known."""
    spread = "" if error is None else f" ± {error:.1f}"
    return f"{difference:.1f}{spread} points"


def is_dense(answer: Answer) -> bool:
    """Whether the winner is the best dense network, and so prunes nothing."""
    dense = answer.baseline("best dense")
    return dense is not None and dense.id == answer.winner.id


def better(answer: Answer) -> str:
    """A sentence on the most accurate baseline that beats the winner at less time; "" for none.

    It beats it by what was measured, and on the test split, which has chosen neither.
    """
    w = answer.winner
    found = [
        (c.test_percent - w.test_percent, c)
        for c in answer.baselines
        if c.measured_ms is not None and c.measured_ms < w.measured_ms
        if c.test_percent is not None and c.test_percent >= w.test_percent + SHOWN
    ]
    if not found:
        return ""
    gain, best = max(found, key=lambda pair: pair[0])
    more = points(gain, best.difference_error_points)
    return f" The {best.name} is faster and, on the test split, {more} above the winner."


def above_dense(answer: Answer) -> float | None:
    """Points of test accuracy that the winner is above the best dense network of its budget."""
    dense = answer.baseline("best dense")
    if dense is None or dense.test_percent is None:
        return None
    return answer.winner.test_percent - dense.test_percent


def draws(record: RunRecord) -> str:
    """A sentence on how many random draws the random baselines are the best of; "" for none."""
    counts = {a.budget_ms: a.random_draws for a in record.by_budget if a.random_draws}
    if not counts:
        return ""
    if len(set(counts.values())) == 1 and len(counts) == len(record.answers):
        return f" The random baseline is the best of {min(counts.values()):,} draws."
    each = ", ".join(f"{n:,} draws within {ms:g} ms" for ms, n in counts.items())
    return f" The random baseline is the best of {each}."


def agreed(agreement: Agreement, record: RunRecord) -> str:
    """How the table agrees with the networks that a run has measured, in one line."""
    n = agreement.networks
    return (
        f"{n} {'networks' if n > 1 else 'network'} of this run took {agreement.ratio:.3f} of what "
        f"the table predicted (median): it erred by {agreement.mape_percent:.1f} % in the mean, "
        f"and {agreement.inside_interval} of {n} lie inside its {100 * record.confidence:g} % "
        "interval"
    )


def unused(agreement: Agreement, record: RunRecord) -> str:
    """What networks that ran faster than predicted leave of the budgets, in one line.

    "" where that is less than the error that the table states, or a slower network is not there.
    """
    faster, least = 1 - agreement.ratio, record.table.mape_percent / 100
    left = []
    for answer in record.by_budget:
        w, budget = answer.winner, answer.budget_ms
        ms = min(faster * budget, budget - (w.measured_quantile_ms or w.measured_ms))
        if ms > least * budget and answer.feasible.slowest_ms > answer.limit_ms:
            several = len(record.answers) > 1
            left.append(f"{ms:.2g} ms of {f'{budget:g} ms' if several else 'the budget'}")
    if not left:
        return ""
    return (
        f"networks ran {100 * faster:.1f} % faster than predicted: about {', '.join(left)} "
        f"{'is' if len(left) == 1 else 'are'} unused"
    )


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
