"""Latency tables of other people, brought into the schema of ours.

Their rows are no layers of our spaces: keys stand below `external:`, the source is `external`, and
nothing predicts or searches with them. They can be listed, audited, drawn and compared.

CSV, one row a line: columns `key` and `median_ms` (or `_us`, `_s`), and where they are known
`p20_ms`, `iqr_ms`, `cpu_median_ms`, `samples` and `note`. Other columns are an error.
nn-Meter: profiled kernels or rule tests (`{"conv-bn-relu": {"id": {"config": {...}, "latency":
"1.2 +- 0.1"}}}`), look-up tables of blocks (`{"conv_64_16_...": 0.92}`), and the benchmark data set
(`.jsonl`: one network a line, one column a device). Its first versions wrote microseconds and later
ones milliseconds under the same names, so the unit has to be given.
Once-for-all and ProxylessNAS: YAML, `{"expanded_conv-input:...": {mean: 5.6, count: 156, var:
0.09}}`, in milliseconds.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nas.errors import TableError, UnknownNameError, UsageError, printable
from nas.latency.files import SCHEMA
from nas.latency.rows import Row
from nas.latency.table import LatencyTable
from nas.records import fingerprint, parse_json

PREFIX = "external:"
MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_LONGEST_KEY, _LONGEST_MS, _DEEPEST = 1000, 1e12, 20
NORMAL_P20, NORMAL_IQR = 0.84162, 1.34898  # standard deviations


class _Entry(NamedTuple):
    """One row as it stands in the file, in the unit of the file."""

    line: int
    key: str
    median: float
    p20: float | None = None
    iqr: float = 0.0
    cpu_median: float = 0.0
    samples: float = 0
    note: str = ""


class _File(NamedTuple):
    path: Path
    text: str
    column: str  # the one to read, in files of several devices; "" for the only one

    def error(self, line: int, why: str, fix: str = "mend the line, or leave it out") -> TableError:
        return TableError(f"{self.path}, line {line}: {printable(why)}", fix)

    def line_of(self, text: str) -> int:
        """Where a text first stands, for formats whose parser does not say."""
        found = self.text.find(text)
        return self.text.count("\n", 0, max(found, 0)) + 1


def import_table(path: Path, form: str = "", unit: str = "", device: str = "") -> LatencyTable:
    """Read a table of another tool; `form` is one of `FORMATS`, or follows from the ending.

    `unit` is needed where neither the format nor the file says it. `device` is what the table is
    called, and which column to read of the nn-Meter data set. Nothing in the file is executed.
    Raises `TableError` with file and line, `UsageError` for what cannot be told.
    """
    form = form or ENDINGS.get(path.suffix.lower(), "")
    if form not in FORMATS:
        raise UnknownNameError("format of a table", form or path.name, FORMATS)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise TableError(f"cannot read {path} ({why})", "check the path") from None
    if longest := _longest_number(text):
        line = text.count("\n", 0, longest) + 1
        raise TableError(f"{path}, line {line}: a number of hundreds of digits", "mend the line")
    read, known = FORMATS[form]
    file = _File(path, text, device)
    entries, found = read(file)
    unit = _unit(file, unit, found or known, certain=bool(found))
    rows: dict[str, Row] = {}
    for entry in entries:
        key = f"{PREFIX}{form}:{printable(entry.key, _LONGEST_KEY)}"
        row = _row(file, key, entry, MILLISECONDS[unit])
        if row.key in rows:
            raise file.error(entry.line, f"{entry.key} is there twice")
        rows[row.key] = row
    if not rows:
        raise TableError(f"{path} has no rows", f"is it a table of the format {form}?")
    return LatencyTable(rows, _manifest(file, form, unit, device))


def _unit(file: _File, given: str, known: str, certain: bool) -> str:
    if given and given not in MILLISECONDS:
        raise UnknownNameError("unit", given, MILLISECONDS)
    if certain and given and given != known:
        raise UsageError(f"{file.path} says {known}, not {given}", f"use --unit {known}")
    if not (given or known):
        raise UsageError(f"nothing says in which unit {file.path} is", "give it, e.g. --unit ms")
    return given or known


def _row(file: _File, key: str, entry: _Entry, scale: float) -> Row:
    if not (math.isfinite(entry.median) and entry.median > 0):
        raise file.error(entry.line, f"{entry.key} costs {entry.median:g}: no layer is free")
    p20 = entry.median if entry.p20 is None else entry.p20
    if not (0 <= p20 <= entry.median and 0 <= entry.iqr < math.inf):
        raise file.error(entry.line, f"percentiles of {entry.key} cannot be")
    if not 0 <= entry.cpu_median < math.inf:
        raise file.error(entry.line, f"{entry.key} took {entry.cpu_median:g} of processor time")
    if not 0 <= entry.samples < 10**9:
        raise file.error(entry.line, f"{entry.key} has {entry.samples:g} samples")
    numbers = (entry.median, p20, entry.iqr, entry.cpu_median)
    median, p20, iqr, cpu_median = (round(scale * number, 9) for number in numbers)
    if not 0 < median < _LONGEST_MS or max(iqr, cpu_median) >= _LONGEST_MS:
        raise file.error(entry.line, f"{entry.key} costs {median:g} ms: is the unit right?")
    return Row(key, median, p20, iqr, cpu_median, int(entry.samples), printable(entry.note))


def _manifest(file: _File, form: str, unit: str, device: str) -> dict[str, Any]:
    unknown = ("mape_percent", "p95_percent", "bias_percent", "kendall_tau", "raw_mape_percent")
    return {
        "schema": SCHEMA,
        "space": "external",
        "source": "external",
        "unit": "ms",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "vitnas_version": version("vitnas"),
        "layer_code": "",
        "protocol": printable(f"imported from {file.path.name}, format {form}, in {unit}"),
        "campaign": fingerprint(file.text),
        "device": {
            "name": printable(device or file.path.stem),
            "processor": "unknown",
            "runtime": "unknown",
        },
        # No network was run: nothing is known of what a sum of these rows predicts.
        "calibration": {"scale": 1.0, "overhead": 0.0, "fitted_on": 0, "held_out": 0}
        | dict.fromkeys(unknown, math.nan),
    }


_Read = Callable[[_File], tuple[Iterator[_Entry], str]]
_NUMBERS = ("median", "p20", "iqr", "cpu_median")


def _csv(file: _File) -> tuple[Iterator[_Entry], str]:
    reader = csv.DictReader(io.StringIO(file.text, newline=""))
    try:
        header = list(reader.fieldnames or [])
    except csv.Error as error:
        raise file.error(1, str(error)) from None
    units = [unit for unit in MILLISECONDS if f"median_{unit}" in header]
    unit = units[0] if units else "ms"
    allowed = {"key", "samples", "note", *(f"{name}_{unit}" for name in _NUMBERS)}
    wrong = sorted((set(header) - allowed) | ({"key", f"median_{unit}"} - set(header)))
    if wrong:
        names = (
            "name them key, median_ms (or _us, _s), p20_ms, iqr_ms, cpu_median_ms, samples, note"
        )
        raise file.error(1, f"columns wrong or missing: {', '.join(wrong)}", names)
    return _csv_entries(file, reader, unit), unit


def _csv_entries(file: _File, reader: csv.DictReader[str], unit: str) -> Iterator[_Entry]:
    for cells in _rows(file, reader):
        line = reader.line_num
        if None in cells or None in cells.values():
            raise file.error(line, "more or fewer cells than columns")
        numbers = {
            name: _number(file, line, cells[f"{name}_{unit}"])
            for name in _NUMBERS
            if cells.get(f"{name}_{unit}")
        }
        if "median" not in numbers:
            raise file.error(line, f"{cells['key']} has no median")
        samples = _number(file, line, cells.get("samples") or "0")
        yield _Entry(
            line, cells["key"], **numbers, samples=samples, note=cells.get("note") or ""
        )  # fmt: skip


def _rows(file: _File, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:  # a cell of more than 131,072 characters, for example
        raise file.error(reader.line_num + 1, str(error)) from None


def _longest_number(text: str) -> int:
    """Where a number begins that has more digits than any that is one; 0 if there is none."""
    found = re.search(r"\d{400}", text)
    return found.start() if found else 0


def _number(file: _File, line: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise file.error(line, f"{text!r} is not a number") from None


def _nn_meter(file: _File) -> tuple[Iterator[_Entry], str]:
    return (_data_set(file) if file.path.suffix == ".jsonl" else _profiled(file)), ""


def _profiled(file: _File) -> Iterator[_Entry]:
    """Rows of kernels, rule tests and look-up tables: the numbers are leaves of nested objects."""
    try:
        data = parse_json(file.text)
    except ValueError as error:
        raise TableError(f"{file.path} {error}", "is it a table of nn-Meter?") from None
    if not isinstance(data, dict):
        raise file.error(1, "not an object of kernels", "is it a table of nn-Meter?")
    seen: set[str] = set()
    for path, leaf, sizes in _leaves(file, data, ()):
        line = file.line_of(json.dumps(path[-1]))
        # Profiled kernels are called by random ids; what tells them apart is their sizes.
        plain = "/".join(path[:-1] if "(" in sizes and len(path) > 1 else path) + sizes
        key = f"{plain}#{path[-1]}" if plain in seen else plain
        seen.add(key)
        mean, _, deviation = str(leaf).partition("+-")
        sigma = _number(file, line, deviation) if deviation else None
        yield _mean(line, key, _number(file, line, mean), sigma, 0)


def _leaves(
    file: _File, data: Mapping[str, Any], path: tuple[str, ...], sizes: str = ""
) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    for name, value in data.items():
        here = (*path, name)
        if len(here) > _DEEPEST:
            why = "objects in objects, more than in any table of nn-Meter"
            raise file.error(file.line_of(json.dumps(name)), why)
        if isinstance(value, dict):
            own = _sizes(value) or sizes
            measured = value.get("latency", value)
            if isinstance(measured, dict):
                yield from _leaves(file, measured, here, own)
            else:
                yield here, measured, own
        elif not isinstance(value, bool | list | None) and name not in ("model", "obey"):
            yield here, value, sizes


def _sizes(kernel: Mapping[str, Any]) -> str:
    """`(CIN=16, HW=28)@28x28x16` of a kernel's configuration and input shapes, as far as known."""
    config, shapes = kernel.get("config"), kernel.get("shapes")
    text = ""
    if isinstance(config, dict):
        text = f"({', '.join(f'{k}={v}' for k, v in sorted(config.items()))})"
    if isinstance(shapes, list) and all(isinstance(shape, list) for shape in shapes):
        text += "@" + "+".join("x".join(map(str, shape)) for shape in shapes)
    return text


