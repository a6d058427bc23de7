"""The house rules: imports run downwards, types and style hold."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["importlinter", "lint"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_house_rules(command):
    module, *arguments = command
    program = [sys.executable, "-m", module, *arguments]
    if module == "importlinter":
        program = [str(Path(sys.executable).parent / "lint-imports")]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_is_read_by_running_code():
    """No pickle in any form: tables and weights come from strangers."""
    for path in [*ROOT.glob("nas/**/*.py"), *ROOT.glob("search_spaces/*.py")]:
        text = path.read_text()
        assert "pickle.load" not in text, path
        assert "allow_pickle=True" not in text, path
        for call in text.split("torch.load(")[1:]:
            assert "weights_only=True" in call.partition(")")[0], path
        assert "yaml.load" not in text, path  # safe_load and compose make nothing but data


def test_what_experiments_import_is_there():
    """They take too long to be run here."""
    for path in ROOT.glob("experiments/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nas"):
                names = [alias.name for alias in node.names]
                missing = set(names) - set(dir(importlib.import_module(node.module)))
                assert not missing, f"{path.name}: {node.module} has no {missing}"


def test_the_table_of_floors_is_that_of_the_import_contracts():
    """Every module of `nas` stands in one row of nas/README.md, in the order of the contracts."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in settings["contracts"] if c["type"] == "layers"]
    contract = [[m.strip().removeprefix("nas.") for m in layer.split("|")] for layer in layers]
    section = (ROOT / "nas" / "README.md").read_text().partition("\n## Floors\n")[2]
    cells = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.MULTILINE)
    table = [re.findall(r"`(\w+)`", cell) for cell in cells]
    assert table == contract
    named = [name for floor in table for name in floor]
    files = {p.parent if p.name == "__init__.py" else p for p in ROOT.glob("nas/**/*.py")}
    there = {p.stem for p in files if p.parent == ROOT / "nas"}
    assert sorted(named) == sorted(there | {"search_spaces"})
