"""What the terminal is shown and the shell is told: closed and full outputs, figures, child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nas.cli import main

LIST = f"{sys.executable} -m nas.cli list supernets"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True)


@pytest.mark.parametrize("options", ["", " --json"])
def test_a_full_output_is_one_line(options):
    result = shell(f"{LIST}{options} > /dev/full")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("vitnas: cannot write to the standard output: No space left")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&- --json"])
def test_closed_outputs_are_no_errors(closed):
    result = shell(f"{LIST} {closed}")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_ends_early_ends_the_program_without_a_word():
    result = shell(f"set -o pipefail; {LIST} | true")
    assert result.returncode in (0, 1)  # 0 where it was faster
    assert result.stderr == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_figure_that_cannot_be_written_loses_no_numbers(options, capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    command = ["macs", "--models", "vit:debug", "--resolutions", "16,32", *options]
    with pytest.raises(SystemExit):
        main(command)
    right = capsys.readouterr().out
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "new" / "macs.png")])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == right
    assert f"\nvitnas: cannot write {tmp_path}/new/macs.png: No space left" in err
    assert list((tmp_path / "new").iterdir()) == []


def test_a_place_where_no_figure_can_be_is_said_first(capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "a.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "a.png", f"/proc/{'x' * 300}/a.png"):
        with pytest.raises(SystemExit) as ended:
            main(["macs", "--models", "vit:debug", "--out", str(path)])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (1, "")
        assert err.startswith("vitnas: cannot write")


@pytest.mark.parametrize("name", ["run[/] x", "exp [v2]", "a :warning: b", "[bold]"])
def test_the_names_of_folders_are_printed_as_they_are(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("key,median_ms\na,1\n")
    with pytest.raises(SystemExit) as ended:
        main(["import", "t.csv", "--out", name, "--device", f"{name}\x1b[31m"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"1 rows of {name} [31m: {name}\n"
    with pytest.raises(SystemExit):
        main(["report", f"{name}/r1"])
    assert capsys.readouterr().err.startswith(f"vitnas: {name}/r1 is not a finished run; ")


def test_paths_that_cannot_be_are_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no table of other tests is damaged
    for words in (
        ["audit", "x" * 5000], ["report", "x" * 5000], ["inspect", f"{'x' * 5000}/y"],
        ["import", "x" * 5000 + ".csv", "--out", "t"], ["search", "--budget", "9ms", "--from", "x" * 5000],
        ["import", "t.csv", "--out", "t", "--format", "\x1b[2J"],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(words)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("vitnas: ")
        assert "internal" not in err
        assert len(err) < 310
        assert err.rstrip("\n").isprintable()


def test_the_measuring_process_ends_with_the_one_that_started_it(tmp_path):
    """Killed at once, so that it cannot end what it started."""
    code = textwrap.dedent(f"""
        import subprocess
        from pathlib import Path
        from nas.families import load_space
        from nas.latency import end_to_end
        start = subprocess.Popen
        def kept(*arguments, **options):
            process = start(*arguments, **options)
            Path({str(tmp_path / "child")!r}).write_text(str(process.pid))
            return process
        subprocess.Popen = kept
        space = load_space("vit:debug")
        end_to_end.measure_fresh("torch-cpu", space, [space.largest], rounds=10**9)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "child").read_text())
    assert Path(f"/proc/{child}").exists() or not Path("/proc").exists()
    parent.kill()
    parent.wait()
    for _ in range(300):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it goes on")
