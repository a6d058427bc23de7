"""Fingerprints of code: what changes them, what does not, and that nothing is run for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import nas
from nas.versions import SEARCHED, _fingerprint, layer_code

FAMILY = '''
"""A family."""
from lab.blocks import Block
WIDTH = 48

class Wide(Block):
    """Wide."""
    def forward(self, x: int, *, scale=1e-5) -> int:
        return f"{x:>{WIDTH}}" "tail", (x * scale + 1)
'''
BLOCKS = "class Block:\n    heads = 3\n"


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The fingerprint of a family `lab.nets`, each time in a folder of its own."""

    def fingerprint(family, blocks=BLOCKS):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (folder / "lab").mkdir(parents=True)
        (folder / "lab/__init__.py").write_text("raise AssertionError('it was imported')\n")
        (folder / "lab/nets.py").write_text(family)
        (folder / "lab/blocks.py").write_text(blocks)
        monkeypatch.syspath_prepend(folder)
        layer_code.cache_clear()
        return layer_code("lab.nets")

    yield fingerprint
    layer_code.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 48", "# how wide\nWIDTH   =   0x30  # pixels"),
        ('"""Wide."""', '"""Wider than a block,\n\n    by far."""'),
        ('"""Wide."""\n', "pass\n"),
        ("x: int, *, scale=1e-5) -> int", "x,\n    *,\n    scale=0.00001,\n    )"),
        ('"tail", (x * scale + 1)', "'tail', x*scale + 1"),
        ("from lab.blocks import Block", "import lab.blocks\nfrom typing import Any"),
    ],
)
def test_words_and_formatting_do_not_count(code, old, new):
    assert old in FAMILY
    assert code(FAMILY.replace(old, new)) == code(FAMILY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 48", "WIDTH = 49"),
        ("scale=1e-5", "scale=2e-5"),
        ("x * scale + 1", "x * (scale + 1)"),
        ('"tail"', '"tail "'),
        ("{x:>{WIDTH}}", "{x:<{WIDTH}}"),
        ("class Wide(Block)", "class Wide"),
    ],
)
def test_a_changed_statement_counts(code, old, new):
    assert old in FAMILY
    assert code(FAMILY.replace(old, new)) != code(FAMILY)


def test_what_a_family_imports_from_its_own_package_counts(code):
    assert code(FAMILY, BLOCKS.replace("3", "4")) != code(FAMILY)
    relative = FAMILY.replace("from lab.blocks", "from .blocks")
    assert code(relative) == code(FAMILY)
    apart = FAMILY.replace("from lab.blocks import Block\n", "")
    assert code(apart, BLOCKS.replace("3", "4")) == code(apart)


def test_a_definition_may_move_to_another_file(code):
    moved = FAMILY.replace("WIDTH = 48\n", "")
    assert code(moved, BLOCKS + "WIDTH = 48\n") == code(FAMILY)


def test_all_layers_and_the_own_family_count_and_nothing_else(code):
    assert code("") == code("'''Nothing of its own.'''")
    assert layer_code("lab.nets") == layer_code("no_family_at_all")
    assert len({layer_code(f) for f in ("swin", "vit", "mobilevit", "no_family_at_all")}) == 4


def test_a_fingerprint_is_the_same_in_every_python(tmp_path):
    """The value is that of CPython 3.11.7, 3.12.1, 3.13.2 and 3.14.2, whose grammars differ."""
    (tmp_path / "code.py").write_text(dedent(STRESS))
    assert _fingerprint([tmp_path / "code.py"]) == "25cce71485fd"


STRESS = r'''
    """Documented."""
    import a.b as c
    def f(x: int = 3, *args, k=None, **kw) -> str:
        """Documented."""
        w = 5; y = f"{x!r:>{w}} {x=} {{}} {x:.3f}" f'{"q" + "é"}' "tail" 'é\x07'
        z = (f"{x}"
             "abc"
             f"{x:{w}.{w}}\n" rf"\d{x}")
        q = f""; q2 = f"{x}{x}"; q3 = "a" f"" "b"; q4 = f"{x:}"
        return y, -1, 0x_ff, 1e-5, 1j, b"\x00\xff", ..., True
    class A(B, m=1):
        x: int = 3
        def g(self): pass
    match x:
        case [1, *r] if r: y = lambda a, /, b: a
        case {"k": v, **rest}: pass
        case A(x=1) | None: pass
    try: pass
    except* E as e: x[1:2, ...] = {**a, 1: 2}
    async def h():
        async with a as b, c: await d
        return [x async for x in y if z]
    with (a as b, c): pass
'''


def test_no_layer_is_imported_to_read_its_code():
    code = (
        "import sys; from nas.versions import layer_code, search_code\n"
        "layer_code('swin'), search_code()\n"
        "assert not {'torch', 'search_spaces.swin'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_packages_of_a_search_exist():
    folder = Path(nas.__file__).parent
    assert [p for p in SEARCHED if not (folder / p / "__init__.py").exists()] == []
