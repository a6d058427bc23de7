"""Every kind of file that is read, damaged in many ways: a clear error, or the right answer."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from conftest import export_weights_alone, measure_as_predicted, searched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nas
from nas.errors import VitnasError
from nas.evaluation.score_task import AccuracyRecord, ScoreRecord
from nas.families import load_space
from nas.latency.audit import audit
from nas.latency.campaign import Samples
from nas.latency.external import import_table
from nas.latency.table import LatencyTable
from nas.records import Journal, write_json
from nas.report.saved_run import SavedRun, known_scores
from nas.run.stopwatch import TimeRecord
from nas.runtimes import load_runtime, runtimes
from nas.tasks.classification import Classification

SPACE = load_space("swin:debug", Classification(2))
TRIES = settings(
    max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def run(photo_data, debug_supernet, tmp_path_factory):
    """A finished run of few candidates."""
    folder = tmp_path_factory.mktemp("damaged")
    return searched(SPACE, folder, photo_data, debug_supernet, evaluations=4)


# --- Ways of damaging a file ---

DEEP = "[" * 500 + "]" * 500
VALUES = st.sampled_from(
    [None, True, -1, 0, 900, 10**30, 10**400, -1.5, math.nan, math.inf, 1e300, "", "x" * 200_000,
     "\x1b]0;title\x07\x9b2J", "a\nb", "[/bold]", "\ud800", [], {}, [[1]], {"a": 1}, ["", 3],
     json.loads(DEEP)]
)  # fmt: skip


@st.composite
def bytes_damaged(draw, data: bytes) -> bytes:
    """The data with bits flipped, or a part lost, doubled, or overwritten."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    length = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["flip", "cut", "lose", "double", "over", "empty"]))
    if kind == "flip" and data:
        changed = bytearray(data)
        for bit in draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=3)):
            changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)
    odd = draw(st.sampled_from([b"\xff\xfe", b"\0", b"9" * 5000, b"[" * 2000, b"nan", b"\x1b[2J"]))
    return {
        "cut": data[:at],
        "lose": data[:at] + data[at + length :],
        "double": data[: at + length] + data[at:],
        "over": data[:at] + odd + data[at + length :],
    }.get(kind, b"")


def places(data, where=()):
    """The way to every value inside of JSON."""
    if where:
        yield where
    items = (
        enumerate(data)
        if isinstance(data, list)
        else data.items()
        if isinstance(data, dict)
        else ()
    )
    for key, value in items:
        yield from places(value, (*where, key))


@st.composite
def value_damaged(draw, data):
    """The JSON with one value deleted, or made another."""
    changed = json.loads(json.dumps(data))
    *parents, last = draw(st.sampled_from(list(places(changed))))
    inner = changed
    for key in parents:
        inner = inner[key]
    if draw(st.booleans()):
        del inner[last]
    else:
        inner[last] = draw(VALUES)
    return changed


@st.composite
def cells_damaged(draw, text: str) -> str:
    """The CSV with one cell made another, lost or added."""
    rows = list(csv.reader(io.StringIO(text)))
    row = rows[draw(st.integers(0, len(rows) - 1))]
    i = draw(st.integers(0, len(row) - 1))
    kind = draw(st.sampled_from(["other", "lose", "add"]))
    cell = str(draw(VALUES)).replace("\ud800", "?")
    row[i : i + (kind != "add")] = [] if kind == "lose" else [cell]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def refused(action):
    """What an action gives, or None after checking that its error is one that a person can use."""
    try:
        return action()
    except VitnasError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 300
        assert error.fix
    return None


def same(a, b) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


# --- The directory of a run ---


