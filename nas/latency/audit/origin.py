"""Rules about where a table comes from: its manifest, its networks, other tables, its space."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import TableError, UsageError
from nas.latency.audit.copies import copied, repeated
from nas.latency.audit.subject import ERROR, EXACT, SLIP, SURE, WARNING, Finding, Found, Subject
from nas.latency.fit import Calibration
from nas.latency.rows import Reference
from nas.latency.table import LatencyTable
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.versions import layer_code

EMULATORS = ("qemu", "emul", "gem5", "simul", "vela")
_OWN = ("measured", "vendor-model", "emulated-count", "emulated-time")
KNOWN = (*_OWN, "external", "ported")
USEFUL = 5.0  # percent of error above which small differences of a search mean nothing


def coverage(s: Subject) -> Found:
    """Find rows that the space needs and the table lacks, and layer code that has changed."""
    if s.space is None:
        return
    from nas.trellis.graph import Graph

    space = s.space
    if resolutions := s.manifest.get("resolutions"):
        oblong = (tuple(r) if isinstance(r, list) else r for r in resolutions)
        space = space.restrict("resolution", *oblong)
    found = layer_code(s.space.family)
    if (stored := s.manifest.get("layer_code")) not in (None, found):
        message = f"the layers were of other code ({stored}) than now ({found})"
        yield Finding("stale", ERROR, "", message, s.mend)
    # What is left of the space without rows that cannot be had: others may be of use only there.
    unusable = {key for key, row in s.table.rows.items() if not row.usable}
    for key in Graph.of(space).without(unusable).items():
        if key not in s.table.rows:
            fix = f"measure it: {s.once_more}"
            yield Finding("missing", ERROR, key, f"{space.name} needs it, the table lacks it", fix)


def campaigns(s: Subject) -> Found:
    """Find rows that were not measured together with the others."""
    campaigns = s.manifest.get("campaign")
    if isinstance(campaigns, list) and len(campaigns) > 1:
        message = (
            f"rows of {len(campaigns)} campaigns: the machine may not have been as fast in all"
        )
        yield Finding("campaigns", WARNING, "", message, f"measure all at once: {s.again}")
    rounds = s.manifest.get("rounds", 0)
    samples = np.array([row.samples for row in s.rows])
    short = (samples < rounds) & (samples > 0)
    if not short.any() or s.manifest.get("source") in EXACT:
        return
    if short.mean() > 0.5:
        message = f"most rows have fewer samples than its {rounds} rounds: it was ended early"
        yield Finding("campaigns", WARNING, "", message, f"let it end: {s.once_more}")
        return
    level = _level(s, short)
    for i in np.flatnonzero(short):
        message = f"{samples[i]} samples in a table of {rounds} rounds{level}"
        yield Finding("campaigns", WARNING, s.rows[i].key, message, s.mend)


def _level(s: Subject, part: NDArray[np.bool_]) -> str:
    """Words that say by how much these rows lie off others of their kinds; "" if they do not."""
    off = np.full(len(s.rows), np.nan)
    for kind in s.kinds:
        if fit := kind.residuals(s.costs[kind.positions]):
            off[kind.positions] = fit[0]
    a, b = off[part & np.isfinite(off)], off[~part & np.isfinite(off)]
    if min(len(a), len(b)) < 5:
        return ""
    step = float(np.median(a) - np.median(b))
    error = 1.2533 * math.hypot(a.std() / math.sqrt(len(a)), b.std() / math.sqrt(len(b)))
    return f"; such rows are {math.expm1(step):+.0%} off" if abs(step) > SURE * error else ""


def source(s: Subject) -> Found:
    """Find a source that the rest of the manifest contradicts."""
    source, fix = s.manifest.get("source"), "write the true source into manifest.toml"
    if source not in KNOWN:
        message = f"source is {source!r}, none of {', '.join(KNOWN)}"
        yield Finding("source", ERROR, "", message, fix)
    said = " ".join(str(s.device.get(k, "")) for k in ("name", "processor", "runtime")).lower()
    found = [word for word in EMULATORS if word in said]
    if source == "measured" and found:
        message = f"called measured, but its device is {said.strip()!r}"
        yield Finding("source", ERROR, "", message, fix)
    if (s.unit == "Minstructions") != (source == "emulated-count") and source in _OWN:
        message = f"source {source} and unit {s.unit} do not go together"
        yield Finding("source", ERROR, "", message, fix)
    ported = [r for r in s.table.rows.values() if r.note == "ported"]
    if ported and source != "ported":
        message = f"{len(ported)} rows were carried over from another device, not {source}"
        yield Finding("source", ERROR, ported[0].key, message, 'write source = "ported"')


def altered(s: Subject) -> Found:
    """Find a table whose files are not as they were written."""
    if s.table.altered:
        message = "its files are not those that were written when it was measured"
        yield Finding("edited", ERROR, "", message, f"restore them, or: {s.again}")


def device(s: Subject) -> Found:
    """Find rows and a manifest that are not of one campaign."""
    stored = s.manifest.get("wall_over_cpu")
    ratios = [row.median / row.cpu_median for row in s.rows if row.cpu_median > 0]
    if not stored or not ratios:
        return
    found = float(np.median(ratios))
    # Rows of a busy machine leave out the waiting, which the manifest counts.
    least = min(stored, 1.0) if s.table.busy else stored
    if not math.log(least) - 0.1 <= math.log(found) <= math.log(stored) + 0.1:
        message = (
            f"wall over processor time is {found:.3g} in the rows, {stored:.3g} in the manifest"
        )
        fix = f"restore rows.csv and manifest.toml of one campaign, or: {s.again}"
        yield Finding("device", ERROR, "", message, fix)


def calibration(s: Subject) -> Found:
    """Find a calibration that does not follow from the table's own networks."""
    if "calibration" not in s.manifest:
        return
    stored = s.table.calibration
    fix = f"restore the three files of one campaign, or: {s.again}"
    if not 0.01 < stored.scale < 100:
        message = f"networks cost {stored.scale:g} times the sum of their rows"
        slip = "rows and networks in different units? "
        yield Finding("unit", ERROR, "", message, slip + f"measure them again: {s.again}")
    if stored.mape_percent > USEFUL and s.rows:
        message = f"predictions are {stored.mape_percent:.1f} % off on other networks"
        better = f"measure on a quiet machine, with more rounds: {s.again}"
        yield Finding("calibration", WARNING, "", message, better)
    again = _refit(s, stored)
    for name, value in again.items():
        said = getattr(stored, name)
        if abs(value - said) > 0.02 + 0.02 * abs(said):
            message = f"calibration: {name} is {said} in the manifest, {value} by networks.csv"
            yield Finding("calibration", ERROR, "", message, fix)
    yield from _sums(s)