def _data_set(file: _File) -> Iterator[_Entry]:
    """Rows of a data set: one whole network a line."""
    for line, text in enumerate(file.text.splitlines(), 1):
        if not text.strip():
            continue
        try:
            record = parse_json(text)
            name = str(record["id"])
        except (ValueError, KeyError, TypeError):
            raise file.error(line, "not a JSON object with an id") from None
        columns = [k for k, v in record.items() if k != "id" and isinstance(v, int | float)]
        column = file.column or (columns[0] if len(columns) == 1 else "")
        if column not in record:
            raise UnknownNameError("device of this data set", column, columns, "use --device")
        if record[column]:  # null or 0: this network was not run there
            value = _number(file, line, str(record[column]))
            yield _Entry(line, f"network/{name}", value, note="a whole network")


def _mean(line: int, key: str, mean: float, sigma: float | None, count: float) -> _Entry:
    """A row from a mean and its deviation: percentiles are of a normal, and the note says so."""
    if sigma is None or not 0 < sigma < mean:
        return _Entry(line, key, mean, samples=count, note="mean")
    p20 = max(mean - NORMAL_P20 * sigma, 0.0)
    note = "mean; percentiles of a normal"
    return _Entry(line, key, mean, p20, NORMAL_IQR * sigma, samples=count, note=note)