def facts(folder: Path):
    """What a run says of itself, by every reader of its directory but the slow ones."""
    saved = SavedRun.load(folder)
    candidates = [c for a in saved.record.answers for c in (a.winner, *a.baselines, *a.front)]
    return {
        "record": {k: v for k, v in saved.record.to_json().items() if k != "run_dir"},
        "command": saved.command,
        "budget": saved.command_from(5.0),
        "networks": [saved.architecture(c).id for c in candidates],
        "cloud": saved.cloud.tolist(),
        "archive": saved.archive.tolist(),
        "ladder": saved.ladder(),
        "scored": [[s.predicted_ms, s.percent, s.dropped] for s in saved.scored],
    }


SEALED = ["run.json", "settings.json", "table/manifest.toml", "table/rows.csv"]
WHOLE = [*SEALED, "candidates.jsonl", "cloud.csv", "archive.csv"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_of_a_run_is_an_error_or_changes_nothing(run, name, tmp_path):
    """Bits and parts of it; the numbers of CSV files without a checksum may change, and no others."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    file, right = folder / name, facts(folder)
    whole = file.read_bytes()

    @TRIES
    @given(bytes_damaged(whole))
    def check(damaged):
        file.write_bytes(damaged)
        found = refused(lambda: facts(folder))
        if found is None:
            return
        if name in ("cloud.csv", "archive.csv"):
            unsealed = {"cloud.csv": ["cloud"], "archive.csv": ["archive", "ladder"]}[name]
            found |= {key: right[key] for key in unsealed}
        elif name == "candidates.jsonl":  # a line less
            assert all(own in right["scored"] for own in found.pop("scored"))
            found["scored"] = right["scored"]
        elif name.startswith("table/") and LatencyTable.load(folder / "table").altered:
            return  # which a search refuses
        assert same(found, right)

    check()


@pytest.mark.parametrize("name", ["run.json", "settings.json"])
def test_a_value_of_a_run_that_cannot_be_is_refused(run, name, tmp_path):
    """Values that are sealed, as if an earlier version had written them: what is read is of its type."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    whole = json.loads((folder / name).read_text())
    del whole["check"]

    @TRIES
    @given(value_damaged(whole), st.booleans())
    def check(damaged, sealed):
        if sealed:
            try:
                write_json(folder / name, damaged)
            except (UnicodeEncodeError, ValueError):
                return
        else:
            (folder / name).write_text(json.dumps(damaged))
        found = refused(lambda: facts(folder))
        if found is not None:
            winner = found["record"]["winner"]
            assert 0 <= winner["search_top1_percent"] <= 100
            assert 0 <= winner["test_top1_percent"] <= 100

    check()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("candidates", ScoreRecord), ("measured", TimeRecord), ("test", AccuracyRecord)],
)
def test_a_damaged_journal_loses_lines_and_changes_none(run, name, kind, tmp_path):
    journal = Journal(tmp_path / f"{name}.jsonl")
    whole = (run / journal.path.name).read_bytes()
    lines = Journal(run / journal.path.name).read()

    @TRIES
    @given(bytes_damaged(whole))
    def check(damaged):
        journal.path.write_bytes(damaged)
        found = refused(lambda: journal.read(kind, "top1"))
        keys = set(lines[0])
        for record in found or []:
            assert {k: v for k, v in record.items() if k in keys} in lines

    check()

    @TRIES
    @given(st.sampled_from(lines).flatmap(value_damaged))
    def check_values(damaged):
        journal.path.write_text(json.dumps(damaged) + "\n")
        for record in refused(lambda: journal.read(kind, "top1")) or []:
            assert 0 <= record.get("top1_percent", 0) <= 100
            assert all(0 < ms < math.inf for ms in record.get("samples_ms", [1]))
        if name == "candidates":
            refused(lambda: known_scores(tmp_path, "top1"))

    check_values()


