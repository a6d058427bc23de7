"""Modules of one's own: found by name if they are allowed, and told apart when they are broken."""

from __future__ import annotations

import pytest

from nas.data import load_data
from nas.errors import UnknownNameError, UsageError
from nas.extensions import load_module
from nas.families import load_space
from nas.tasks import load_task
from nas.training.objectives import load_objective


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    """A package `a_lab` with modules that are broken in one way each, on the path and allowed."""
    folder = tmp_path / "a_lab"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "empty": "",
        "typo": "import torhc\n",
        "syntax": "def f(:\n",
        "raises": "\n1 / 0\n",
        "single": "PRESETS = {'small': 3}\n",
        "crash": "from toys.pointset import PRESETS as P\n"
        "domain, parts = P['debug']\n"
        "class Crash(type(parts)):\n"
        "    def stem(self, size): ...\n"
        "PRESETS = {'small': (domain, Crash())}\n",
    }.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VITNAS_EXTENSIONS", "toys,a_lab")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: load_space("a_lab.empty:small"), "is no family: it has no `PRESETS`"),
        (lambda: load_data("a_lab.empty:some"), "is no data set: it has no `load`"),
        (lambda: load_task({"task": "a_lab.empty"}), "is no task: it has no `TASK`"),
        (
            lambda: load_objective("a_lab.empty", load_space("vit:debug")),
            "is no objective: it has no `OBJECTIVE`",
        ),
        (lambda: load_space("a_lab.typo:small"), "cannot be imported: .*No module named 'torhc'"),
        (lambda: load_space("a_lab.syntax:small"), r"cannot be imported: SyntaxError.*syntax.py"),
        (lambda: load_space("a_lab.raises:small"), r"ZeroDivisionError.*raises.py:2"),
        (lambda: load_space("a_lab.single:small"), "a preset is a pair"),
        (lambda: load_space("a_lab.crash:small"), "cannot be used: TypeError: .*stem"),
        (lambda: load_space("a_lab.absent:small"), "there is no module 'a_lab.absent'.*PYTHONPATH"),
        (lambda: load_space("other.nets:small"), "does not list; set VITNAS_EXTENSIONS=other"),
    ],
)
def test_what_is_wrong_with_a_module_is_one_line(load, message):
    with pytest.raises(UsageError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_a_preset_that_is_not_there_is_compared_with_those_of_its_own_family():
    with pytest.raises(UnknownNameError, match=r"did you mean toys\.pointset:debug"):
        load_space("toys.pointset:debgu")


def test_members_need_no_permission(monkeypatch):
    monkeypatch.delenv("VITNAS_EXTENSIONS")
    assert load_module("family", "search_spaces", "swin").__name__ == "search_spaces.swin"
