"""A latency table carried to a sibling device by a few measurements of each kind of layer.

What a device is good at differs by kind of layer far more than within a kind: so every kind gets a
factor (and an offset, where that predicts better) from its old times to its new ones. The rows that
were measured stay as measured, all others are predictions and say so; the error is that on rows
which the fit has not seen.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from nas.errors import TableError, UsageError
from nas.latency.fit import kendall_tau
from nas.latency.lines import Floats, choose_form, line, solve
from nas.latency.rows import Row
from nas.latency.table import LatencyTable
from nas.records import fingerprint

PER_KIND = 5  # rows of a kind that are fitted
CHECKS = 3  # rows that are only compared; of large kinds half the square root of their number
NOTE = "ported"  # of a row that was carried over
_CARRIED = ("measured", "emulated-count", "vendor-model")  # sources whose rows can be carried


class Chosen(NamedTuple):
    """The rows to measure on the new device."""

    fit: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def keys(self) -> set[str]:
        """The keys of all rows to measure."""
        return {*self.fit, *self.held_out}


@dataclass(frozen=True)
class Fit:
    """`new = scale * old + offset` for one kind of layer, and its error on rows not fitted."""

    kind: str
    form: str  # global, shrunk, scale or affine
    scale: float
    offset: float
    fitted_on: int
    held_out: int
    left_out_percent: float  # mean error of each fitted row when fitted without it
    mape_percent: float  # on the held-out rows; nan where none could be measured


@dataclass(frozen=True)
class Report:
    """How well a port predicts rows that it has not seen."""

    fitted_on: int
    held_out: int
    mape_percent: float  # each kind weighed by how many of its rows are predicted
    p95_percent: float
    bias_percent: float
    kendall_tau: float
    left_out_percent: float  # the mean error of fitted rows when fitted without them, weighed alike
    kinds: tuple[Fit, ...]

    def to_toml(self) -> dict[str, Any]:
        """The entries of the manifest; what is not known (not a number) is left out."""
        kinds = {fit.kind: _known_of(asdict(fit)) for fit in self.kinds}
        return _known_of(asdict(self)) | {"kinds": kinds}


def _known_of(record: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v
        for k, v in record.items()
        if k != "kind" and not (isinstance(v, float) and not math.isfinite(v))
    }


def kind_of(key: str) -> str:
    """The module of a row; its int8 form is another kind, for devices differ there most."""
    module = key.partition("(")[0]
    return f"{module} int8" if "bits=8," in key or "bits=8)" in key else module


def choose_rows(table: LatencyTable, per_kind: int = PER_KIND, checks: int = CHECKS) -> Chosen:
    """Rows of each kind, the same every time: to fit, spread over the range of times.

    Those to fit have times nearest to equal steps between the extremes, in log; those to check
    have equal steps in rank, so that their error is that of a usual row.
    """
    if per_kind < 1 or checks < 1:
        raise UsageError("a port needs a row of each kind to fit and one to check", "e.g. --rows 5")
    fit: list[str] = []
    held: list[str] = []
    for rows in _by_kind(table.rows.values()).values():
        ordered = sorted(rows, key=lambda row: (row.median, row.key))
        # A kind of few rows is measured whole: one row more than are fitted is left to check.
        n = min(per_kind, max(len(ordered) - 1, 1))
        logs = np.log([row.median for row in ordered])
        chosen = _nearest(logs, np.linspace(logs[0], logs[-1], n))
        rest = [i for i in range(len(ordered)) if i not in chosen]
        m = min(max(checks, round(math.sqrt(len(ordered)) / 2)), len(rest))
        steps = [rest[int((i + 0.5) * len(rest) / m)] for i in range(m)]
        fit += [ordered[i].key for i in chosen]
        held += [ordered[i].key for i in steps]
    return Chosen(tuple(fit), tuple(held))


def _nearest(values: Floats, targets: Floats) -> list[int]:
    """Positions of distinct values nearest to each target; extremes first."""
    free = np.ones(len(values), bool)
    chosen = []
    for target in (targets[0], *targets[:0:-1]):
        i = int(np.where(free, np.abs(values - target), np.inf).argmin())
        free[i] = False
        chosen.append(i)
    return sorted(chosen)


def carry(
    table: LatencyTable, chosen: Chosen, measured: Mapping[str, Row]
) -> tuple[dict[str, Row], Report]:
    """Every row of `table` on the device of `measured`: measured where it was, else predicted.

    Every measured row that is not among those to fit is a check, chosen or not (whole networks were
    timed layer by layer, perhaps). Rows that could not be had on either device stay without
    numbers, and so do those of a kind of which no chosen row ran. Raises `TableError` where too
    little was measured to state an error.
    """
    if unknown := [key for key in measured if key not in table.rows]:
        raise TableError(
            f"{unknown[0]} was measured, but the table to port has no such row",
            "port a table of the same space and version",
        )
    old = {key: row.median for key, row in table.rows.items() if _known(row)}
    pairs = {k: (old[k], r.median) for k, r in measured.items() if k in old and _known(r)}
    fitted = [key for key in chosen.fit if key in pairs]
    held = [key for key in pairs if key not in chosen.fit]
    if len(fitted) < 2 or not held:
        raise TableError(
            f"{len(fitted)} rows to fit and {len(held)} to check could be measured",
            "measure more of them: vitnas profile --from TABLE --rows 5",
        )
    fits = _fits(pairs, fitted, held)
    rows = {key: _carried(row, measured.get(key), fits) for key, row in table.rows.items()}
    predicted = Counter(kind_of(key) for key, row in rows.items() if row.note == NOTE)
    return rows, _report(pairs, fitted, held, fits, predicted)


def _known(row: Row) -> bool:
    return row.usable and math.isfinite(row.median) and row.median > 0


def _by_kind(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if _known(row):
            found[kind_of(row.key)].append(row)
    return found


def _carried(old: Row, measured: Row | None, fits: Mapping[str, Fit]) -> Row:
    if measured is not None:
        return measured
    if not _known(old):
        return Row.without_numbers(old.key, f"failed: had no time to port: {old.note}")
    fit = fits.get(kind_of(old.key))
    if fit is None:
        return Row.without_numbers(old.key, "failed: no row of this kind ran, none was ported")
    predicted = round(float(line(fit.scale, fit.offset, np.array(old.median))), 5)
    return Row(old.key, predicted, predicted, 0.0, 0.0, 0, NOTE)


def _fits(
    pairs: Mapping[str, tuple[float, float]], fitted: Sequence[str], held: Sequence[str]
) -> dict[str, Fit]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for key in fitted:
        kinds[kind_of(key)].append(key)
    fits = {}
    for kind, keys in kinds.items():
        own = np.array([pairs[key] for key in keys])
        rest = np.array([pairs[key] for key in fitted if key not in keys]).reshape(-1, 2)
        form, left_out = choose_form(own, rest)
        scale, offset = solve(form, own, rest)
        checks = np.array([pairs[key] for key in held if kind_of(key) == kind]).reshape(-1, 2)
        error = np.abs(line(scale, offset, checks[:, 0]) / checks[:, 1] - 1)
        fits[kind] = Fit(
            kind,
            form,
            float(f"{scale:.6g}"),
            float(f"{offset:.6g}"),
            len(own),
            len(checks),
            round(100 * left_out, 2),
            round(100 * float(error.mean()), 2) if len(checks) else math.nan,
        )
    return fits


def _report(
    pairs: Mapping[str, tuple[float, float]],
    fitted: Sequence[str],
    held: Sequence[str],
    fits: Mapping[str, Fit],
    rows: Mapping[str, int],
) -> Report:
    checked = [key for key in held if kind_of(key) in fits]
    forms = [fits[kind_of(key)] for key in checked]
    predicted = np.array(
        [line(f.scale, f.offset, pairs[k][0]) for f, k in zip(forms, checked)]
    )  # fmt: skip
    measured = np.array([pairs[key][1] for key in checked])
    error = 100 * (predicted / measured - 1)
    # So many predicted rows does each check stand for.
    weights = np.array([max(rows[fit.kind], 1e-3) / fit.held_out for fit in forms])
    return Report(
        fitted_on=len(fitted),
        held_out=len(checked),
        mape_percent=round(float(np.average(np.abs(error), weights=weights)), 3),
        p95_percent=round(float(np.percentile(np.abs(error), 95)), 3),
        bias_percent=round(float(np.average(error, weights=weights)), 3),
        kendall_tau=round(kendall_tau(predicted, measured), 4) if len(checked) > 1 else 1.0,
        left_out_percent=_weighted(
            [(fit.left_out_percent, rows[kind]) for kind, fit in fits.items()]
        ),
        kinds=tuple(fits.values()),
    )


def _weighted(errors: Sequence[tuple[float, int]]) -> float:
    known = [(error, max(rows, 1e-3)) for error, rows in errors if math.isfinite(error)]
    return (
        round(float(np.average([e for e, _ in known], weights=[w for _, w in known])), 3)
        if known
        else math.nan
    )


@dataclass(frozen=True)
class Port:
    """A table to carry over, and the rows of it that are measured on the new device."""

    table: LatencyTable
    chosen: Chosen

    def carry(self, measured: Mapping[str, Row]) -> tuple[dict[str, Row], Report]:
        """Every row on the new device, and how well that predicts; see `carry`."""
        return carry(self.table, self.chosen, measured)


def check(
    table: LatencyTable, device: Mapping[str, Any], unit: str, layer_code: str, context: str
) -> None:
    """Raise `TableError` where rows cannot be carried over by a factor for each kind.

    All arguments but the table are those of the new device. Counts of instructions may be
    carried to milliseconds: that is what they are for.
    """
    manifest = table.manifest
    old = manifest["device"]
    fix = "measure the new device in full: vitnas profile without --from"
    for name in ("batch", "dtype"):
        if old.get(name) != device.get(name):
            raise TableError(
                f"cannot port from {name} {old.get(name)} to {device.get(name)}: "
                "the cost of layers does not scale by one factor there",
                fix,
            )
    if manifest["source"] not in _CARRIED:
        raise TableError(f"cannot port a table that is {manifest['source']} itself", fix)
    counts = manifest["source"] == "emulated-count" and unit == "ms"
    if table.unit != unit and not counts:
        raise TableError(f"cannot port {table.unit} to {unit}", fix)
    if table.unit == unit and manifest.get("context") != context:
        raise TableError(
            f"cannot port rows timed {manifest.get('context')} to rows timed {context}",
            f"time them alike: --context {manifest.get('context')}",
        )
    if manifest["layer_code"] != layer_code:
        raise TableError("the table to port is of layers of another version", fix)


def provenance(table: LatencyTable, source: str, report: Report) -> dict[str, Any]:
    """What the manifest of a ported table says: `source` is that of the rows that were measured."""
    old = table.manifest
    names = ("name", "processor", "machine", "runtime", "runtime_version", "threads")
    return {
        "source": "ported",
        "measured_source": source,
        "ported_from": {
            **{name: old["device"][name] for name in names if name in old["device"]},
            "source": old["source"],
            "unit": table.unit,
            "date": old["date"],
            "campaign": old.get("campaign", ""),
            "rows": fingerprint(*(f"{k} {r.median}" for k, r in sorted(table.rows.items()))),
        },
        "port": report.to_toml(),
    }
