"""A fused head for the networks of any family: what it reads, and its own choices.

The head of EfficientViT-Seg (`nas.layers.fused_head`) reads the maps of the last resolutions. It is
the last stage of an architecture: the width is that of the head, each block an inverted residual,
so that both are choices like all others, and windows of the head can be pruned, too. A family only
says how the state between its layers becomes a map (`MapParts.to_map`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor

from nas.errors import UsageError
from nas.extensions import described
from nas.layers.fused_head import (
    AddedLateral,
    Lateral,
    PixelClassifier,
    Refinement,
    ToPicture,
)
from nas.network.pruning import MapState, prune_map
from nas.size import Size, area, sides, size_of
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, FIFTHS, FLOAT
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.family import BITS, Parts, SearchSpace
from nas.space.layer import Layer, Part
from nas.space.origins import Origin, Renaming, renamed
from nas.space.task import Task


@dataclass(frozen=True)
class Block:
    """An inverted residual of the head."""

    expansion: int
    sparsity: int  # percent of the windows that pass unchanged
    precision: str  # fp32, or int8 for the pointwise convolutions


class MapParts(Parts, Protocol):
    """Parts of a family whose networks can end in a map."""

    def for_maps(self) -> Self:
        """The parts of networks whose head reads a map, of which nothing is left behind then."""

    def to_map(self, state: Any) -> tuple[tuple[Layer, ...], Size, int]:
        """The layers that turn what travels after `state` into (map (B, S, S, C), None), SS and C.

        A layer that halves a map is given the map itself, perhaps padded.
        """


class Map(NamedTuple):
    """A map that the head reads: its size, that with padding, and its width."""

    size: Size
    padded: Size
    width: int


class State(NamedTuple):
    """What later layers depend on."""

    resolution: Size
    family: Any  # its own state; None once the head begins
    maps: tuple[Map, ...] = ()  # that the head will read, the newest first
    head: MapState | None = None


# Where the official code's checkpoints keep the head's tensors; a colon stands after a convolution.
OFFICIAL: tuple[Renaming, ...] = (
    (r"^lateral0\.conv", "head.input_ops.0.op_list.0:"),
    (r"^lateral1\.conv", "head.input_ops.1.op_list.0:"),
    (r"^lateral2\.conv", "head.input_ops.2:"),  # at the head's side already: not resized
    (r"^refine(\d+)\.body", r"head.middle.op_list.\1.main"),
    (r"^head\.expand", "head.output_ops.0.op_list.0:"),
    ("expand", "inverted_conv:"),
    ("depthwise", "depth_conv:"),
    ("project", "point_conv:"),
    (r":\.norm", ".norm"),
    (":", ".conv"),
)
DENSE_OFFICIAL: tuple[Renaming, ...] = (("expand", "spatial_conv:"), *OFFICIAL)


@dataclass(frozen=True)
class Fused:
    """The parts of a family's networks and, as their last stage, of a head that fuses maps.

    Maps are read from the end of stage `first` on, wherever the next layer makes them smaller, and
    at the end.
    """

    backbone: MapParts
    stages: int  # of the backbone
    first: int
    final: int = 0  # channels before the classifier, in widths of the head; 0: no such layer
    fused: bool = False  # dense convolutions instead of depthwise ones
    large: bool = False  # the L models' activation and norms
    cubic: bool = False  # resizes maps as the official code does, instead of bilinear
    window: int = 8  # the longest side of a window of the head
    task: Task | None = None  # of a space that no task is given

    @property
    def takes(self) -> str:
        """The name of the input in a batch."""
        return self.backbone.takes

    @property
    def unit(self) -> str:
        """The unit of the input's size."""
        return self.backbone.unit

    @property
    def multiple(self) -> int:
        """Sizes of the input are whole multiples of this number."""
        return self.backbone.multiple

    @property
    def smallest(self) -> int:
        """The shortest side of an input."""
        return getattr(self.backbone, "smallest", self.multiple)

    def example(self, size: Size) -> tuple[int, ...]:
        """The shape of one input of this size."""
        return self.backbone.example(size)

    def resized(self, inputs: Tensor, size: Size) -> Tensor:
        """Inputs of a larger size at this one."""
        return self.backbone.resized(inputs, size)

    def stem(self, resolution: Size, width: int) -> Part:
        """Emit what the family does."""
        part = self.backbone.stem(resolution, width)
        return Part(part.layers, State(resolution, part.state))

    def transition(self, stage: int, state: State, width: int) -> Part:
        """Emit what the family does or, where the head begins, what makes its last map."""
        if stage < self.stages:
            part = self.backbone.transition(stage, state.family, width)
            return self._passed(stage, state, part)
        layers, size, channels = self.backbone.to_map(state.family)
        maps = (Map(size, size, channels), *state.maps)
        head = MapState(maps[-1].size, width, width, 0)
        return Part(layers, State(state.resolution, None, maps, head))

    def block(self, stage: int, index: int, state: State, block: Any) -> Part | None:
        """Emit what the family does, or a block of the head, behind the laterals and the score."""
        if stage < self.stages:
            part = self.backbone.block(stage, index, state.family, block)
            return part and self._passed(stage, state, part)
        head, bits = state.head, BITS[block.precision]
        assert head is not None, "the head has not begun"
        pruned = prune_map(stage, head, block.sparsity, 1, self.window)
        if pruned is None:
            return None
        scores, windows = pruned
        layer = Layer.of(
            f"refine{index}",
            Refinement,
            head.shape,
            width=head.width,
            hidden=head.width * block.expansion,
            fused=int(self.fused),
            large=int(self.large),
            bits=bits,
            **windows,
        )
        after = state._replace(maps=(), head=head.after(1, block.sparsity))
        return Part((*self._laterals(state, bits), *scores, layer), after)

    def head(self, state: State, task: Task) -> tuple[Layer, ...]:
        """Emit the classifier of pixels, and the resize to the picture."""
        head = state.head
        assert head is not None, "the head has not begun"
        sizes = {"width": head.width, "hidden": head.width * self.final}
        kind = {"classes": task.outputs, "large": int(self.large)}
        shape = (*sides(head.size), task.outputs)
        return (
            Layer.of("head", PixelClassifier, head.shape, **sizes, **kind),
            Layer.of("picture", ToPicture, shape, side=state.resolution),
        )

    def is_head(self, path: str) -> bool:
        """Whether the layer at `path` is of the head."""
        return path in ("head", "picture") or path.startswith(("lateral", "refine"))

    def origin(self, path: str, name: str) -> Origin:
        """Ask the family, or for a layer of the head look the tensor up in `OFFICIAL`."""
        if path == "head" and name.startswith("fc."):
            place = f"head.output_ops.0.op_list.{int(self.final > 0)}.conv"
            return f"{place}.{name.removeprefix('fc.')}", None
        if not self.is_head(path):
            return self.backbone.origin(path, name)
        dense = self.fused and path.startswith("refine")
        return renamed(DENSE_OFFICIAL if dense else OFFICIAL, path, name), None

    def _passed(self, stage: int, before: State, part: Part) -> Part:
        """A part of the family; where its last layer makes the map smaller, the map waits."""
        _, size, width = self.backbone.to_map(before.family)
        _, after, _ = self.backbone.to_map(part.state)
        layers, maps = part.layers, before.maps
        if stage > self.first and area(after) < area(size):
            *ahead, last = layers
            layers = (*ahead, last.tapped())
            maps = (Map(size, size_of(*last.input_shape[:2]), width), *maps)
        return Part(layers, before._replace(family=part.state, maps=maps))

    def _laterals(self, state: State, bits: int) -> list[Layer]:
        """What brings the maps together, the smallest first; nothing once that is done."""
        head = state.head
        assert head is not None
        return [
            Layer.of(
                f"lateral{i}",
                AddedLateral if i else Lateral,
                (*sides(own.padded), own.width),
                in_width=own.width,
                width=head.width,
                size=own.size,
                side=head.size,
                large=int(self.large),
                cubic=int(self.cubic),
                bits=bits,
            )
            for i, own in enumerate(state.maps)
        ]


