"""What a measurement depends on besides the device: versions of packages and layers."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

from nas.records import fingerprint


def installed(package: str) -> str:
    """The version of a distribution, without its local part."""
    return version(package).partition("+")[0]


@cache
def layer_code(family: str) -> str:
    """A fingerprint of the code that the layers of a family run."""
    import nas
    import search_spaces

    folder = Path(nas.__file__).parent
    files = sorted((folder / "layers").glob("*.py"))
    own = Path(next(iter(search_spaces.__path__))) / f"{family}.py"
    return fingerprint(*(file.read_bytes() for file in [*files, own] if file.exists()))


@cache
def search_code() -> str:
    """A fingerprint of the code that decides what a search asks for."""
    import nas

    folder = Path(nas.__file__).parent
    rooms = ("space", "trellis", "strategy", "evaluation", "run")
    files = [file for room in rooms for file in (folder / room).rglob("*.py")]
    return fingerprint(
        *(file.read_bytes() for file in sorted([*files, folder / "workers/ledger.py"]))
    )
