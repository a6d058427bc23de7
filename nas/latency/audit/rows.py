"""Rules about rows: numbers that cannot be, noise, and costs that sizes do not explain."""

from __future__ import annotations

import math

import numpy as np

from nas.latency.audit.outliers import Floats, Kind
from nas.latency.audit.subject import ERROR, EXACT, SLIP, SURE, WARNING, Finding, Found, Subject
from nas.latency.rows import Row

# Sizes that can only add work as they grow; not the side of a map, which may be padded anyway.
WORK = frozenset({"classes", "expand", "features", "heads", "hidden", "inner", "kernel"})
WORK |= {"in_width", "inputs", "squeezed", "width", "width_in"}
KEPT = frozenset({"kept", "patches", "tokens"})  # what pruning leaves

# Found on tables of four spaces, measured on a quiet and on a busy machine: of 3,100 pairs of rows
# that should grow, none fell by more than both where nothing was wrong.
# So SURE (in standard errors) is 5, and the least fall that counts this share of the cost.
FALL = 0.10
OFF, SCALES = math.log(1.5), 8.0  # off the robust fit: by this factor, and times the usual
# Multiplications and additions in a second: more than 2 x 512 bit vectors or a matrix unit give at
# 5 GHz, than the largest accelerator; and what any 64 bit processor passes, layer by layer.
MACHINES = ("x86_64", "AMD64", "aarch64", "arm64")
MOST_CPU, MOST, SLOW, SLOW_LAYER = 5e12, 5e15, 1e7, 0.005
NOISY, WAITING = 0.5, 1.1  # interquartile range by median; wall by processor time


def numbers(s: Subject) -> Found:
    """Find medians that are no times, percentiles out of order, and times of rows without any."""
    for row in s.table.rows.values():
        if row.note.startswith("fallback:"):
            if math.isfinite(row.median):
                message = f"runs in part on another processor, yet costs {row.median} {s.unit}"
                yield Finding("fallback", ERROR, row.key, message, s.mend)
        elif row.note.startswith("failed"):
            yield Finding("failed", WARNING, row.key, row.note, s.mend)
        elif not math.isfinite(row.median):
            message = f"costs {row.median}, and no note says why"
            yield Finding("number", ERROR, row.key, message, s.mend)
        elif row.median <= 0:
            message = f"costs {row.median} {s.unit}: no layer is free"
            yield Finding("number", ERROR, row.key, message, s.mend)
        elif row.p20 > row.median or row.iqr < 0 or row.cpu_median < 0:
            message = f"percentiles cannot be: {row.p20} (20th), {row.median} (median), {row.iqr}"
            yield Finding("number", ERROR, row.key, message, s.mend)


def noise(s: Subject) -> Found:
    """Find rows that were disturbed while they were measured."""
    fix = f"measure it again on a quiet machine: {s.again}"
    usual = _waiting(s)
    if s.table.busy and s.table.wanting:
        held, error = s.manifest["held_up_percent"], s.table.calibration.mape_percent
        message = f"the machine was busy: {held:.0f} % of samples were held up, error {error:.1f} %"
        yield Finding("noisy", WARNING, "", message, f"measure more rounds: {s.once_more}")
    if usual > WAITING and "cpu" in str(s.device.get("name")):
        message = f"waited: wall time is {usual:.2f} of processor time in most rows"
        yield Finding("noisy", WARNING, "", message, fix)
    for row in s.rows:
        if row.iqr > NOISY * row.median:
            message = f"half of its samples spread over {row.iqr / row.median:.0%} of the median"
        elif 0 < usual <= WAITING and row.cpu_median * WAITING < row.median and row.cpu_median > 0:
            message = f"waited: wall time is {row.median / row.cpu_median:.2f} of processor time"
        else:
            continue
        yield Finding("noisy", WARNING, row.key, message, fix)


def _waiting(s: Subject) -> float:
    """The median ratio of wall to processor time; 0 where there are several threads or no ratio."""
    ratios = [row.median / row.cpu_median for row in s.rows if row.cpu_median > 0]
    return float(np.median(ratios)) if ratios and _threads(s) == 1 else 0.0


