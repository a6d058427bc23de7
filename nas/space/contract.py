"""The contract of a family, as far as it can be checked whenever one of its spaces is loaded.

`Parts` and `SearchSpace` say what a family gives; `tests/test_families.py` checks on every family
in `search_spaces/` what takes longer, such as that a subnet equals the plain model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nas.errors import UsageError
from nas.extensions import described
from nas.size import Sides, area, each, sides
from nas.space.domains import MOST_VALUES, Choice, Fixed, Repeat, Space
from nas.space.family import BITS, LARGEST, SearchSpace
from nas.space.layer import Layer, Part

_TEXTS, _METHODS = ("takes", "unit"), ("example", "resized", "stem", "block", "head", "origin")


def check_family(space: SearchSpace) -> None:
    """Raise `UsageError` that names the space and the first thing that its family lacks."""
    try:
        for lack in _lacks(space):
            raise UsageError(lack, "see `Parts` in nas/space/family.py for what a family gives")
    except UsageError as error:
        raise UsageError(f"the family of {space.name}: {error.message}", error.fix) from None
    except Exception as error:  # of its methods, called as everybody else calls them
        raise UsageError(
            f"the family of {space.name}: it cannot be used: {described(error)}",
            "see `Parts` in nas/space/family.py for what a family gives",
        ) from error


def _lacks(space: SearchSpace) -> Iterator[str]:
    """What is wrong, the simplest first; later checks rely on earlier ones."""
    yield from _domain(space.domain)
    yield from _attributes(space)
    yield from _choices(space)
    yield from _parts(space)
    yield from _layers(space)


def _domain(domain: Any) -> Iterator[str]:
    """The skeleton of architectures: a size, then stages of a width and blocks."""
    domains = dict(domain.domains) if isinstance(domain, Space) else {}
    if not isinstance(domains.get("resolution"), Choice):
        yield "its domain must be a Space of Architecture whose `resolution` is a Choice"
    if not isinstance(domains.get("stages"), Fixed):
        yield "the `stages` of its domain must be Fixed(...)"
    stages: Any = domains["stages"]
    if domain.checks or any(getattr(stage, "checks", ()) for stage in stages.items):
        yield "only its blocks may have checks (`where`): other rules are an Along, or its parts'"
    for i, stage in enumerate(stages.items):
        inner = dict(stage.domains) if isinstance(stage, Space) else {}
        if not isinstance(inner.get("width"), Choice) or not isinstance(
            inner.get("blocks"), Repeat
        ):
            yield f"stage {i} must be a Space of Stage: `width` a Choice, `blocks` a Repeat"
        if None in inner["blocks"].values:  # type: ignore[attr-defined]
            yield f"a block of stage {i} has more than {MOST_VALUES:,} values: it is one choice"


def _attributes(space: SearchSpace) -> Iterator[str]:
    """What the parts must have by name."""
    parts = space.parts
    for name in _TEXTS:
        if not isinstance(getattr(parts, name, None), str):
            yield f"its parts have no `{name}`, a text"
    if not isinstance(multiple := getattr(parts, "multiple", None), int) or multiple < 1:
        yield f"its parts have no `multiple`, a whole number of at least 1, but {multiple!r}"
    if not isinstance(smallest := getattr(parts, "smallest", 1), int) or smallest < 1:
        yield f"the `smallest` of its parts is a whole number of at least 1, not {smallest!r}"
    for name in (*_METHODS, *(["transition"] if len(_stages(space)) > 1 else [])):
        if not callable(getattr(parts, name, None)):
            yield f"its parts have no method `{name}`"


def _choices(space: SearchSpace) -> Iterator[str]:
    """Sizes of the input that the parts take; sparsities and precisions as layers know them."""
    step, sizes = space.parts.multiple, space.positions[0].values
    for size in sizes:
        if not isinstance(size, int | Sides) or any(
            not 0 < side <= LARGEST or side % step for side in sides(size)
        ):
            yield f"its resolution {size} must be a multiple of {step} up to {LARGEST}"
        if each(int, size) != size:
            yield f"its resolution {size} must be one number: it is square"
    if list(sizes) != sorted(sizes, key=area):
        yield f"its resolutions must stand from the smallest to the largest, not as {sizes}"
    for stage in _stages(space):
        for item in {id(item): item for item in stage["blocks"].items}.values():
            fields = dict(item.domains) if isinstance(item, Space) else {}
            for precision in getattr(fields.get("precision"), "values", ()):
                if precision not in BITS:
                    yield f"a block's `precision` is one of {', '.join(BITS)}, not {precision!r}"
            for sparsity in getattr(fields.get("sparsity"), "values", ()):
                if not isinstance(sparsity, int) or not 0 <= sparsity < 100:
                    yield f"a block's `sparsity` is in whole percent below 100, not {sparsity!r}"


def _parts(space: SearchSpace) -> Iterator[str]:
    """What the methods return, at the first choice of each."""
    (size, *_), stage = space.positions[0].values, _stages(space)[0]
    example = space.parts.example(size)
    if not isinstance(example, tuple) or not all(isinstance(n, int) for n in example):
        yield f"`example` must return the shape of an input, a tuple of numbers, not {example!r}"
    stem = space.parts.stem(size, stage["width"].values[0])
    yield from _part("stem", stem)
    item = stage["blocks"].items[0]
    block = (item.values if isinstance(item, Choice) else item.values())[0]
    if (made := space.parts.block(0, 0, stem.state, block)) is not None:
        yield from _part("block", made)


def _stages(space: SearchSpace) -> list[dict[str, Any]]:
    """The domains of each stage by name."""
    stages: Any = dict(space.domain.domains)["stages"]
    return [dict(stage.domains) for stage in stages.items]


def _part(method: str, part: Any) -> Iterator[str]:
    if not isinstance(part, Part) or not all(isinstance(layer, Layer) for layer in part.layers):
        yield f"`{method}` must return a Part of layers, not {part!r}"
    try:
        hash(part.state)
    except TypeError:
        yield f"the state after `{method}` must be hashable, and {part.state!r} is not"


def _layers(space: SearchSpace) -> Iterator[str]:
    """What the smallest and the largest architecture are made of."""
    modules: dict[str, type] = {}
    for architecture in (space.largest, space.smallest):
        head = space.head(architecture)
        if not isinstance(head, tuple) or not head or not all(isinstance(x, Layer) for x in head):
            yield f"`head` must return layers in a tuple, not {head!r}"
        layers = space.layers(architecture)
        if layers[0].input_shape != (shape := space.example(architecture)):
            yield f"its first layer takes {layers[0].input_shape}, but an example has {shape}"
        for layer in layers:
            if modules.setdefault(layer.path, layer.module) is not layer.module:
                yield f"two kinds of layers have the path {layer.path}"
        places = Counter((layer.path, layer.phase) for layer in layers)
        if shared := [path for (path, _), times in places.items() if times > 1]:
            yield f"several layers of one phase have the path {shared[0]}"
    blocks = [block for stage in architecture.stages for block in stage.blocks]
    int8 = any(getattr(block, "precision", "fp32") != "fp32" for block in blocks)
    if int8 and not any("bits" in layer.sizes for layer in layers):
        yield "its blocks have a choice of `precision`, but no layer has the size `bits`"
