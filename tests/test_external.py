"""Tables of other people: what is read, in which unit, and what is refused with its line."""

from __future__ import annotations

import json
import math

import pytest

from nas.errors import TableError, UnknownNameError, UsageError, VitnasError
from nas.latency.audit import audit
from nas.latency.external import PREFIX, import_table
from nas.latency.table import LatencyTable

yaml = pytest.importorskip("yaml")

BLOCK = "expanded_conv-input:112x112x16-output:56x56x24-expand:{}-kernel:{}-stride:2-idskip:0"


def write(folder, name, text):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text, indent=1))
    return path


def test_csv_is_read_in_the_unit_of_its_columns(tmp_path):
    text = "key,median_us,iqr_us,samples\nconv(width=8),1500,20,7\nfc(width=8),250,,\n"
    table = import_table(write(tmp_path, "board.csv", text))
    conv, fc = table.rows.values()
    assert (conv.key, conv.median, conv.iqr, conv.samples) == (
        "external:csv:conv(width=8)", 1.5, 0.02, 7)  # fmt: skip
    assert (fc.median, fc.p20, fc.iqr, fc.samples) == (0.25, 0.25, 0.0, 0)
    assert table.manifest["source"] == "external"
    assert table.manifest["device"]["name"] == "board"


def test_what_was_imported_is_saved_and_loaded_like_our_own(tmp_path):
    text = "key,median_ms,note\na,1.5,\nb,0.25,warm\n"
    table = import_table(write(tmp_path, "a.csv", text))
    table.save(tmp_path / "table")
    again = LatencyTable.load(tmp_path / "table")
    assert again.rows == table.rows
    assert again.manifest["source"] == "external"
    assert math.isnan(again.calibration.mape_percent)
    assert all(key.startswith(PREFIX) for key in again.rows)
    assert audit(again) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("key,median_ms\na,1.5\nb,zwei\n", r"t.csv, line 3: 'zwei' is not a number"),
        ("key,median_ms\na,0\n", r"line 2: a costs 0"),
        ("key,median_ms\na,nan\n", r"line 2: a costs nan"),
        ("key,median_ms\na,-1\n", r"line 2: a costs -1"),
        ("key,median_ms,p20_ms\na,1,2\n", r"line 2: percentiles of a"),
        ("key,median_ms\na,1\na,2\n", r"line 3: a is there twice"),
        ("key,median_ms\na,1,5\n", r"line 2: more or fewer"),
        ("key,median_ms,iqr_ms\na,,1\n", r"line 2: a has no median"),
        ("key,median_fortnights\na,1\n", r"line 1: columns .*median_fortnights.*_us"),
        ("key,latency\na,1\n", r"line 1: columns .*latency"),
        ("key,median_ms\n", "no rows"),
        ("", "line 1"),
    ],
)
def test_a_csv_that_is_no_table_is_refused_with_its_line(tmp_path, text, error):
    with pytest.raises(TableError, match=error):
        import_table(write(tmp_path, "t.csv", text))


def test_kernels_of_nn_meter_are_told_apart_by_their_sizes(tmp_path):
    kernels = {
        "conv-bn-relu": {
            "x7f2": {"config": {"HW": 28, "CIN": 16, "COUT": 32}, "shapes": [[28, 28, 16]],
                     "model": "kernels/x7f2", "latency": "41.781 +- 1.0"},
            "q00a": {"config": {"HW": 14, "CIN": 16, "COUT": 32}, "latency": "11.5 +- 0.0"},
            "q00b": {"config": {"HW": 14, "CIN": 16, "COUT": 32}, "latency": "11.7 +- 0.0"},
        }
    }  # fmt: skip
    table = import_table(write(tmp_path, "profiled.json", kernels), unit="us", device="pixel4")
    assert {key: row.median for key, row in table.rows.items()} == {
        "external:nn-meter:conv-bn-relu(CIN=16, COUT=32, HW=28)@28x28x16": 0.041781,
        "external:nn-meter:conv-bn-relu(CIN=16, COUT=32, HW=14)": 0.0115,
        "external:nn-meter:conv-bn-relu(CIN=16, COUT=32, HW=14)#q00b": 0.0117,
    }
    row = next(iter(table.rows.values()))
    assert row.iqr == pytest.approx(0.00134898)  # two times 0.67449 standard deviations
    assert "normal" in row.note
    assert table.manifest["device"]["name"] == "pixel4"


def test_rule_tests_and_look_up_tables_of_nn_meter(tmp_path):
    rule = {
        "dwconv_relu": {
            "dwconv": {"model": "m", "shapes": [[28, 28, 16]], "latency": "41.781 +- 1.0"},
            "block": {"model": "m", "shapes": [[28, 28, 16]], "latency": "41.4198 +- 1.0"},
        },
        "BF_se_relu": {"latency": {"block": "20.3 +- 1.0", "se": "20.5 +- 1.0"}, "obey": True},
    }
    table = import_table(write(tmp_path, "rule.json", rule), unit="us")
    assert [key.removeprefix("external:nn-meter:") for key in table.rows] == [
        "dwconv_relu/dwconv@28x28x16",
        "dwconv_relu/block@28x28x16",
        "BF_se_relu/block",
        "BF_se_relu/se",
    ]
    table = import_table(write(tmp_path, "lut.json", {"conv_64_16_3": 0.92, "b": 1}), unit="ms")
    assert [row.median for row in table.rows.values()] == [0.92, 1.0]


