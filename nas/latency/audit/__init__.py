"""What is wrong with a latency table: rules that each name the row and what mends it.

A search is only as good as its table, and tables are files that people copy, edit and mix up. A
rule looks at a table (with another one, or with its space where these are given) and gives
findings. Those that judge rows compare them with what noise explains, so that a table of a quiet
machine gives none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from nas.latency.audit import origin, rows
from nas.latency.audit.subject import ERROR, WARNING, Finding, Found, Subject
from nas.latency.table import LatencyTable
from nas.space.family import SearchSpace

__all__ = ["ERROR", "WARNING", "Finding", "as_json", "audit", "shortened"]

RULES: tuple[Callable[[Subject], Found], ...] = (
    origin.source,
    origin.altered,
    origin.device,
    origin.calibration,
    origin.coverage,
    origin.campaigns,
    origin.copies,
    rows.numbers,
    rows.fits,
    rows.steps,
    rows.noise,
    rows.speed,
)


def audit(
    table: LatencyTable, other: LatencyTable | None = None, *, space: SearchSpace | None = None
) -> list[Finding]:
    """Apply every rule to a table; the findings, errors first.

    With an `other` table, rows that were copied from it are found too. With the `space` that the
    table is of, missing rows, changed layer code, and sums that no longer fit the rows are found.
    """
    subject = Subject(table, other, space)
    found = [finding for rule in RULES for finding in rule(subject)]
    return sorted(found, key=lambda finding: finding.severity)


def shortened(findings: Sequence[Finding], most: int = 5) -> list[Finding]:
    """Findings for people to read: at most so many of one rule, then one that counts the rest."""
    shown: list[Finding] = []
    seen: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        seen[finding.rule, finding.severity] += 1
        if seen[finding.rule, finding.severity] <= most:
            shown.append(finding)
    for (rule, severity), n in seen.items():
        if n > most:
            at = max(i for i, f in enumerate(shown) if (f.rule, f.severity) == (rule, severity))
            fix = "list them all: vitnas audit --json"
            shown.insert(
                at + 1, Finding(rule, severity, "", f"{n - most} more rows like these", fix)
            )
    return shown


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings for machines: the numbers of errors and of warnings, and every finding."""
    counts = Counter(finding.severity for finding in findings)
    return {
        "errors": counts[ERROR],
        "warnings": counts[WARNING],
        "findings": [asdict(finding) for finding in findings],
    }
