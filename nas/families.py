"""Families and their spaces by name: one file of `search_spaces` each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules

from nas.errors import UnknownNameError, UsageError
from nas.space.architecture import Architecture
from nas.space.domains import Space
from nas.space.family import Parts, SearchSpace


def families() -> Iterator[str]:
    """The family files there are."""
    import search_spaces

    return (module.name for module in iter_modules(search_spaces.__path__))


def space_names() -> Iterator[str]:
    """Every `family:preset` there is; imports the families."""
    for family in families():
        yield from (f"{family}:{preset}" for preset in _of(family, "PRESETS"))


def model_names() -> Iterator[str]:
    """Every model of the papers by its name in timm; imports the families."""
    for family in families():
        yield from _of(family, "MODELS")


def load_space(name: str) -> SearchSpace:
    """The space called `family:preset`, or the one architecture of a named model.

    E.g. `swin:micro`, `swin_tiny_patch4_window7_224`; `NAME+int8` has int8 as a choice of every
    block, `NAME@384` is the same at 384 px. Raises `UnknownNameError` with the closest names.
    """
    plain, _, resolution = name.partition("@")
    space = _find(plain.removesuffix("+int8"))
    if plain.endswith("+int8"):
        space = space.with_int8()
    if not resolution:
        return space
    if not resolution.isdecimal():
        raise UsageError(f"{name!r}: after @ stands a resolution in pixels", f"e.g. {plain}@256")
    return space.at(int(resolution))


def _find(name: str) -> SearchSpace:
    family, colon, preset = name.partition(":")
    if colon:
        if family not in families() or preset not in _of(family, "PRESETS"):
            raise UnknownNameError("space", name, space_names())
        return SearchSpace(name, *_of(family, "PRESETS")[preset])
    for family in families():
        if name in _of(family, "MODELS"):
            return SearchSpace(name, *_of(family, "MODELS")[name])
    raise UnknownNameError("model or space", name, [*space_names(), *model_names()])


def _of(family: str, what: str) -> Mapping[str, tuple[Space[Architecture], Parts]]:
    found: Mapping[str, tuple[Space[Architecture], Parts]]
    found = getattr(import_module(f"search_spaces.{family}"), what)
    return found
