"""Nothing is ever lost: torn journals, failed writes, full disks."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.table import Table

from nas.errors import RunError, UnknownNameError
from nas.progress import Terminal
from nas.records import Journal, atomic_path, fingerprint, read_json, write_json, write_text


def test_a_torn_last_line_is_dropped_and_mended(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": 1})
    with journal.path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert journal.read() == [{"a": 1}]
    journal.append({"a": 3})
    assert journal.read() == [{"a": 1}, {"a": 3}]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": True})
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


WRITER = """
import sys, time
from pathlib import Path
from nas.records import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(path):
    """A process in the middle of writing a file."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    return process


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    path = tmp_path / "model.pt2"
    (tmp_path / ".model.pt2.notes").write_text("of the user")
    (tmp_path / ".model.onnx.0123abcd").write_text("of another file")
    with writer(path) as killed, writer(path) as alive:
        try:
            killed.kill()
            killed.wait()
            assert len(list(tmp_path.glob(".model.pt2.*"))) == 3
            write_text(path, "whole")
            left = [p for p in tmp_path.glob(".model.pt2.*") if p.name != ".model.pt2.notes"]
            assert [p.read_text() for p in left] == ["half"]  # of the one that is alive
        finally:
            alive.kill()
            alive.wait()
    write_text(path, "again")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"model.pt2", ".model.pt2.notes", ".model.onnx.0123abcd"}


def test_no_space_left_is_one_line_with_the_fix(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": 1})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"No space left on device; free some space .* is intact"):
        write_text(tmp_path / "y", "text")
    with pytest.raises(RunError, match="No space left"):
        journal.append({"a": 2})
    assert not (tmp_path / "y").exists()
    assert journal.read()[0] == {"a": 1}


def test_unreadable_json_is_an_error_with_the_fix(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match="cannot read"):
        read_json(tmp_path / "none.json")


def test_fingerprints_change_with_any_part():
    prints = {fingerprint(*parts) for parts in ([1], [2], [1, 2], ["12"], [b"12"], [{"a": 1}])}
    assert len(prints) == 6
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def flipped(data: bytes, bit: int) -> bytes:
    """The data with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_of_a_journal_or_a_file_gives_another_record(tmp_path):
    records = [{"id": "a", "percent": 51.25}, {"id": "b", "percent": 9.0}]
    journal, file = Journal(tmp_path / "j.jsonl"), tmp_path / "x.json"
    for record in records:
        journal.append(record)
    write_json(file, records[0])
    lines, text = journal.path.read_bytes(), file.read_bytes()
    for bit in range(8 * len(lines)):
        journal.path.write_bytes(flipped(lines, bit))
        for found in journal.read():  # a flipped bit in the name of the checksum leaves the rest
            assert {k: v for k, v in found.items() if k in ("id", "percent")} in records
    for bit in range(8 * len(text)):
        file.write_bytes(flipped(text, bit))
        try:
            found = read_json(file)
        except RunError:
            continue
        assert {k: v for k, v in found.items() if k in ("id", "percent")} == records[0]


def test_damaged_lines_of_a_journal_are_counted(tmp_path, capsys):
    journal = Journal(tmp_path / "j.jsonl")
    for i in range(3):
        journal.append({"a": i})
    journal.path.write_text(journal.path.read_text().replace('"a":1', '"a":7'))
    assert journal.read() == [{"a": 0}, {"a": 2}]
    assert "1 damaged lines are left out, the first is line 2" in capsys.readouterr().err


def test_records_without_a_checksum_are_read(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"a":1}\n')
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert Journal(tmp_path / "j.jsonl").read() == [{"a": 1}]
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "line 1"),
        (b'{"a": 1,\n}', "line 2"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 5_000, "thousands of digits"),
        (b'{"a": "\xff"}', "not text"),
    ],
)
def test_what_is_no_json_is_one_line_that_says_why(text, why, tmp_path):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(RunError, match=why) as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.fix


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_that_the_umask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_errors_are_one_printable_line_below_300_characters():
    for message, fix in (
        ("a\x1b[31m\nb" * 200, "c\u202ed" * 200),
        ("a", "b" * 900),
        ("a" * 900, "b"),
    ):
        error = RunError(message, fix)
        assert str(error).isprintable()
        assert len(str(error)) < 300
        assert (error.message, error.fix) != ("", "")
    assert str(RunError("runs/a  b\x1b[2J\n  c", " d ")) == "runs/a  b [2J c; d"
    assert str(RunError("a" * 200, "b" * 90)) == "a" * 200 + "; " + "b" * 90
    known = [f"name{i}" for i in range(999)]
    assert str(UnknownNameError("thing", "zzz", known)).endswith(" more")
    assert len(str(UnknownNameError("thing", "z" * 9_000, known, "(see the list)"))) < 300


def test_texts_from_elsewhere_are_no_markup_and_no_commands_of_a_terminal():
    file = io.StringIO()
    terminal, grid = Terminal(file=file, width=80), Table(box=None)
    grid.add_column("[i]head")
    grid.add_row("Cortex [/bold] \x1b]0;title\x07 :warning:")
    terminal.print("run[/] \x9b2J", grid, style="bold")
    assert file.getvalue().split() == [
        "run[/]",
        "2J",
        "[i]head",
        "Cortex",
        "[/bold]",
        "]0;title",
        ":warning:",
    ]
