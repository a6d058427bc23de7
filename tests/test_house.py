"""The house rules: imports run downwards, types and style hold."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import nas.errors

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("nas", "search_spaces") for path in (ROOT / package).rglob("*.py")
)


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


def circle(*roots):
    """Find modules that import each other in a circle, or else packages; types count, too."""
    graph = grimp.build_graph(*roots, exclude_type_checking_imports=False, cache_dir=None)
    rooms = {room for root in roots for room in graph.find_children(root) or {root}}
    modules = graph.modules - {*roots}  # the root says what is public, and imports it as it is used
    for nodes in (modules, rooms):
        arrows = {node: graph.find_modules_directly_imported_by(node) & nodes for node in nodes}
        try:
            TopologicalSorter({a: {b for b in arrows[a] if b != a} for a in arrows}).prepare()
        except CycleError as error:
            return error.args[1]
        for room in rooms:
            graph.squash_module(room)
    return []


# Advisories as far as they are known here: the first release in which all of a package are mended.
MENDED = {
    "torch": "2.8.0",  # CVE-2025-32434 (weights_only), CVE-2025-3730
    "pillow": "12.2.0",  # CVE-2025-48379 (DDS), CVE-2026-25990 (PSD), FITS
    "jinja2": "3.1.6",  # CVE-2025-27516 (sandbox)
    "pyyaml": "5.4",  # CVE-2020-14343 (full_load)
    "onnx": "1.21.0",  # CVE-2025-51480 and its successors (paths of external data)
    "ray": "2.60.0",  # CVE-2025-62593 (2.52); tokens by default for a Ray that is started here
    "pytest": "9.0.3",  # CVE-2025-71176 (folders in /tmp)
}


def test_no_dependency_may_have_a_known_vulnerability():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = [Requirement(text) for group in groups for text in group]
    for name, mended in MENDED.items():
        bounds = [one.specifier for one in asked if one.name == name]
        assert bounds
        for bound in bounds:
            lowest = min(Version(s.version) for s in bound if s.operator in (">=", "=="))
            assert lowest >= Version(mended), name


def test_no_import_goes_in_a_circle():
    assert circle("nas", "search_spaces") == []


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("import planted.two.types", "import planted.one.types"),
        ("from planted.two import types", "if TYPE_CHECKING:\n    from planted.one import names"),
        ("import planted.two.names", "def later():\n    import planted.one.types"),
    ],
)
def test_a_planted_circle_is_found(one, two, tmp_path, monkeypatch):
    """Between modules in the first case, and between packages alone in the others."""
    for room, line in (("one", one), ("two", two)):
        (folder := tmp_path / "planted" / room).mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        for name in ("__init__", "types", "names"):
            text = f"from typing import TYPE_CHECKING\n{line}\n" if name == "types" else ""
            (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert {"planted.one", "planted.two"} <= {".".join(m.split(".")[:2]) for m in circle("planted")}


def test_every_file_of_tests_says_what_it_tests():
    for path in ROOT.glob("tests/**/*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


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


def test_every_error_names_its_fix():
    """A layer that does not run is no error of a user, but a note in a table."""
    kinds = {kind.__name__ for kind in vars(nas.errors).values() if isinstance(kind, type)}
    kinds -= {"PreparationError", "VitnasError"}
    without = [
        f"{path}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in kinds
        and len(node.args) + len(node.keywords) < 2
        and not any(isinstance(a, ast.Starred) for a in node.args)
    ]
    assert without == []


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


def test_what_is_shipped_stays_small():
    """The wheel holds these folders; packed it is smaller still."""
    files = [
        file
        for folder in ("nas", "search_spaces", "latency_tables")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert sum(file.stat().st_size for file in files) < 60e6
