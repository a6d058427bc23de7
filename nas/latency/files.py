"""Latency tables as files: a manifest, the rows and the networks, checked when they are read.

The manifest holds a fingerprint of all three under `contents`: what was altered by hand afterwards
is still read, so that `vitnas audit` can say what is wrong with it, but no search uses it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tomli_w

from nas.errors import TableError, UnknownNameError, UsageError
from nas.latency.fit import Calibration
from nas.latency.rows import UNUSABLE, Reference, Row
from nas.records import csv_text, fingerprint, write_text
from nas.runtimes import SOURCES
from nas.size import Size
from nas.tasks import load_task
from nas.typed import MismatchError, decode, mapping

T = TypeVar("T")

SCHEMA = 2
SAMPLES = "samples.jsonl"  # the journal of the campaign that measured a table
CONTENTS = "contents"
_MANIFEST, _ROWS, _NETWORKS = "manifest.toml", "rows.csv", "networks.csv"


class Files(NamedTuple):
    """What the files of a table hold, and whether they were altered after they were written."""

    manifest: dict[str, Any]
    rows: dict[str, Row]
    references: tuple[Reference, ...]
    altered: bool


@dataclass(frozen=True)
class _Manifest:
    """The keys of a manifest that anything reads, with their types; the rest is for people."""

    space: str
    source: str
    unit: str
    date: str
    layer_code: str
    device: dict[str, Any]
    calibration: dict[str, Any]
    context: str = "network"
    rounds: int = 0
    seconds: float = 0.0
    wall_over_cpu: float = 0.0
    held_up_percent: float = 0.0
    noise_percent: float = 0.0
    quantiles: dict[str, float] = field(default_factory=dict)
    resolutions: tuple[Size, ...] = ()
    measured_source: str = ""
    port: dict[str, Any] | None = None
    contents: str = ""


@dataclass(frozen=True)
class _Device:
    """What a manifest says of its device at least."""

    name: str
    processor: str
    runtime: str
    threads: int = 0


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    rows: Mapping[str, Row],
    references: Sequence[Reference],
) -> None:
    """Write `rows.csv`, `networks.csv` (where networks were run) and, last, `manifest.toml`."""
    unit = manifest["unit"]
    names = {name: f"{name}_{unit}" for name in ("median", "p20", "iqr", "cpu_median")}
    texts = [csv_text([_renamed(asdict(rows[key]), names) for key in sorted(rows)])]
    write_text(folder / _ROWS, texts[0])
    if references:
        names |= {"sum": f"sum_{unit}"}
        texts.append(csv_text([_renamed(asdict(run), names) for run in references]))
        write_text(folder / _NETWORKS, texts[1])
    else:
        (folder / _NETWORKS).unlink(missing_ok=True)  # of the table that was here before
    sealed = {**manifest, CONTENTS: _contents(manifest, texts)}
    write_text(folder / _MANIFEST, tomli_w.dumps(sealed))


def read(folder: Path) -> Files:
    """The manifest, the rows by key and the networks of the table in a folder.

    Raises `TableError` where there is none, or names the line that is damaged.
    """
    names = [_MANIFEST, _ROWS]
    if os.path.exists(folder / _NETWORKS):  # False, not an error, for a path that cannot be
        names.append(_NETWORKS)
    texts = [_read_text(folder, name) for name in names]
    manifest = _read_manifest(folder / _MANIFEST, texts[0])
    unit = manifest["unit"]
    rows = _read_csv(folder / _ROWS, texts[1], unit, _row)
    references = [
        r for text in texts[2:] for r in _read_csv(folder / _NETWORKS, text, unit, _reference)
    ]
    found: dict[str, Row] = {}
    for line, row in enumerate(rows, 2):
        if row.key in found:
            raise _damaged(folder / _ROWS, f"line {line}: {row.key} is there twice")
        found[row.key] = row
    altered = manifest.pop(CONTENTS, None) not in (None, _contents(manifest, texts[1:]))
    return Files(manifest, found, tuple(references), altered)


def _read_text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(
            f"no latency table in {folder} ({name}: {error.strerror})",
            "measure one: vitnas profile",
        ) from None
    except ValueError:
        raise _damaged(folder / name, "it is not text") from None


def _contents(manifest: Mapping[str, Any], texts: Sequence[str]) -> str:
    """A fingerprint of a manifest, and of the other files of its table."""
    own = tomllib.loads(tomli_w.dumps(dict(manifest)))
    return fingerprint(json.dumps(own, sort_keys=True, default=str), *texts)


_MOST = 1e15  # milliseconds, or millions of instructions: sums of rows stay finite


def _renamed(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    cells = {names.get(k, k): v for k, v in record.items()}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()}


def _damaged(path: Path, why: str) -> TableError:
    return TableError(
        f"the latency table {path} is damaged ({why})",
        "restore it, or delete its folder and measure it again: vitnas profile",
    )


def _read_manifest(path: Path, text: str) -> dict[str, Any]:
    try:
        manifest = tomllib.loads(text)
        schema = manifest.get("schema", 1)
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            raise TableError(
                f"the latency table {path} has the schema {schema!r:.40}, this version reads "
                f"{SCHEMA}",
                "upgrade vitnas" if newer else "measure it again: vitnas profile",
            )
        known = decode(_Manifest, manifest)
        decode(_Device, known.device, "device")
        if known.source not in SOURCES:
            raise MismatchError(f"unknown source {known.source!r}")
        _check_calibration(known.calibration, known.source == "external")
        _check_quantiles(known.quantiles)
        decode(dict[str, float], {k: v for k, v in (known.port or {}).items() if "percent" in k})
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise _damaged(path, why) from None
    if known.source != "external":
        _check_task(path, manifest)
    return manifest


def _check_task(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest of which no task can be made.

    A task of one's own that may not be imported is no damage: the error says what to do.
    """
    try:
        load_task(manifest)
    except UnknownNameError as error:
        raise _damaged(path, error.message) from None
    except UsageError as error:
        if "task" in manifest and "." in str(manifest["task"]):
            raise TableError(f"{path}: {error.message}", error.fix) from None
        raise _damaged(path, error.message) from None