def _refit(s: Subject, stored: Calibration) -> dict[str, float]:
    """The entries of the calibration that follow from the table's own networks."""
    fitted = [r for r in s.table.references if r.use == "fit"]
    held = [r for r in s.table.references if r.use != "fit"]
    if len(fitted) < 2 or not held:
        return {}
    runs = fitted + held
    medians = [run.median for run in runs]
    try:
        if stored.factors and s.space is not None:
            sums = [s.table.sums(_layers(s.space, s, run)) for run in runs]
            again = Calibration.fit_kinds(sums, medians, len(fitted))
        else:
            again = Calibration.fit([run.sum for run in runs], medians, len(fitted))
    except TableError:
        return {"scale": 0.0}  # networks do not take longer where their layers do
    found = asdict(again)
    if stored.factors and s.space is None:
        return {name: found[name] for name in ("fitted_on", "held_out", "raw_mape_percent")}
    factors = found.pop("factors")
    return found if factors.keys() == stored.factors.keys() else {"scale": 0.0}


def _layers(space: SearchSpace, s: Subject, run: Reference) -> tuple[Layer, ...]:
    try:
        return space.layers(space.parse(run.architecture))
    except UsageError as error:
        raise TableError(
            f"networks.csv has a network that {space.name} has not: {error.message}", s.mend
        ) from None


def _sums(s: Subject) -> Found:
    """Find networks whose rows no longer add up to the sum that the calibration was fitted on."""
    if s.space is None:
        return
    fix = f"restore the three files of one campaign, or: {s.again}"
    for reference in s.table.references:
        rows = [s.table.rows.get(layer.key) for layer in _layers(s.space, s, reference)]
        total = sum(row.median if row else math.nan for row in rows)
        if abs(total - reference.sum) > 0.01 * reference.sum:
            message = f"rows of a reference network add up to {total:.5g}, not {reference.sum:.5g}"
            yield Finding("calibration", ERROR, reference.architecture, message, fix)


def copies(s: Subject) -> Found:
    """Find rows that have the numbers of another table, or of another row of this one."""
    fix = f"measure them on this device: {s.again}"
    for key, same in repeated(s.rows):
        message = f"has every number of {same}: no two measurements agree like that"
        yield Finding("copied", ERROR, key, message, fix)
    if s.other is None:
        return
    mine, theirs = s.table.manifest, s.other.manifest
    if _same_campaign(mine, theirs):
        yield from _edited(s, s.other)
        return
    if mine.get("source") in EXACT and theirs.get("source") in EXACT:
        return  # equal counts of equal code are the same count, not a copy
    found = copied(s.rows, s.other.rows)
    name = theirs.get("device", {}).get("name", "another device")
    # On one device steady enough to repeat itself, equal numbers need not be copied.
    severity = WARNING if _same_device(mine, theirs) else ERROR
    for copy in found:
        how = "those" if copy.factor == 1 else f"exactly {copy.factor:.6g} times those"
        share = f"like {copy.rows} rows of {copy.common}: by chance 1e{copy.log10_chance:.0f}"
        message = f"its numbers are {how} of the table of {name}, {share}"
        yield Finding("copied", severity, copy.key, message, fix)
    pairs = [(r.median, s.other.rows[r.key].median) for r in s.rows if r.key in s.other.rows]
    ratios = [a / b for a, b in pairs if b > 0 and math.isfinite(b)]
    same_unit = mine.get("unit") == theirs.get("unit")
    if ratios and not found and same_unit and SLIP[0] < abs(math.log(np.median(ratios))) < SLIP[1]:
        message = f"rows are {np.median(ratios):.4g} times those of the other table"
        yield Finding("unit", WARNING, "", message, "check that both are in the unit they name")


def _same_device(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    a, b = ({k: v for k, v in m.get("device", {}).items() if k != "name"} for m in (mine, theirs))
    return a == b and "processor" in a


def _edited(s: Subject, other: LatencyTable) -> Found:
    """Find rows in which two copies of one table differ."""
    for key, row in s.table.rows.items():
        theirs = other.rows.get(key)
        if theirs is not None and theirs.median != row.median and row.usable and theirs.usable:
            message = (
                f"{row.median:g} {s.unit}, but {theirs.median:g} in the other of this campaign"
            )
            fix = f"one of the two was edited; take the other, or: {s.again}"
            yield Finding("edited", ERROR, key, message, fix)


def _same_campaign(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether both are copies of one and the same table, which is no fault."""
    same = all(mine.get(k) == theirs.get(k) for k in ("campaign", "device", "date"))
    return same and mine.get("campaign") is not None
