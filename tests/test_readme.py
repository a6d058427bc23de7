"""The README's commands run as written (with fewer images, so that it takes seconds)."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import paint

README = Path(__file__).parents[1] / "README.md"
SMALLER = {
    "search": ["--evaluations", "2", "--search-images", "16", "--test-images", "10"],
    "train": ["--images", "300"],
    "measure": ["--rounds", "5"],
    "quantize": ["--images", "10", "--calibration", "4"],
}


def commands():
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("vitnas ")]


def test_the_readme_opens_with_the_two_commands():
    text = README.read_text()
    assert "pip install . && vitnas search --budget 20ms" in text
    assert "pip install '.[test]' && pytest" in text
    assert text.index("vitnas search") < text.index("\n## ")


def test_every_command_of_the_readme_runs(tmp_path):
    """With budgets twice as large: this may be a slower machine, and a busy one."""
    paint(tmp_path / "photos", 12, size=64)
    found = commands()
    assert {line.split()[1] for line in found} >= {
        "search", "profile", "train", "report", "measure", "export", "inspect", "list"}  # fmt: skip
    for line in found:
        words = [
            re.sub(r"^(\d+)ms$", lambda ms: f"{2 * int(ms[1])}ms", word)
            for word in shlex.split(line, comments=True)[1:]
        ]
        program = [sys.executable, "-m", "nas.cli", *words, *SMALLER.get(words[0], [])]
        result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


def test_the_search_of_a_space_of_ones_own_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (own,) = [block for block in blocks if "nas.Additive(" in block]
    program = [sys.executable, "-c", own]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert "Found(architecture=Net(layers=" in result.stdout, result.stderr


def test_pictures_and_files_named_in_the_readme_exist():
    names = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README.read_text())
    for name in (a or b for a, b in names):
        if not name.startswith("http"):
            assert (README.parent / name).exists(), name


@pytest.mark.parametrize(
    "path", ["nas/README.md", "experiments/README.md", "latency_tables/README.md"]
)
def test_every_folder_says_what_it_is(path):
    assert (README.parent / path).read_text().startswith("# ")