def _once_for_all(file: _File) -> tuple[Iterator[_Entry], str]:
    return _blocks(file), ""


def _blocks(file: _File) -> Iterator[_Entry]:
    """Rows of blocks. The YAML is parsed to nodes only, so that nothing in it is constructed.

    Scalars stay text: YAML 1.1 takes `1e-2` for a string, and the numbers of these tables are
    written in any way.
    """
    try:
        root = yaml.compose(file.text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise file.error(mark.line + 1 if mark else 1, "not YAML") from None
    except (RecursionError, ValueError):
        raise file.error(1, "not YAML of blocks: it is nested too deep, or has odd text") from None
    if not isinstance(root, yaml.MappingNode):
        raise file.error(1, "not a mapping of blocks", "is it a table of once-for-all?")
    for name, value in root.value:
        line = name.start_mark.line + 1
        fields = {"mean": value.value}
        if isinstance(value, yaml.MappingNode):
            fields = {str(k.value): v.value for k, v in value.value}
        if not isinstance(fields.get("mean"), str):
            raise file.error(line, f"{name.value} has no mean")
        numbers = {k: _number(file, line, v) for k, v in fields.items() if k in _STATISTICS}
        sigma = math.sqrt(numbers["var"]) if numbers.get("var", 0) > 0 else None
        yield _mean(line, str(name.value), numbers["mean"], sigma, numbers.get("count", 0.0))


_STATISTICS = ("mean", "var", "count")
# How each format is read, and its unit where that is known of the format itself.
FORMATS: dict[str, tuple[_Read, str]] = {
    "csv": (_csv, ""),
    "nn-meter": (_nn_meter, ""),
    "once-for-all": (_once_for_all, "ms"),
}
ENDINGS = {
    ".csv": "csv",
    ".json": "nn-meter",
    ".jsonl": "nn-meter",
    ".yaml": "once-for-all",
    ".yml": "once-for-all",
}
