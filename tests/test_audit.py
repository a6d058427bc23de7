"""The audit finds what was planted, and nothing in tables that are sound."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from nas.families import load_space
from nas.latency.audit import as_json, audit, shortened
from nas.latency.audit.copies import copied
from nas.latency.audit.outliers import kinds, layer_kind
from nas.latency.fit import Calibration
from nas.latency.rows import Reference, Row
from nas.latency.table import LatencyTable
from nas.trellis.graph import Graph, decode, space_layers
from nas.versions import layer_code

SPACE = load_space("swin:micro")
LAYERS = space_layers(SPACE)
ROUNDS = 12
_GRAPH = Graph.of(SPACE)
_TEXTS = [decode(SPACE, path).to_json() for path in _GRAPH.tours()][:30]
NETWORKS = {text: SPACE.layers(SPACE.parse(text)) for text in dict.fromkeys(_TEXTS)}


def work(layer) -> float:
    """Milliseconds of a made-up processor: a cost for each call, multiplications, memory moved."""
    s = layer.sizes
    moved = math.prod(layer.input_shape)
    if layer.module.__name__ != "WindowBlock":
        return 0.02 + 2e-6 * moved * s.get("width", 1)
    tokens = s["kept"] * 49
    inner = s["heads"] * s["head_dim"]
    macs = tokens * (4 * s["width"] * inner + 2 * s["width"] * s["hidden"] + 98 * inner)
    staircase = math.ceil(s["kept"] / 4) * 4 / s["kept"]
    return 0.03 + 3e-8 * macs * (0.7 + 0.3 * staircase) + 2e-7 * moved


def measured(costs, rng: np.random.Generator, noise: float) -> np.ndarray:
    """What a campaign writes down: samples with a tail, and a level that differs each time.

    Columns: median, 20th percentile, interquartile range, median of the processor time.
    """
    levels = np.array(costs) * np.exp(rng.normal(0, 0.01, len(costs)))
    tail = np.abs(rng.standard_t(4, (ROUNDS, len(costs))))
    p20, q1, median, q3 = np.percentile(levels * np.exp(noise * tail), (20, 25, 50, 75), axis=0)
    return np.stack([median, p20, q3 - q1, median * 0.99], 1).round(5)


def sound(seed: int = 0, speed: float = 1.0, noise: float = 0.04) -> LatencyTable:
    """A table of a machine `speed` times as fast, with everything as it should be."""
    rng = np.random.default_rng(seed)
    # Devices differ in what they are good at, not by one factor.
    costs = {k: c * math.exp(rng.normal(0, 0.02)) / speed for k, c in WORK.items()}
    numbers = measured(list(costs.values()), rng, noise).tolist()
    rows = {key: Row(key, *own, ROUNDS) for key, own in zip(costs, numbers)}
    ends = [0.2 + sum(costs[x.key] for x in layers) for layers in NETWORKS.values()]
    runs = measured(ends, rng, noise / 4).tolist()
    references = []
    for i, (text, layers) in enumerate(NETWORKS.items()):
        total = round(sum(rows[x.key].median for x in layers), 5)
        use = "fit" if i < 12 else "held-out"
        references.append(Reference(text, use, total, *runs[i][:3], ROUNDS))
    sums, medians = [r.sum for r in references], [r.median for r in references]
    manifest = {
        "schema": 2,
        "space": SPACE.name,
        "classes": 10,
        "source": "measured",
        "unit": "ms",
        "date": f"2026-01-{seed % 28 + 1:02}",
        "layer_code": layer_code(SPACE.family),
        "rounds": ROUNDS,
        "wall_over_cpu": 1.01,
        "campaign": f"campaign{seed}",
        "device": {"name": "torch-cpu", "machine": "x86_64", "threads": 1},
        "calibration": asdict(Calibration.fit(sums, medians, 12)),
    }
    return LatencyTable(rows, manifest, tuple(references))


def changed(table: LatencyTable, rows=(), references=None, **manifest) -> LatencyTable:
    found = table.rows | {row.key: row for row in rows}
    networks = table.references if references is None else references
    return LatencyTable(found, table.manifest | manifest, tuple(networks))


WORK = {key: work(layer) for key, layer in LAYERS.items()}


def rules(findings) -> set[str]:
    return {finding.rule for finding in findings}


def rows_of(findings, rule: str) -> set[str]:
    return {finding.row for finding in findings if finding.rule == rule}


TABLE = sound()
KEYS = [key for key in TABLE.rows if key.startswith("WindowBlock")]


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
def test_sound_tables_have_no_findings(noise):
    for seed in range(12):
        table = sound(seed, noise=noise)
        assert audit(table, sound(seed + 100, speed=1.1), space=SPACE) == []


def test_every_finding_names_what_mends_it():
    row = replace(TABLE.rows[KEYS[0]], median=0.0)
    findings = audit(changed(TABLE, [row], source="measured?", layer_code="old"), space=SPACE)
    assert findings
    assert all(finding.fix and finding.message for finding in findings)
    data = as_json(findings)
    assert data["errors"] == len([f for f in findings if f.severity == "error"])
    assert data["findings"][0]["rule"] == findings[0].rule


@pytest.mark.parametrize("median", [0.0, -1.0, math.nan, math.inf])
def test_a_row_without_a_time_is_found(median):
    row = replace(TABLE.rows[KEYS[7]], median=median)
    assert KEYS[7] in rows_of(audit(changed(TABLE, [row])), "number")


def test_a_failed_row_is_a_warning_and_a_timed_fallback_an_error():
    failed = Row(KEYS[1], math.nan, math.nan, math.nan, math.nan, 0, "failed: no such operator")
    left_out = replace(failed, key=KEYS[2], note="fallback: DIV")
    timed = replace(TABLE.rows[KEYS[3]], note="fallback: DIV")
    findings = audit(changed(TABLE, [failed, left_out, timed]))
    assert [(f.rule, f.severity, f.row) for f in findings] == [
        ("fallback", "error", KEYS[3]),
        ("failed", "warning", KEYS[1]),
    ]


@pytest.mark.parametrize("factor", [1000, 1 / 1000])
@pytest.mark.parametrize("kind", ["WindowBlock", "Head", "PatchEmbed", "Merge", "WindowScore"])
def test_a_slip_of_units_in_one_row_is_found(kind, factor):
    for key in [key for key in TABLE.rows if key.startswith(kind)][:3]:
        row = TABLE.rows[key]
        row = replace(row, median=row.median * factor, p20=0, iqr=row.iqr * factor)
        assert key in rows_of(audit(changed(TABLE, [row])), "unit"), key


@pytest.mark.parametrize("factor", [1000, 1 / 1000])
def test_a_slip_of_units_in_the_whole_table_is_found(factor):
    rows = [
        replace(r, median=r.median * factor, p20=r.p20 * factor, cpu_median=r.cpu_median * factor)
        for r in TABLE.rows.values()
    ]
    references = [
        replace(r, sum=r.sum * factor, median=r.median * factor) for r in TABLE.references
    ]
    fit = Calibration.fit([r.sum for r in references], [r.median for r in references], 12)
    both = changed(TABLE, rows, references, calibration=asdict(fit))
    if factor < 1:  # nothing on earth is that fast; slow machines there are
        assert "unit" in rules(audit(both, space=SPACE))
    references = [replace(r, sum=r.sum * factor) for r in TABLE.references]
    fit = Calibration.fit([r.sum for r in references], [r.median for r in references], 12)
    only_rows = changed(TABLE, rows, references, calibration=asdict(fit))
    assert "unit" in rules(audit(only_rows))
    assert len(rows_of(audit(both, TABLE), "edited")) == len(rows)
    other = changed(both, campaign="other")
    assert rules(audit(other, sound(4))) & {"unit", "copied"}


def test_a_row_off_its_neighbours_is_found():
    for key in KEYS[::60]:
        row = TABLE.rows[key]
        row = replace(row, median=row.median * 2.5, p20=row.p20 * 2.5)
        assert key in rows_of(audit(changed(TABLE, [row])), "outlier")


def test_cost_that_falls_where_only_heads_grow_is_found():
    key = next(k for k in KEYS if "heads=3" in k)
    fewer = key.replace("heads=3", "heads=2")
    row = replace(TABLE.rows[key], median=0.7 * TABLE.rows[fewer].median, p20=0)
    found = audit(changed(TABLE, [row]))
    assert fewer in rows_of(found, "falls")
    assert any(key in finding.message for finding in found)


def test_sparsity_that_does_not_help_is_found():
    """Every pruned block costs what the dense one costs and a little more: gathering windows."""
    dense = {}
    for kind in kinds(KEYS):
        (step,) = [step for step in kind.steps() if "kept" in step.names]
        assert len(step.less)
        for less, more in zip(step.less, step.more):
            dense[KEYS[less]] = KEYS[more]
    rows = []
    for key in dense:
        top = key
        while top in dense:
            top = dense[top]
        cost = 1.3 * TABLE.rows[top].median
        rows.append(replace(TABLE.rows[key], median=cost, p20=cost, cpu_median=cost))
    found = rows_of(audit(changed(TABLE, rows)), "sparsity")
    last = {key for key in dense if dense[key] not in dense}
    assert len(found & last) == len(last)


@pytest.mark.parametrize("n", [3, 20, len(KEYS)])
@pytest.mark.parametrize("factor", [1.0, 0.83])
def test_rows_of_another_table_are_found(n, factor):
    other = sound(5, speed=1.5)
    stolen = np.random.default_rng(n).choice(KEYS, n, replace=False)
    rows = [
        replace(
            row,
            **{
                k: round(factor * getattr(row, k), 5)
                for k in ("median", "p20", "iqr", "cpu_median")
            },
        )
        for row in (other.rows[key] for key in stolen)
    ]
    table = changed(TABLE, rows)
    found = rows_of(audit(table, other), "copied")
    if factor != 1 and n < 5:
        assert found <= set(stolen)  # three numbers always share some factor within rounding
    else:
        assert len(found & set(stolen)) >= 0.9 * n
        assert found <= set(stolen)


def test_few_digits_are_no_copy():
    """Of numbers with two digits many are equal: that is what coincidence looks like."""
    coarse = [
        {k: replace(r, median=round(r.median, 1), iqr=0.0) for k, r in t.rows.items()}
        for t in (TABLE, sound(9))
    ]
    equal = sum(coarse[0][k].median == coarse[1][k].median > 0 for k in KEYS)
    assert equal > 100
    assert copied([coarse[0][k] for k in KEYS], coarse[1]) == []


def test_a_coarse_clock_is_no_copy():
    """A clock of 1.024 us gives two steady devices many equal medians of short layers."""
    rng = np.random.default_rng(0)
    keys = [f"Block(width={i})@8x8" for i in range(400)]
    tables = []
    for _ in range(2):
        costs = 0.02 + 0.0002 * np.arange(400) + rng.normal(0, 3e-4, 400)
        ticks = np.round(costs / 0.001024) * 0.001024
        tables.append(
            {k: Row(k, round(m, 5), round(m, 5), 0.00102, m, 24) for k, m in zip(keys, ticks)}
        )
    assert sum(tables[0][k].median == tables[1][k].median for k in keys) > 100
    assert copied(list(tables[0].values()), tables[1]) == []


def test_medians_alone_can_be_copied():
    other = sound(5, speed=1.5)
    rows = [replace(TABLE.rows[k], median=round(1.03 * other.rows[k].median, 5)) for k in KEYS]
    assert len(rows_of(audit(changed(TABLE, rows), other), "copied")) > 0.9 * len(KEYS)


def test_the_same_campaign_twice_is_no_copy_and_another_device_is():
    assert "copied" not in rules(audit(TABLE, TABLE))
    other = changed(TABLE, device={"name": "onnxruntime-cpu"})
    assert len(rows_of(audit(other, TABLE), "copied")) == len(TABLE.rows)
    counts = {"source": "emulated-count", "unit": "Minstructions"}
    assert "copied" not in rules(audit(changed(other, **counts), changed(TABLE, **counts)))


def test_a_row_filled_in_from_another_row_is_found():
    row = replace(TABLE.rows[KEYS[50]], key=KEYS[51])
    assert rows_of(audit(changed(TABLE, [row])), "copied") & {KEYS[50], KEYS[51]}


def test_missing_rows_are_found_but_only_those_of_its_resolutions():
    rows = {k: r for k, r in TABLE.rows.items() if k != KEYS[4]}
    table = LatencyTable(rows, TABLE.manifest)
    assert rows_of(audit(table, space=SPACE), "missing") == {KEYS[4]}
    one = space_layers(SPACE.restrict("resolution", 112))
    table = LatencyTable({k: TABLE.rows[k] for k in one}, TABLE.manifest)
    assert len(rows_of(audit(table, space=SPACE), "missing")) == len(LAYERS) - len(one)
    small = changed(table, resolutions=[112])
    assert rows_of(audit(LatencyTable(table.rows, small.manifest), space=SPACE), "missing") == set()


def test_layers_of_other_code_are_found():
    assert rules(audit(changed(TABLE, layer_code="0" * 12), space=SPACE)) == {"stale"}


def test_rows_of_another_device_under_a_manifest_are_found():
    other = sound(3, speed=0.4)
    swapped = LatencyTable(other.rows, TABLE.manifest, TABLE.references)
    assert "calibration" in rules(audit(swapped, space=SPACE))
    swapped = LatencyTable(TABLE.rows, TABLE.manifest, other.references)
    assert "calibration" in rules(audit(swapped))
    waiting = changed(TABLE, [replace(r, cpu_median=r.median / 1.4) for r in TABLE.rows.values()])
    assert "device" in rules(audit(waiting))


def test_a_calibration_that_its_networks_do_not_give_is_found():
    better = TABLE.manifest["calibration"] | {"mape_percent": 0.1}
    assert rules(audit(changed(TABLE, calibration=better))) == {"calibration"}


def test_calibrations_with_factors_of_kinds_are_checked_too():
    factors = {"WindowBlock": 1.1, "Merge": 0.6}
    references = []
    for run in TABLE.references:
        parts = TABLE.sums(NETWORKS[run.architecture])
        median = round(0.2 + sum(factors.get(k, 1.0) * x for k, x in parts.items()), 5)
        references.append(replace(run, median=median))
    parts = [TABLE.sums(NETWORKS[run.architecture]) for run in references]
    fit = Calibration.fit_kinds(parts, [run.median for run in references], 12)
    assert fit.factors
    sound = changed(TABLE, references=references, calibration=asdict(fit))
    assert audit(sound) == audit(sound, space=SPACE) == []
    better = asdict(fit) | {"mape_percent": fit.mape_percent / 2 - 0.1}
    assert rules(audit(changed(sound, calibration=better), space=SPACE)) == {"calibration"}


def test_mixed_campaigns_are_found():
    assert rules(audit(changed(TABLE, campaign=["a", "b"]))) == {"campaigns"}
    late = KEYS[:80]
    rows = [
        replace(r, samples=3, median=round(r.median * 1.3, 5)) for r in map(TABLE.rows.get, late)
    ]
    findings = audit(changed(TABLE, rows))
    assert rows_of(findings, "campaigns") == set(late)
    assert any("% off" in finding.message for finding in findings)
    early = audit(changed(TABLE, [replace(r, samples=3) for r in TABLE.rows.values()]))
    assert [(f.rule, f.row) for f in early] == [("campaigns", "")]


@pytest.mark.parametrize(
    "manifest",
    [
        {"source": "trust me"},
        {"device": {"name": "qemu-aarch64"}},
        {"device": {"name": "ethos-u85-256", "runtime": "vela"}},
        {"unit": "Minstructions"},
        {"source": "emulated-count"},
    ],
)
def test_a_source_that_contradicts_the_device_is_found(manifest):
    assert "source" in rules(audit(changed(TABLE, **manifest)))


def test_ported_rows_are_not_measured():
    row = replace(TABLE.rows[KEYS[0]], note="ported")
    assert rules(audit(changed(TABLE, [row]))) == {"source"}


def test_noisy_rows_are_found():
    spread = replace(TABLE.rows[KEYS[0]], iqr=TABLE.rows[KEYS[0]].median)
    waited = replace(TABLE.rows[KEYS[1]], cpu_median=TABLE.rows[KEYS[1]].median / 1.2)
    findings = audit(changed(TABLE, [spread, waited]))
    assert rows_of(findings, "noisy") == {KEYS[0], KEYS[1]}
    busy = [replace(r, cpu_median=r.median / 1.2) for r in TABLE.rows.values()]
    findings = audit(changed(TABLE, busy, wall_over_cpu=1.2))
    assert [(f.rule, f.row) for f in findings] == [("noisy", "")]
    # A processor that waits for an accelerator is not a busy one.
    gpu = {"name": "torch-cuda", "threads": 1}
    assert audit(changed(TABLE, busy, wall_over_cpu=1.2, device=gpu)) == []


def test_long_lists_are_shortened_for_people():
    rows = [replace(row, median=0.0) for row in TABLE.rows.values()]
    findings = audit(changed(TABLE, rows))
    short = shortened(findings, 5)
    assert len(findings) >= len(rows)
    assert len([f for f in short if f.rule == "number"]) == 6
    assert f"{len(rows) - 5} more" in short[[f.rule for f in short].index("number") + 5].message


def test_eight_thousand_rows_take_not_much_more_than_eight_times_a_thousand():
    """0.3 s on two busy cores, as measured once; a look at all pairs would take 64 times as long."""
    keys = [f"Block(heads={h}, hidden={d}, kept={k})@{s}x{s}x{h * 16}"
            for h in range(1, 11) for d in range(32, 352, 32) for k in range(1, 11)
            for s in range(8, 72, 8)]  # fmt: skip
    costs = [0.1 + 0.01 * (i % 997) for i in range(len(keys))]
    numbers = measured(costs, np.random.default_rng(0), 0.02).tolist()
    rows = {key: Row(key, *own, ROUNDS) for key, own in zip(keys, numbers)}
    assert len(rows) == 8000

    def seconds(count):
        some = dict(list(rows.items())[:count])
        table = LatencyTable(some, {"source": "measured", "unit": "ms"})
        start = time.process_time()
        audit(table, table)
        return time.process_time() - start

    assert min(seconds(8000) for _ in range(2)) < 32 * min(seconds(1000) for _ in range(3))


def test_kinds_are_keys_that_differ_in_numbers_only():
    assert layer_kind(KEYS[0]) == "WindowBlock"
    assert layer_kind("expanded_conv-input:7x7x192-output:7x7x320-expand:3") == "expanded_conv"
    (kind,) = kinds(["Conv2d(width=8)@3x16x16", "Conv2d(width=16)@3x8x8"])
    assert kind.names == ("width", "@1", "@2", "@3")
    assert kind.sizes.tolist() == [[8, 3, 16, 16], [16, 3, 8, 8]]