def head_stage(
    width: Choice,
    depth: Choice,
    expansion: Choice,
    sparsity: Choice = DENSE,
    precision: Choice = FLOAT,
) -> Space[Stage]:
    """The domain of a head of this many blocks."""
    block = Space(Block, expansion=expansion, sparsity=sparsity, precision=precision)
    return Space(Stage, width=width, blocks=Repeat(block, depth))


SMALL_HEAD = head_stage(Choice(16, 32), Choice(1, 2, 3), Choice(2, 4), FIFTHS)


def with_head(
    domain: Space[Architecture],
    parts: MapParts,
    head: Space[Stage] | None = None,
    *,
    scales: int = 3,
    **settings: Any,
) -> tuple[Space[Architecture], Fused]:
    """A family's domain and parts with a head behind, which reads maps of up to `scales` sizes.

    Without a domain for it, it is as wide as the largest of these maps, as in the published models;
    its blocks may leave out what those at that map may, in the same precisions. `settings` are
    fields of `Fused`.
    """
    parts = parts.for_maps()
    resolution, stages = (inner for _, inner in domain.domains)
    items: tuple[Any, ...] = stages.items  # type: ignore[attr-defined]
    sizes = _sizes(parts, resolution.values[-1], items)  # type: ignore[attr-defined]
    largest = sorted(set(sizes), key=area)[:scales][-1]
    first = max(i for i, size in enumerate(sizes) if size == largest)
    if head is None:
        stage = dict(items[first].domains)
        like = dict(getattr(stage["blocks"].items[-1], "domains", ()))
        shared = {name: like[name] for name in ("sparsity", "precision") if name in like}
        head = head_stage(stage["width"], Choice(1, 2, 3), Choice(2, 4), **shared)
    made = Space(
        Architecture,
        resolution=resolution,
        stages=Fixed(*items, head, rules=stages.rules),  # type: ignore[attr-defined]
    )
    return made, Fused(parts, len(items), first, **settings)