def test_a_damaged_journal_of_a_campaign_is_an_error_or_loses_lines(tmp_path):
    records = [
        {"identity": "a", "campaign": "b"},
        {"samples": {"row": [[1.0, 1.0], [1.25, 1.0]]}},
        {"failed": {"other": "failed: it"}, "alone": ["row"]},
        {"chosen": ["{}"]},
    ]
    journal = Journal(tmp_path / "samples.jsonl")
    journal.write(records)
    whole = journal.path.read_bytes()
    right = Samples(journal).visits

    @TRIES
    @given(bytes_damaged(whole))
    def check(damaged):
        journal.path.write_bytes(damaged)
        found = refused(lambda: Samples(journal))
        assert (
            found is None
            or found.visits in (right, {})
            or "double" in repr(found.visits)
            or all(visit in right["row"] for visit in found.visits["row"])
        )

    check()


@dataclass(frozen=True)
class Cube:
    a: int
    b: int
    c: int


SIDE = nas.Choice(*range(6))


def search_cube(out, **more):
    """Search a space of one's own whose cost is a function, too."""
    return nas.search(
        12.0, space=nas.Space(Cube, a=SIDE, b=SIDE, c=SIDE), latency=lambda m: 1.0 + m.a + m.b * m.c,
        score=lambda m: m.a + 2.0 * m.b - 0.5 * m.c, batch=4, out=out, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["candidates", "latencies", "batches"])
def test_a_search_goes_on_from_a_damaged_journal_as_if_nothing_had_been(name, tmp_path):
    search_cube(tmp_path / "run", evaluations=12)
    right = search_cube(tmp_path / "whole", evaluations=20)
    folder = tmp_path / "again"

    @settings(TRIES, max_examples=6)
    @given(bytes_damaged((tmp_path / "run" / f"{name}.jsonl").read_bytes()))
    def check(damaged):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "run", folder)
        (folder / f"{name}.jsonl").write_bytes(damaged)
        found = refused(lambda: search_cube(folder, evaluations=20, resume=True))
        assert found is None or found.candidates == right.candidates

    check()


