"""Families and their spaces by name: one file of `search_spaces` each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nas.errors import UnknownNameError, UsageError
from nas.extensions import load_member, load_module, members
from nas.size import Sides, read_size
from nas.space.architecture import Architecture
from nas.space.contract import check_family
from nas.space.domains import Space
from nas.space.family import Parts, SearchSpace
from nas.space.task import Task
from nas.tasks.classification import Classification


def families() -> list[str]:
    """The names of the families in `search_spaces/`."""
    return members("search_spaces")


def space_names() -> Iterator[str]:
    """Every `family:preset` there is; imports the families."""
    for family in families():
        yield from (f"{family}:{preset}" for preset in _of(family, "PRESETS"))


def model_names() -> Iterator[str]:
    """Every model of the papers by its name in timm; imports the families."""
    for family in families():
        yield from _of(family, "MODELS")


def load_space(name: str, task: Task | None = None) -> SearchSpace:
    """The space called `family:preset`, or the one architecture of a named model.

    E.g. `swin:micro`, `swin_tiny_patch4_window7_224`; `NAME+int8` has int8 as a choice of every
    block, `NAME@384` is the same at 384 px, `NAME@512x1024` at this height and width. A family may
    be a module of one's own (`my_lab.nets:small`, see `nas.extensions`). Without a `task` it has
    that of its family (`TASK` in its file) or classifies, a named model into the 1000 classes of
    ImageNet, a space into 10.
    Raises `UnknownNameError` with the closest names, and `UsageError` for a family that breaks its
    contract. For a task with outputs for each pixel, networks of every family end in a fused head.
    """
    from nas.network.fused import fit_for_task  # imports torch, which listings do not need

    plain, _, resolution = name.partition("@")
    found = _find(plain.removesuffix("+int8"), task)
    check_family(found)
    if (space := fit_for_task(found)) is not found:
        check_family(space)
    if plain.endswith("+int8"):
        space = space.with_int8()
    if not resolution:
        return space
    if (size := read_size(resolution)) is None:
        raise UsageError(
            f"{name!r}: after @ stands a resolution in pixels, or height x width",
            f"e.g. {plain}@256 or {plain}@256x512",
        )
    there = space.at(size)
    if isinstance(size, Sides):  # a family of one's own may know squares only
        check_family(there)
    return there


def _find(name: str, task: Task | None) -> SearchSpace:
    family, colon, preset = name.partition(":")
    if colon:
        if "." not in family and family not in families():
            raise UnknownNameError("space", name, space_names())
        presets = load_member("family", "search_spaces", family, "PRESETS")
        if preset not in presets:
            near = space_names() if "." not in family else [f"{family}:{own}" for own in presets]
            raise UnknownNameError("space", name, near)
        found = presets[preset]
        if not isinstance(found, tuple) or len(found) != 2:
            raise UsageError(
                f"the family of {name}: a preset is a pair (domain, parts), not {found!r}",
                "docs/extending.md shows one",
            )
        return SearchSpace(name, *found, task or _own(found) or _default_task(family))
    for family in families():
        if name in _of(family, "MODELS"):
            found = _of(family, "MODELS")[name]
            return SearchSpace(name, *found, task or _own(found) or Classification.of_imagenet())
    raise UnknownNameError("model or space", name, [*space_names(), *model_names()])


def _own(entry: tuple[Space[Architecture], Parts]) -> Task | None:
    """The task of the parts of a preset or model, where they have one."""
    return getattr(entry[1], "task", None)


def _default_task(family: str) -> Task:
    module = load_module("family", "search_spaces", family)
    return getattr(module, "TASK", Classification())


def _of(family: str, what: str) -> Mapping[str, tuple[Space[Architecture], Parts]]:
    module = load_module("family", "search_spaces", family)
    found: Mapping[str, tuple[Space[Architecture], Parts]] = getattr(module, what, {})
    return found
