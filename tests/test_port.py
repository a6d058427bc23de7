"""A table carried to a sibling device: what is measured, how it is fitted, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from nas.errors import TableError, UsageError
from nas.latency.port import NOTE, Chosen, carry, check, choose_rows, kind_of, provenance
from nas.latency.rows import Row
from nas.latency.table import LatencyTable

KINDS = {"Embed": (0.2, 1.4), "Block": (0.05, 8.0), "Head": (0.02, 0.1)}
DEVICE = {"name": "board", "batch": 1, "dtype": "float32", "threads": 1, "runtime": "torch"}


def table(seed: int = 0, **manifest) -> LatencyTable:
    rng = np.random.default_rng(seed)
    rows = {}
    for kind, (low, high) in KINDS.items():
        logs = rng.uniform(math.log(low), math.log(high), 60 if kind == "Block" else 8)
        for median in np.exp(logs).tolist():
            key = f"{kind}(width={round(1e5 * median)})@8x8"
            rows[key] = Row(key, round(median, 5), round(median, 5), 0.01, median, 8)
    base = {"source": "measured", "unit": "ms", "device": DEVICE, "layer_code": "c", "context": "isolated",
            "date": "2026-11-21", "campaign": "a1"}  # fmt: skip
    return LatencyTable(rows, base | manifest)


def sibling(old: LatencyTable, truth, noise: float = 0.0, seed: int = 1) -> dict[str, Row]:
    """The whole table of another device, of which `carry` sees a part only."""
    rng = np.random.default_rng(seed)
    found = {}
    for key, row in old.rows.items():
        median = truth(kind_of(key), row.median) * math.exp(rng.normal(0, noise))
        found[key] = Row(key, median, median, 0.0, median, 8)
    return found


def seen(rows: dict[str, Row], chosen: Chosen) -> dict[str, Row]:
    return {key: rows[key] for key in (*chosen.fit, *chosen.held_out)}


def errors(rows: dict[str, Row], truth: dict[str, Row]) -> np.ndarray:
    return np.array(
        [abs(r.median / truth[k].median - 1) for k, r in rows.items() if r.note == NOTE]
    )


OLD = table()


def test_rows_are_spread_over_each_kind_with_its_extremes():
    chosen = choose_rows(OLD)
    assert chosen == choose_rows(OLD)
    assert not set(chosen.fit) & set(chosen.held_out)
    for kind in KINDS:
        times = sorted(r.median for k, r in OLD.rows.items() if kind_of(k) == kind)
        mine = sorted(OLD.rows[key].median for key in chosen.fit if kind_of(key) == kind)
        assert len(mine) == 5
        assert (mine[0], mine[-1]) == (times[0], times[-1])
        assert sum(kind_of(key) == kind for key in chosen.held_out) == (4 if kind == "Block" else 3)
    steps = np.diff(np.log([OLD.rows[k].median for k in chosen.fit if kind_of(k) == "Block"]))
    assert steps.max() < 1.5 * steps.min()


def test_small_kinds_leave_a_row_to_check_and_unusable_rows_are_not_chosen():
    keys = [key for key in OLD.rows if kind_of(key) == "Head"][:3]
    few = LatencyTable({key: OLD.rows[key] for key in keys}, OLD.manifest)
    chosen = choose_rows(few)
    assert (len(chosen.fit), len(chosen.held_out)) == (2, 1)
    failed = few.rows | {keys[0]: Row.without_numbers(keys[0], "failed: no DIV")}
    assert keys[0] not in {*choose_rows(LatencyTable(failed, {})).fit}
    with pytest.raises(UsageError):
        choose_rows(OLD, per_kind=0)


def test_one_factor_of_each_kind_is_found_exactly():
    factors = {"Embed": 3.0, "Block": 1.2, "Head": 0.5}
    truth = sibling(OLD, lambda kind, old: factors[kind] * old)
    chosen = choose_rows(OLD)
    rows, report = carry(OLD, chosen, seen(truth, chosen))
    assert rows.keys() == OLD.rows.keys()
    assert errors(rows, truth).max() < 1e-3  # five decimals of a small row
    assert {fit.kind: round(fit.scale, 3) for fit in report.kinds} == factors
    assert report.mape_percent == pytest.approx(0, abs=1e-3)
    assert (report.fitted_on, report.held_out) == (15, 10)


def test_a_cost_for_each_call_is_found_where_there_is_one():
    truth = sibling(OLD, lambda kind, old: 0.8 * old + (0.3 if kind == "Block" else 0.0))
    chosen = choose_rows(OLD)
    rows, report = carry(OLD, chosen, seen(truth, chosen))
    forms = {fit.kind: fit.form for fit in report.kinds}
    assert forms["Block"] == "affine"
    assert forms["Head"] != "affine"
    assert errors(rows, truth).max() < 1e-3


def test_no_row_becomes_free():
    """An offset that was saved on every call is more than the smallest rows cost."""
    truth = sibling(OLD, lambda kind, old: max(old - 0.045, 0.002))
    chosen = choose_rows(OLD)
    small = min((r.median, k) for k, r in OLD.rows.items() if kind_of(k) == "Block")[1]
    measured = seen(truth, chosen)
    measured[small] = Row.without_numbers(small, "failed: out of memory")
    rows, _ = carry(OLD, chosen, measured)
    assert all(row.median > 0 for row in rows.values() if row.usable)
    assert not rows[small].usable


def test_noise_is_not_fitted():
    """Where all kinds share one factor, five noisy rows must not be taken for five offsets."""
    kinds, off = [], []
    for seed in range(30):
        truth = sibling(OLD, lambda _, old: 2 * old, noise=0.05, seed=seed)
        chosen = choose_rows(OLD)
        rows, report = carry(OLD, chosen, seen(truth, chosen))
        kinds += [fit.form for fit in report.kinds]
        off.append([abs(r.median / (2 * OLD.rows[k].median) - 1) for k, r in rows.items()
                    if r.note == NOTE])  # fmt: skip
    assert kinds.count("global") + kinds.count("shrunk") > 2 * kinds.count("affine")
    assert np.mean(off) < 0.05 / math.sqrt(2)  # far less than a single noisy row of each would


def test_the_stated_error_is_that_of_rows_not_seen():
    """Over many siblings the held-out error agrees with the error on everything else."""
    stated, left_out, real = [], [], []
    for seed in range(40):
        bend = np.random.default_rng(seed).uniform(0.8, 1.2, 3)
        powers = dict(zip(KINDS, bend))
        truth = sibling(OLD, lambda k, old, p=powers: old ** p[k], noise=0.03, seed=seed)
        chosen = choose_rows(OLD)
        rows, report = carry(OLD, chosen, seen(truth, chosen))
        # All rows of the small kinds were measured; blocks are what is predicted.
        stated += [fit.mape_percent for fit in report.kinds if fit.kind == "Block"]
        left_out += [fit.left_out_percent for fit in report.kinds if fit.kind == "Block"]
        real.append(100 * errors(rows, truth).mean())
    assert np.mean(stated) == pytest.approx(np.mean(real), rel=0.25)
    assert np.mean(stated) > 5
    # Leaving out an extreme asks the fit to reach beyond its rows: that error is an upper one.
    assert np.mean(real) < np.mean(left_out) < 2 * np.mean(real)


def test_measured_rows_stay_and_predicted_ones_say_so():
    truth = sibling(OLD, lambda _, old: 2 * old)
    chosen = choose_rows(OLD)
    rows, _ = carry(OLD, chosen, seen(truth, chosen))
    for key, row in rows.items():
        if key in chosen.fit or key in chosen.held_out:
            assert row == truth[key]
        else:
            assert (row.note, row.samples, row.cpu_median) == (NOTE, 0, 0.0)


def test_held_out_rows_change_nothing_but_the_error():
    truth = sibling(OLD, lambda _, old: 2 * old, noise=0.02)
    chosen = choose_rows(OLD)
    rows, report = carry(OLD, chosen, seen(truth, chosen))
    lies = {key: replace(truth[key], median=9 * truth[key].median) for key in chosen.held_out}
    other, worse = carry(OLD, chosen, seen(truth | lies, chosen))
    ported = [key for key, row in rows.items() if row.note == NOTE]
    assert [rows[key] for key in ported] == [other[key] for key in ported]
    assert worse.mape_percent > 80 > 10 > report.mape_percent


def test_all_else_that_was_measured_is_a_check():
    truth = sibling(OLD, lambda _, old: 2 * old, noise=0.02)
    chosen = choose_rows(OLD)
    few, _ = carry(OLD, chosen, seen(truth, chosen))
    rows, report = carry(OLD, chosen, truth)
    assert rows == truth
    assert report.held_out == len(truth) - len(chosen.fit)
    off = [abs(few[k].median / truth[k].median - 1) for k in truth if few[k].note == NOTE]
    (block,) = [fit for fit in report.kinds if fit.kind == "Block"]
    assert block.mape_percent == pytest.approx(100 * np.mean(off), rel=0.2)  # and four checks


def test_rows_that_run_on_neither_device_are_never_predicted():
    truth = sibling(OLD, lambda _, old: 2 * old)
    chosen = choose_rows(OLD)
    heads = [key for key in chosen.fit if kind_of(key) == "Head"]
    measured = seen(truth, chosen)
    for key in measured:
        if kind_of(key) == "Head":
            measured[key] = Row.without_numbers(key, "failed: no MEAN")
    gone = next(k for k in OLD.rows if k not in measured and kind_of(k) == "Block")
    old = LatencyTable(OLD.rows | {gone: Row.without_numbers(gone, "fallback: DIV")}, OLD.manifest)
    rows, report = carry(old, chosen, measured)
    assert not rows[gone].usable
    assert heads
    assert all(not row.usable for key, row in rows.items() if kind_of(key) == "Head")
    assert {fit.kind for fit in report.kinds} == {"Embed", "Block"}
    # Held-out heads did not run, so nothing is said of them.
    assert report.held_out == 7


def test_int8_is_a_kind_of_its_own():
    assert kind_of("Block(bits=8, width=4)@8x8") == "Block int8"
    assert kind_of("Block(width=4, bits=8)@8x8") == "Block int8"
    assert kind_of("Block(bits=32, width=8)@8x8") == "Block"


def test_too_little_or_foreign_rows_are_refused():
    chosen = choose_rows(OLD)
    truth = sibling(OLD, lambda _, old: old)
    with pytest.raises(TableError, match="0 to check"):
        carry(OLD, chosen, {key: truth[key] for key in chosen.fit})
    with pytest.raises(TableError, match="no such row"):
        carry(OLD, chosen, {"Other(a=1)@8": Row("Other(a=1)@8", 1, 1, 0, 1, 8)})


@pytest.mark.parametrize(
    ("old", "new", "unit", "error"),
    [
        ({}, {"batch": 8}, "ms", "batch 1 to 8"),
        ({}, {"dtype": "bfloat16"}, "ms", "dtype float32 to bfloat16"),
        ({"layer_code": "d"}, {}, "ms", "another version"),
        ({"context": "network"}, {}, "ms", "rows timed network to rows timed isolated"),
        ({"source": "ported"}, {}, "ms", "ported itself"),
        ({"source": "external"}, {}, "ms", "external itself"),
        ({}, {}, "Minstructions", "ms to Minstructions"),
        ({"source": "vendor-model", "unit": "Mcycles"}, {}, "ms", "Mcycles to ms"),
    ],
)
def test_what_no_factor_brings_together_is_refused(old, new, unit, error):
    with pytest.raises(TableError, match=error):
        check(table(**old), DEVICE | new, unit, "c", "isolated")


def test_counts_may_be_carried_to_a_board():
    counts = table(source="emulated-count", unit="Minstructions")
    check(counts, DEVICE | {"name": "pi"}, "ms", "c", "network")
    truth = sibling(counts, lambda _, old: 0.7 * old)
    chosen = choose_rows(counts)
    rows, report = carry(counts, chosen, seen(truth, chosen))
    assert errors(rows, truth).max() < 1e-3
    said = provenance(counts, "measured", report)
    assert (said["source"], said["measured_source"]) == ("ported", "measured")
    assert said["ported_from"]["source"] == "emulated-count"


def test_the_manifest_says_where_it_is_from_and_is_toml():
    import tomllib

    import tomli_w

    truth = sibling(OLD, lambda _, old: 2 * old)
    chosen = choose_rows(OLD)
    _, report = carry(OLD, chosen, seen(truth, chosen))
    said = provenance(OLD, "measured", report)
    assert tomllib.loads(tomli_w.dumps(said)) == said
    json.dumps(said)
    assert said["port"]["kinds"]["Block"]["fitted_on"] == 5
    few = Chosen(chosen.fit[:2], chosen.held_out)
    _, report = carry(OLD, few, seen(truth, few))
    assert "nan" not in tomli_w.dumps(report.to_toml())
    key, row = next(iter(OLD.rows.items()))
    changed = LatencyTable(OLD.rows | {key: replace(row, median=9.0)}, OLD.manifest)
    other = provenance(changed, "measured", report)
    assert other["ported_from"]["rows"] != said["ported_from"]["rows"]


def test_the_audit_takes_ported_rows_for_no_better_than_the_port():
    from nas.latency.audit import audit

    chosen = choose_rows(OLD)
    truth = sibling(OLD, lambda kind, old: old * (1.5 if kind == "Block" else 1), noise=0.03)
    rows, report = carry(OLD, chosen, seen(truth, chosen))
    said = OLD.manifest | {"campaign": "b2"} | provenance(OLD, "measured", report)
    assert audit(LatencyTable(rows, said), OLD) == []
    lie = said | {"source": "measured"}
    assert "source" in {finding.rule for finding in audit(LatencyTable(rows, lie))}
