"""Modules that extend vitnas, found by name: families, tasks, objectives, data sets, searchers.

Each kind has a package, in which every file is a member called like the file. A member may also be
a module of one's own: its name then has a dot, and `VITNAS_EXTENSIONS` must list it or a package
above it (`VITNAS_EXTENSIONS=my_lab,other.module`), because names are read from files as well, and
reading a file must not run code that nobody asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from nas.errors import UnknownNameError, UsageError

ALLOWED = "VITNAS_EXTENSIONS"


def members(package: str) -> list[str]:
    """The names of the modules in `package`, sorted; none of them is imported."""
    return sorted(module.name for module in iter_modules(import_module(package).__path__))


def load_module(what: str, package: str, name: str) -> ModuleType:
    """The member of `package` called `name`, or the module of one's own of that dotted name.

    `what` is the kind as an error calls it, e.g. "family". Raises `UnknownNameError` with the
    closest members, and `UsageError` for a module that is not allowed or cannot be imported.
    """
    if name in (known := members(package)):
        return import_module(f"{package}.{name}")
    if "." not in name:
        raise UnknownNameError(what, name, known)
    listed = [own for own in os.environ.get(ALLOWED, "").split(",") if own]
    if not any(name == own or name.startswith(f"{own}.") for own in listed):
        raise UsageError(
            f"{name!r} is a module of your own, which {ALLOWED} does not list",
            f"set {ALLOWED}={name.partition('.')[0]}",
        )
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"there is no module {name!r} for this {what}", "put its folder on PYTHONPATH"
        ) from None


def member_name(package: str, module: str) -> str:
    """The name by which `load_module` finds the module of this full name."""
    return module.removeprefix(f"{package}.")
