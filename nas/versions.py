"""What a measurement or a search depends on besides the device: packages, and code of this project.

Code has a fingerprint, by which tables and runs of other code are told apart. It is taken from
statements as Python's grammar sees them, so that what cannot change a number does not count:
comments, docstrings, formatting, annotations, imports, the order of the statements of a file, and
in which file a definition stands. Everything else counts, names and texts of errors too. Python
3.11 to 3.14 give the same fingerprint.

Its limits: it does not see that two files exchange constants of one name, nor that a name is
imported from elsewhere; and it looks into no other package (the versions of torch and of the
runtimes are recorded beside it).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path
from typing import Any

from nas.records import fingerprint

SEARCHED = ("space", "tasks", "network", "trellis", "strategy", "evaluation", "workers", "run")


def installed(package: str) -> str:
    """The version of a distribution, without its local part (such as `+cpu`)."""
    return version(package).partition("+")[0]


@cache
def layer_code(family: str) -> str:
    """A fingerprint of the code that the layers of a family run.

    That is all of `nas/layers`, `nas/size.py`, the family's module (see `nas.extensions` for its
    name), and what this imports from its own package. Nothing of the family is imported to read it.
    """
    files = {*_files("layers"), Path(__file__).with_name("size.py")}
    own = next(filter(_file, (f"search_spaces.{family}", family)), None)
    if own and not own.startswith("nas."):  # `nas.layers` itself has layers
        files |= _imported(own)
    return _fingerprint(files)


@cache
def search_code(*more: str) -> str:
    """A fingerprint of the code that decides what a search asks for, and of the scores it sees.

    `more` are further packages of `nas` that decide so.
    """
    return _fingerprint(file for package in (*SEARCHED, *more) for file in _files(package))


def _fingerprint(files: Iterable[Path]) -> str:
    return fingerprint(sorted({text for file in files for text in _statements(file)}))


def _files(package: str) -> list[Path]:
    """Every Python file of a package of `nas`."""
    return list((Path(__file__).parent / package).rglob("*.py"))


def _imported(module: str) -> set[Path]:
    """The files of a module and of those of its own package that it imports, directly or not."""
    root, _, _ = module.partition(".")
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] != root or (file := _file(name)) is None:
            continue
        found[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(_tree(file), package)
    return set(found.values())


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The names of all modules that code of a package may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def _file(module: str) -> Path | None:
    """The file of a module, found as an import would, but without running any code."""
    places, origin = None, None
    for name in accumulate(module.split("."), "{}.{}".format):
        specs = (finder.find_spec(name, places, None) for finder in sys.meta_path)
        if (spec := next(filter(None, specs), None)) is None:
            return None
        places, origin = spec.submodule_search_locations or [], spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


@cache
def _statements(file: Path) -> frozenset[str]:
    """The statements of a file that can change a number, each in the canonical form of `_text`."""
    return frozenset(filter(None, map(_text, _tree(file).body)))


# Fields of Python's grammar that change nothing here, or that only some versions have.
_SILENT = {"annotation", "ctx", "kind", "returns", "type_comment", "type_params"}


def _text(node: Any) -> str:
    """A part of a syntax tree in the same words in all versions of Python; "" if it counts not.

    `ast.dump` and `ast.unparse` differ from version to version.
    """
    if isinstance(node, list):
        return f"[{','.join([text for item in node if (text := _text(item))])}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.stmt) and _counts_not(node):
        return ""
    if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts into nested formats
        node.values = [
            x for x in node.values if not (isinstance(x, ast.Constant) and x.value == "")
        ]
    shown = [
        f"{name}={_text(value)}"
        for name in _counted(node._fields)
        if (value := getattr(node, name, None)) is not None and value != []
    ]
    return f"{type(node).__name__}({','.join(shown)})"


@cache
def _counted(fields: tuple[str, ...]) -> list[str]:
    return sorted(set(fields) - _SILENT)


def _counts_not(node: ast.stmt) -> bool:
    """Whether a statement only imports, only documents, or is for type checkers."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return True
        case ast.Expr(value=ast.Constant(value=str())) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False
