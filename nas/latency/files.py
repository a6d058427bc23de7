"""Latency tables as files: a manifest, the rows and the networks, checked when they are read."""

from __future__ import annotations

import csv
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from nas.errors import TableError, UnknownNameError, UsageError
from nas.latency.fit import Calibration
from nas.latency.rows import UNUSABLE, Reference, Row
from nas.records import write_csv, write_text
from nas.runtimes import SOURCES
from nas.tasks import load_task

T = TypeVar("T")

SCHEMA = 2
SAMPLES = "samples.jsonl"  # the journal of the campaign that measured a table


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    rows: Mapping[str, Row],
    references: Sequence[Reference],
) -> None:
    """Write `rows.csv`, `networks.csv` (where networks were run) and, last, `manifest.toml`."""
    unit = manifest["unit"]
    names = {name: f"{name}_{unit}" for name in ("median", "p20", "iqr", "cpu_median")}
    write_csv(folder / "rows.csv", [_renamed(asdict(rows[key]), names) for key in sorted(rows)])
    if references:
        names |= {"sum": f"sum_{unit}"}
        write_csv(folder / "networks.csv", [_renamed(asdict(run), names) for run in references])
    write_text(folder / "manifest.toml", tomli_w.dumps(manifest))


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Row], tuple[Reference, ...]]:
    """The manifest, the rows by key and the networks of the table in a folder.

    Raises `TableError` where there is none, or names the line that is damaged.
    """
    try:
        manifest = _read_manifest(folder / "manifest.toml")
        unit = manifest["unit"]
        rows = _read_csv(folder / "rows.csv", unit, _row)
        networks = folder / "networks.csv"
        references = _read_csv(networks, unit, _reference) if networks.exists() else []
    except OSError as error:
        raise TableError(
            f"no latency table in {folder} ({error.strerror})", "measure one: vitnas profile"
        ) from None
    found: dict[str, Row] = {}
    for line, row in enumerate(rows, 2):
        if row.key in found:
            raise _damaged(folder / "rows.csv", f"line {line}: {row.key} is there twice")
        found[row.key] = row
    return manifest, found, tuple(references)


def forget(folder: Path) -> None:
    """Delete a table and its samples, and nothing else that may lie in the folder."""
    for name in ("manifest.toml", "rows.csv", "networks.csv"):
        (folder / name).unlink(missing_ok=True)
    if (samples := folder / SAMPLES).exists():
        os.truncate(samples, 0)  # it may be locked: the file stays, and so does the lock


def _renamed(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    cells = {names.get(k, k): v for k, v in record.items()}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()}


def _damaged(path: Path, why: str) -> TableError:
    return TableError(
        f"the latency table {path} is damaged ({why})",
        "restore it, or delete its folder and measure it again: vitnas profile",
    )


_KEYS = {
    "space": str, "source": str, "unit": str, "date": str, "layer_code": str,
    "device": dict, "calibration": dict,
}  # fmt: skip


def _read_manifest(path: Path) -> dict[str, Any]:
    text = path.read_text(errors="replace")
    try:
        manifest: dict[str, Any] = tomllib.loads(text)
        schema = manifest.get("schema", 1)
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            raise TableError(
                f"the latency table {path} has the schema {schema}, this version reads {SCHEMA}",
                "upgrade vitnas" if newer else "measure it again: vitnas profile",
            )
        for key, kind in _KEYS.items():
            if not isinstance(manifest.get(key), kind):
                raise ValueError(f"{key} is missing or not a {kind.__name__}")
        if manifest["source"] not in SOURCES:
            raise ValueError(f"unknown source {manifest['source']!r}")
        if manifest["source"] != "external":
            _check_task(manifest)
        for key in ("name", "processor", "runtime"):
            if not isinstance(manifest["device"].get(key), str):
                raise ValueError(f"device.{key} is missing or no text")
        numbers = Calibration(**manifest["calibration"])
        _check_calibration(numbers, manifest["source"] == "external")
        if not math.isfinite(numbers.scale * numbers.overhead) or numbers.scale <= 0:
            raise ValueError("the calibration is not a positive scale and an overhead")
        return manifest
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None


def _check_task(manifest: Mapping[str, Any]) -> None:
    """Raise `ValueError` if no task can be made of the manifest.

    A task of one's own that may not be imported is no damage: `TableError` says what to do.
    """
    try:
        load_task(manifest)
    except KeyError as error:
        raise ValueError(f"its task lacks {error}") from None
    except UnknownNameError as error:
        raise ValueError(error.message) from None
    except UsageError as error:
        raise TableError(error.message, error.fix) from None


def _check_calibration(numbers: Calibration, unknown: bool) -> None:
    """Raise `ValueError` unless all entries are finite; errors may be `unknown` (not a number)."""
    for name, value in asdict(numbers).items():
        values = value.values() if isinstance(value, dict) else [value]
        for number in values:
            if not isinstance(number, int | float) or not (unknown or math.isfinite(number)):
                raise ValueError(f"calibration.{name} is {number!r}")


def _read_csv(path: Path, unit: str, parse: Callable[[dict[str, str]], T]) -> list[T]:
    """What `parse` makes of each line, given as a dictionary; columns without their unit."""
    found: list[T] = []
    with path.open(newline="", errors="replace") as file:
        lines = csv.reader(file)
        try:
            columns = [name.removesuffix(f"_{unit}") for name in next(lines, [])]
            for cells in filter(None, lines):
                if len(cells) < len(columns):
                    raise ValueError("it is cut off")
                found.append(parse(dict(zip(columns, cells))))
        except (ValueError, KeyError, csv.Error) as error:
            why = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise _damaged(path, f"line {lines.line_num}: {why}") from None
    return found


def _row(cells: dict[str, str]) -> Row:
    note = cells["note"]
    if note.startswith(UNUSABLE):
        return Row.without_numbers(cells["key"], note)
    median, p20, iqr, cpu = (_number(cells[k]) for k in ("median", "p20", "iqr", "cpu_median"))
    return Row(cells["key"], median, p20, iqr, cpu, int(cells["samples"]), note)


def _reference(cells: dict[str, str]) -> Reference:
    total, median, p20, iqr = (_number(cells[name]) for name in ("sum", "median", "p20", "iqr"))
    samples = int(cells["samples"])
    return Reference(cells["architecture"], cells["use"], total, median, p20, iqr, samples)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of milliseconds")
    return value