def _sizes(parts: MapParts, resolution: Size, stages: tuple[Any, ...]) -> list[Size]:
    """The sizes of the maps at the ends of all stages of the largest architecture."""
    sizes: list[Size] = []
    state: Any = None
    for i, stage in enumerate(stages):
        own = dict(stage.domains)
        width = own["width"].values[-1]
        part = parts.transition(i, state, width) if i else parts.stem(resolution, width)
        state = part.state
        for j, item in enumerate(own["blocks"].items):
            values = item.values if isinstance(item, Choice) else item.values()
            block = parts.block(i, j, state, values[-1])
            assert block is not None, "the last values are an architecture"
            state = block.state
        sizes.append(parts.to_map(state)[1])
    return sizes


def classifier_of(space: SearchSpace, task: Task) -> tuple[Layer, ...]:
    """What published networks have where those of the space have a fused head."""
    parts, architecture = space.parts, space.largest
    assert isinstance(parts, Fused)
    resolution, stages = (inner for _, inner in space.domain.domains)
    body = Fixed(*stages.items[: parts.stages])  # type: ignore[attr-defined]
    domain = Space(Architecture, resolution=resolution, stages=body)
    whole = replace(architecture, stages=architecture.stages[: parts.stages])
    return SearchSpace(space.name, domain, parts.backbone, task).head(whole)


def fit_for_task(space: SearchSpace) -> SearchSpace:
    """The space with a fused head if its task has outputs for each pixel and its parts no head.

    Raises `UsageError` where the networks have such a head, and the task has no use for it.
    """
    if isinstance(space.parts, Fused):
        if not space.task.dense:
            raise UsageError(
                f"{space.name} answers for each pixel of a picture, which is no {space.task.name}",
                "give data with masks, or another space",
            )
        return space
    parts: Any = space.parts
    if not space.task.dense or not hasattr(parts, "to_map"):
        return space
    try:
        domain, fused = with_head(space.domain, parts, scales=space.task.scales)
    except Exception as error:  # of somebody's own methods
        raise UsageError(
            f"the family of {space.name}: it cannot make maps: {described(error)}",
            "see `MapParts` in nas/network/fused.py for what a family gives",
        ) from error
    return replace(space, domain=domain, parts=fused)