def _check_quantiles(found: Mapping[str, float]) -> None:
    """Raise `ValueError` unless quantiles lie between 0 and 1, and their ratios can be such."""
    for name, ratio in found.items():
        if not 0 < float(name) < 1 or not 0 < ratio < _MOST:
            raise ValueError(f"quantiles.{name} is {ratio!r}")


def _check_calibration(numbers: Mapping[str, Any], unknown: bool) -> None:
    """Raise `MismatchError` unless all entries are finite; errors may be `unknown` (NaN)."""
    known = {
        name: 0.0 if unknown and isinstance(value, float) and math.isnan(value) else value
        for name, value in mapping(numbers, "calibration").items()
    }
    found = decode(Calibration, known, "calibration")
    if not math.isfinite(found.scale * found.overhead) or found.scale <= 0:
        raise MismatchError("the calibration is not a positive scale and an overhead")
    if min(found.factors.values(), default=1.0) <= 0:
        raise MismatchError("a factor of the calibration is not positive")


def _read_csv(path: Path, text: str, unit: str, parse: Callable[[dict[str, str]], T]) -> list[T]:
    """What `parse` makes of each line, given as a dictionary; columns without their unit."""
    found: list[T] = []
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = [name.removesuffix(f"_{unit}") for name in next(lines, [])]
        for cells in filter(None, lines):
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells in {len(columns)} columns")
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
    return Row(cells["key"], median, p20, iqr, cpu, _count(cells["samples"]), note)


def _reference(cells: dict[str, str]) -> Reference:
    total, median, p20, iqr = (_number(cells[name]) for name in ("sum", "median", "p20", "iqr"))
    samples = _count(cells["samples"])
    return Reference(cells["architecture"], cells["use"], total, median, p20, iqr, samples)


def _count(text: str) -> int:
    """The number of samples; what no campaign takes is no number of them."""
    if not (text.isdecimal() and len(text) < 10):
        raise ValueError(f"{text!r:.40} is no number of samples")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > _MOST:
        raise ValueError(f"{text!r:.40} is no number of milliseconds")
    return value
