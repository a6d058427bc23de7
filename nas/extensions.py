"""Modules that extend vitnas, found by name: families, tasks, objectives, data sets, searchers.

Each kind has a package, in which every file is a member called like the file. A member may also be
a module of one's own: its name then has a dot, and `VITNAS_EXTENSIONS` must list it or a package
above it (`VITNAS_EXTENSIONS=my_lab,other.module`), because names are read from files as well, and
reading a file must not run code that nobody asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules
from traceback import extract_tb
from types import ModuleType
from typing import Any

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
    except Exception as error:  # whatever code of one's own may raise
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            fix = "put its folder on PYTHONPATH"
            raise UsageError(f"there is no module {name!r} for this {what}", fix) from None
        raise UsageError(
            f"the module {name!r} for this {what} cannot be imported: {described(error)}",
            "mend it",
        ) from error


def load_member(what: str, package: str, name: str, attribute: str) -> Any:
    """What a member of `package`, or a module of one's own, gives under the name `attribute`.

    Raises `UsageError` where it has none, and whatever `load_module` raises.
    """
    module = load_module(what, package, name)
    if not hasattr(module, attribute):
        raise UsageError(
            f"{name!r} is no {what}: it has no `{attribute}`",
            "docs/extending.md says what a file of each kind holds",
        )
    return getattr(module, attribute)


def parse_options(
    given: str, factory: Callable[..., Any], words: Sequence[str], besides: Sequence[str] = ()
) -> dict[str, Any]:
    """The options `KEY=VALUE` behind a member's name: keyword-only arguments of what makes it.

    `given` is the name with its options, as an error shows it; arguments `besides` are no options.
    """
    parameters = dict(signature(factory, eval_str=True).parameters)
    known = {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY and k not in besides}
    shown = ", ".join(f"{k}={p.default}" for k, p in known.items()) or "none"
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            fix = f"its options: {shown}"
            if not equals and options:
                fix += "; a value has no comma, nor has a path here: use a link to it"
            raise UsageError(f"{given!r} has no option {key!r}", fix)
        if known[key].annotation is int:
            if not value.isdecimal() or len(value) > 9 or int(value) < 1:
                raise UsageError(
                    f"{key} of {given!r} is a number from 1 on, got {value!r}", f"e.g. {key}=1"
                )
            options[key] = int(value)
        else:
            options[key] = value
    return options


def described(error: Exception) -> str:
    """An error of somebody else's code in one line, with the place where it was raised."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError) or not (frames := extract_tb(error.__traceback__)):
        return text
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})"


def member_name(package: str, module: str) -> str:
    """The name by which `load_module` finds the module of this full name."""
    return module.removeprefix(f"{package}.")