def _threads(s: Subject) -> int:
    threads: int = s.device.get("threads", 0)
    return threads


def fits(s: Subject) -> Found:
    """Find rows far off what the sizes of all other rows of their kind predict."""
    logs = np.log(s.costs)
    for kind in s.kinds:
        fit = kind.residuals(s.costs[kind.positions])
        if fit is None:
            yield from _alone(s, kind, logs)
            continue
        residuals, scale = fit
        for i in np.flatnonzero(np.abs(residuals) > max(OFF, SCALES * scale)):
            yield _off(s, s.rows[kind.positions[i]], float(residuals[i]))


def _alone(s: Subject, kind: Kind, logs: Floats) -> Found:
    """Find rows of small kinds that cost 30 times less or more than every other row."""
    rest = np.delete(logs, kind.positions)
    if len(rest) < 10:
        return
    for i in kind.positions:
        over, under = logs[i] - rest.max(), rest.min() - logs[i]
        if max(over, under) > math.log(30):
            yield _off(s, s.rows[i], float(logs[i] - np.median(rest)))


def _off(s: Subject, row: Row, residual: float) -> Finding:
    factor = math.exp(abs(residual))
    side = "more" if residual > 0 else "less"
    message = f"{row.median:g} {s.unit} is {factor:.3g} times {side} than its neighbours say"
    if SLIP[0] < abs(residual) < SLIP[1]:
        fix = f"a slip of units (about 1000)? measure it again: {s.again}"
        return Finding("unit", ERROR, row.key, message, fix)
    return Finding("outlier", WARNING, row.key, message, s.mend)


def steps(s: Subject) -> Found:
    """Find costs that fall, beyond noise, where only one size grows."""
    for kind in s.kinds:
        for step in kind.steps():
            pruned, work = bool(step.names & KEPT), bool(step.names & WORK)
            # An exact cost is no noise: compilers tile some larger layers better.
            if not (pruned or (work and s.manifest.get("source") not in EXACT)):
                continue
            less, more = s.costs[step.less], s.costs[step.more]
            error = np.hypot(s.errors[step.less], s.errors[step.more])
            fall = np.log(less / more)
            for i in np.flatnonzero((fall > SURE * error) & (fall > -math.log(1 - FALL))):
                small, large = s.rows[step.less[i]], s.rows[step.more[i]]
                yield _fall(
                    s, small, large, "/".join(sorted(step.names - {"@0", "@1", "@2"})), pruned
                )


def _fall(s: Subject, small: Row, large: Row, name: str, pruned: bool) -> Finding:
    costs = f"{small.median:g} {s.unit}, with more of them only {large.median:g}"
    if pruned:
        message = f"sparsity does not help: with fewer {name} {costs} ({large.key})"
        fix = "leave this sparsity out of the search, or look at how the layer runs when pruned"
        return Finding("sparsity", WARNING, small.key, message, fix)
    message = f"costs {costs} where only {name} grows ({large.key})"
    return Finding("falls", WARNING, small.key, message, f"measure both again: {s.again}")


def speed(s: Subject) -> Found:
    """Find tables by which a device computes more per second than any can, or absurdly little."""
    if s.space is None or s.unit != "ms":
        return
    from nas.network.macs import count_macs

    layers = s.space.layers(s.space.largest)
    timed = [(layer, s.table.rows.get(layer.key)) for layer in layers]
    found = [(layer, row) for layer, row in timed if row is not None and row.usable]
    seconds = sum(row.median for _, row in found) / 1e3
    if not 0 < seconds < math.inf:
        return
    macs = sum(count_macs(layer).total for layer, _ in found)
    most = MOST_CPU * max(_threads(s), 1) if s.device.get("machine") in MACHINES else MOST
    message = f"the largest network takes {1e3 * seconds:.4g} ms by its rows for {macs:.3g} MACs"
    fix = f"are the rows in milliseconds? measure them again: {s.again}"
    if macs / seconds > most or seconds > len(found) * SLOW_LAYER + macs / SLOW:
        yield Finding("unit", ERROR, "", message, fix)