def test_a_flipped_bit_of_a_score_gives_the_same_winner(
    run, photo_data, debug_supernet, tmp_path, monkeypatch
):
    """It made a winner of 900 percent: the score is computed again."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    before = SavedRun.load(folder)
    for name in ("run.json", "report.html"):
        (folder / name).unlink()
    text = (folder / "candidates.jsonl").read_text()
    score = re.search(r'"top1_percent":([0-9.]+)', text)
    (folder / "candidates.jsonl").write_text(f"{text[: score.start(1)]}900.0{text[score.end(1) :]}")
    table = LatencyTable.load(folder / "table")
    measure_as_predicted(monkeypatch, table)
    export_weights_alone(monkeypatch)
    monkeypatch.setattr("nas.report.report.write_report", lambda *_: None)
    result = nas.search(
        before.settings.budgets[0]["torch-cpu"], space="swin:debug", data=photo_data.name,
        supernet=debug_supernet, evaluations=4, search_images=10, final_images=10,
        test_images=10, out=folder, resume=True,
    )  # fmt: skip
    assert same(result["winner"], before.record["winner"])
    assert same(result["front"], before.record["front"])


# --- Latency tables, own and foreign ---


@pytest.mark.parametrize("name", ["manifest.toml", "rows.csv", "networks.csv"])
def test_a_damaged_table_is_an_error_or_can_be_audited(name, tmp_path):
    shipped = Path(nas.__file__).parents[1] / "latency_tables" / "torch-cpu" / "swin-micro"
    LatencyTable.load(shipped).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    right = LatencyTable.load(tmp_path)
    text = whole.decode()
    if name.endswith("csv"):
        values = cells_damaged(text).map(lambda t: t.encode("utf-8", "replace"))
    else:
        values = value_damaged(json.loads(json.dumps(tomllib.loads(text), default=str))).map(
            as_toml
        )

    @TRIES
    @given(st.one_of(bytes_damaged(whole), values))
    def check(damaged):
        (tmp_path / name).write_bytes(damaged)
        table = refused(lambda: LatencyTable.load(tmp_path))
        if table is None:
            return
        assert table.altered or (table.rows, table.manifest) == (right.rows, right.manifest)
        for finding in refused(lambda: audit(table, right)) or []:
            assert finding.fix
        refused(lambda: table.limit(20.0, 0.95))

    check()


def as_toml(data) -> bytes:
    try:
        return tomli_w.dumps(data).encode()
    except (TypeError, UnicodeEncodeError, RecursionError, ValueError):
        return b"none = "


FOREIGN = {
    "t.csv": "key,median_ms,p20_ms,iqr_ms,cpu_median_ms,samples,note\na,1.5,1.2,.2,1.4,5,\nb,2,,,,,x\n",
    "lut.json": json.dumps({"conv": {"x7": {"config": {"HW": 28}, "shapes": [[28, 28, 16]],
                "latency": "41.7 +- 1.0"}}, "lut": {"conv_64": 0.9, "b": {"latency": 2}}}, indent=1),
    "nets.jsonl": '{"id": 1, "cpu": 3.5, "gpu": 1.5}\n{"id": 2, "cpu": 4.5, "gpu": null}\n',
    "lut.yaml": "conv-1:\n  mean: 5.6\n  count: 156\n  var: 0.09\nconv-2: {mean: 1e-2}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_damaged_foreign_table_is_an_error_or_one_that_audits(name, tmp_path):
    text, file = FOREIGN[name], tmp_path / name
    ways = [bytes_damaged(text.encode())]
    if name.endswith("csv"):
        ways.append(cells_damaged(text).map(lambda t: t.encode("utf-8", "replace")))
    if name.endswith("json"):
        ways.append(value_damaged(json.loads(text)).map(lambda data: json.dumps(data).encode()))

    @TRIES
    @given(st.one_of(*ways))
    def check(damaged):
        file.write_bytes(damaged)
        device = "cpu" if name.endswith("jsonl") else ""
        unit = "" if name.endswith(("csv", "yaml")) else "ms"
        table = refused(lambda: import_table(file, unit=unit, device=device))
        if table is None:
            return
        table.save(tmp_path / "table")
        again = LatencyTable.load(tmp_path / "table")
        assert again.rows == table.rows
        assert not again.altered
        for row in again.rows.values():
            assert (row.key + row.note).isprintable()
            assert all(0 <= x < math.inf for x in (row.p20, row.iqr, row.cpu_median))
            assert row.median > 0
        assert not [f for f in audit(again) if f.rule == "number"]

    check()


# --- Architectures and devices ---

ARCHITECTURES = {name: load_space(name) for name in ("swin:debug", "mobilevit:debug", "vit:debug")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_damaged_architecture_is_an_error_that_names_the_fix(name):
    space = ARCHITECTURES[name]
    text = space.largest.to_json()
    values = value_damaged(json.loads(text)).map(lambda data: json.dumps(data).encode())

    @TRIES
    @given(st.one_of(bytes_damaged(text.encode()), values))
    def check(damaged):
        found = refused(lambda: space.parse(damaged.decode("utf-8", "replace")))
        assert found is None or found in space

    check()


WORDS = st.sampled_from(
    ["torch-cpu", "cpu", "onnxruntime-cpu", "torch-compile", "ssh://", "ethos-u55-128", "threads=1",
     "threads=0", "threads=" + "9" * 5000, "threads=²", "threads=nan", "=", "", "dtype=float16",
     "dtype=\x1b[2J", "batch=-1", "batch=1e3", "x" * 5000, "[/bold]", "a\nb", "\ud800", "context=é"]
)  # fmt: skip


@TRIES
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_a_device_is_known_or_refused_in_one_line(words):
    def describe():
        runtime = load_runtime(",".join(words))
        return runtime.device

    known = refused(describe)
    assert known is None or known.partition(",")[0].partition("://")[0] in " ".join(runtimes())
