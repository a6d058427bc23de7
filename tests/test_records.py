"""Nothing is ever lost: torn journals, failed writes, full disks."""

from __future__ import annotations

import errno

import pytest

from nas.errors import RunError
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