def test_the_unit_of_nn_meter_has_to_be_given(tmp_path):
    """Its first versions wrote microseconds, later ones milliseconds, under the same names."""
    path = write(tmp_path, "lut.json", {"conv_64": 0.92})
    with pytest.raises(UsageError, match="--unit ms"):
        import_table(path)
    with pytest.raises(UnknownNameError, match="fortnight"):
        import_table(path, unit="fortnight")
    path = write(tmp_path, "t.csv", "key,median_us\na,1\n")
    with pytest.raises(UsageError, match="says us, not ms"):
        import_table(path, unit="ms")


def test_networks_of_the_nn_meter_data_set(tmp_path):
    lines = [
        {
            "id": "alexnet_0",
            "cortexA76cpu_tflite21": 71.7,
            "adreno640gpu_tflite21": 11.2,
            "graph": {},
        },
        {
            "id": "alexnet_1",
            "cortexA76cpu_tflite21": None,
            "adreno640gpu_tflite21": 9.0,
            "graph": {},
        },
    ]
    path = write(tmp_path, "alexnet.jsonl", "\n".join(map(json.dumps, lines)))
    table = import_table(path, unit="ms", device="cortexA76cpu_tflite21")
    assert [(row.key, row.median) for row in table.rows.values()] == [
        ("external:nn-meter:network/alexnet_0", 71.7)]  # fmt: skip
    with pytest.raises(UnknownNameError, match="adreno640gpu_tflite21"):
        import_table(path, unit="ms", device="adreno")
    with pytest.raises(TableError, match="line 2"):
        import_table(write(tmp_path, "b.jsonl", json.dumps(lines[0]) + "\n{"), unit="ms",
                     device="cortexA76cpu_tflite21")  # fmt: skip


def test_blocks_of_once_for_all(tmp_path):
    text = f"""
{BLOCK.format(3, 3)}:
  count: 156
  mean: 5.6
  var: 0.09
{BLOCK.format(6, 3)}: {{mean: 1e-2, count: 7}}
Logits-input:7x7x1280-output:1000: {{mean: 9.3e-1}}
"""
    table = import_table(write(tmp_path, "pixel1.yaml", text))
    first, second, third = table.rows.values()
    assert first.key == f"external:once-for-all:{BLOCK.format(3, 3)}"
    assert (first.median, first.samples) == (5.6, 156)
    assert first.iqr == pytest.approx(1.34898 * 0.3)
    assert (second.median, second.samples, third.median) == (0.01, 7, 0.93)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: {count: 3}\n", "line 1: a has no mean"),
        ("\na: {mean: quick}\n", "line 2: 'quick' is not a number"),
        ("a: {mean: {x: 1}}\n", "line 1: a has no mean"),
        ("a: [1, 2\nb: 3", "line 2: not YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("a: {mean: .inf}\n", "line 1"),
        ("a: {mean: !!python/object/apply:os.system ['true']}\n", "line 1: a has no mean"),
    ],
)
def test_yaml_that_is_no_table_is_refused_and_never_run(tmp_path, text, error):
    with pytest.raises(TableError, match=error):
        import_table(write(tmp_path, "t.yaml", text))


def test_nested_aliases_stay_small(tmp_path):
    bomb = "a0: &a0 {mean: 1}\n" + "".join(
        f"a{i}: &a{i} {{mean: 1, x: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
    )
    assert len(import_table(write(tmp_path, "t.yaml", bomb)).rows) == 30


def test_the_audit_finds_what_is_wrong_with_a_table_of_others(tmp_path):
    lines = [
        f"{BLOCK.format(e, k)}: {{mean: {e * k * (1000 if (e, k) == (4, 5) else 1)}, count: 9}}"
        for e in (2, 3, 4, 6)
        for k in (3, 5, 7)
    ]
    table = import_table(write(tmp_path, "t.yaml", "\n".join(lines)))
    found = {finding.row for finding in audit(table) if finding.severity == "error"}
    assert found == {f"external:once-for-all:{BLOCK.format(4, 5)}"}


def test_errors_are_one_line_and_formats_are_known(tmp_path):
    for name, text in (("t.txt", "a"), ("t.json", "[1]"), ("t.json", "{"), ("t.yaml", "")):
        with pytest.raises(VitnasError) as caught:
            import_table(write(tmp_path, name, text), unit="ms")
        assert "\n" not in str(caught.value)
        assert caught.value.fix
    with pytest.raises(TableError, match="cannot read"):
        import_table(tmp_path / "none.csv")
