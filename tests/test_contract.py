"""A family that breaks its contract is named with what it lacks when a space of it is loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest
from toys import phased

from nas.errors import UsageError
from nas.families import load_space, space_names
from nas.layers.elastic import ElasticModule
from nas.network.inputs import Images
from nas.space.architecture import Architecture, Stage
from nas.space.choices import DENSE, EITHER, FLOAT, stages
from nas.space.contract import check_family
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.family import SearchSpace
from nas.space.layer import Layer, Part
from nas.tasks.classification import Classification


class Flat(ElasticModule):
    def forward(self, images):
        return (images.flatten(1),)


class Scaled(ElasticModule):
    def __init__(self, *, width, fixed=1):
        super().__init__()

    def forward(self, x, *, width, bits=32):
        return (x * width,)


@dataclass(frozen=True)
class Block:
    scale: int
    precision: str
    sparsity: int


class Whole(Images):
    """Keeps the contract."""

    def stem(self, resolution, width):
        return Part((Layer.of("stem", Flat, self.example(resolution)),), (resolution, width))

    def block(self, stage, index, state, block):
        bits = {"fp32": 32, "int8": 8}[block.precision]
        layer = Layer.of(f"block{index}", Scaled, (3 * state[0] ** 2,), width=1, bits=bits)
        return Part((layer,), state)

    def transition(self, stage, state, width):
        return Part((), state)

    def head(self, state, task):
        return (Layer.of("head", Scaled, (3 * state[0] ** 2,), width=task.outputs),)

    def origin(self, path, name):
        return f"{path}.{name}", None


SIZES = Choice(4, 8)


def one_stage(resolution=SIZES, **fields):
    choices = {"scale": Choice(1, 2), "precision": FLOAT, "sparsity": DENSE} | fields
    blocks = Repeat(Space(Block, **choices), Choice(1, 2))
    return stages(resolution, Space(Stage, width=Choice(3), blocks=blocks))


def space_of(parts, domain=None):
    return SearchSpace("toy:broken", domain or one_stage(), parts, Classification(2))


class NoUnit(Whole):
    unit = None


class NoMultiple(Whole):
    multiple = 0


class NoOrigin(Whole):
    origin = None


class FlatExample(Whole):
    def example(self, size):
        return size


class StemOfLayers(Whole):
    def stem(self, resolution, width):
        return super().stem(resolution, width).layers


class BlockOfLayers(Whole):
    def block(self, stage, index, state, block):
        return Part(("a layer",), state)


class ListAsState(Whole):
    def stem(self, resolution, width):
        return super().stem(resolution, width)._replace(state=[resolution, width])


class Headless(Whole):
    def head(self, state, task):
        return ()


class SingleHead(Whole):
    def head(self, state, task):
        return super().head(state, task)[0]


class StemWithoutWidth(Whole):
    def stem(self, resolution):
        return super().stem(resolution, 3)


class OneBlock(Whole):
    def block(self, stage, index, state, block):
        return super().block(stage, 0, state, block)


class OtherInput(Whole):
    def stem(self, resolution, width):
        return Part((Layer.of("stem", Flat, (3, 7, 7)),), (resolution, width))


class OnePath(Whole):
    def head(self, state, task):
        return (replace(*super().head(state, task), path="stem"),)


class Misspelt(Whole):
    def head(self, state, task):
        return (Layer.of("head", Scaled, (3,), widht=2),)


class NoBits(Whole):
    def block(self, stage, index, state, block):
        return Part((Layer.of(f"block{index}", Scaled, (3,), width=1),), state)


def test_a_whole_family_passes():
    check_family(space_of(Whole()))
    check_family(space_of(Whole(), one_stage(precision=EITHER)))
    phased_space = SearchSpace("phased:debug", *phased.PRESETS["debug"], Classification(2))
    check_family(phased_space)


@pytest.mark.parametrize(
    ("parts", "domain", "lack"),
    [
        (NoUnit, {}, "no `unit`"),
        (NoMultiple, {}, "no `multiple`"),
        (NoOrigin, {}, "no method `origin`"),
        (FlatExample, {}, "`example` must return the shape"),
        (StemOfLayers, {}, "`stem` must return a Part"),
        (BlockOfLayers, {}, "`block` must return a Part of layers"),
        (ListAsState, {}, "state after `stem` must be hashable"),
        (Headless, {}, "`head` must return layers"),
        (SingleHead, {}, "`head` must return layers in a tuple"),
        (StemWithoutWidth, {}, "cannot be used: TypeError: .*stem"),
        (OneBlock, {}, "several layers of one phase have the path block0"),
        (Whole, {"resolution": Choice(8, 4)}, "from the smallest to the largest"),
        (OtherInput, {}, r"first layer takes \(3, 7, 7\), but an example has \(3, 8, 8\)"),
        (OnePath, {}, "two kinds of layers have the path stem"),
        (Misspelt, {}, "unknown size of Scaled 'widht'; did you mean width"),
        (NoBits, {"precision": EITHER}, "no layer has the size `bits`"),
        (Whole, {"precision": Choice("int4", "fp32")}, "one of fp32, int8, not 'int4'"),
        (Whole, {"sparsity": Choice(0.5, 0)}, "whole percent below 100, not 0.5"),
        (Whole, {"resolution": Choice(4, 8.0)}, "resolution 8.0 must be a multiple of 1"),
    ],
)
def test_a_broken_family_is_named_with_what_it_lacks(parts, domain, lack):
    with pytest.raises(UsageError, match=lack) as caught:
        check_family(space_of(parts(), one_stage(**domain)))
    assert str(caught.value).startswith("the family of toy:broken: ")
    assert str(caught.value).isprintable()


def test_a_second_stage_needs_a_way_into_it():
    class OneStage(Whole):
        transition = None

    stage = dict(one_stage().domains)["stages"].items[0]
    check_family(space_of(OneStage()))
    with pytest.raises(UsageError, match="no method `transition`"):
        check_family(space_of(OneStage(), stages(Choice(4), stage, stage)))


def test_a_domain_without_the_skeleton_is_named():
    odd = Space(Architecture, resolution=Choice(4), stages=Repeat(Choice(1, 2), Choice(1)))
    with pytest.raises(UsageError, match="`stages` of its domain must be Fixed"):
        check_family(space_of(Whole(), odd))
    widths = Space(Stage, width=Fixed(Choice(1)), blocks=Repeat(Choice(1), Choice(1)))
    with pytest.raises(UsageError, match="stage 0 must be a Space of Stage"):
        check_family(space_of(Whole(), stages(Choice(4), widths)))


def test_what_no_family_can_keep_is_refused_and_checks_of_blocks_are_kept():
    """A check of whole architectures would not be asked when networks are drawn."""
    for domain in (
        one_stage().where(lambda a: a.resolution == 4),
        stages(SIZES, dict(one_stage().domains)["stages"].items[0].where(lambda s: s.width == 3)),
    ):
        with pytest.raises(UsageError, match=r"only its blocks may have checks"):
            check_family(space_of(Whole(), domain))
    block = Space(Block, scale=Choice(1, 2), precision=FLOAT, sparsity=DENSE)
    blocks = Repeat(block.where(lambda b: b.scale == 2), Choice(1, 2))
    space = space_of(Whole(), stages(SIZES, Space(Stage, width=Choice(3), blocks=blocks)))
    check_family(space)
    assert space.smallest.stages[0].blocks[0].scale == 2


def test_int8_of_a_family_without_precision_is_refused():
    @dataclass(frozen=True)
    class Plain:
        scale: int

    blocks = Repeat(Space(Plain, scale=Choice(1, 2)), Choice(1))
    domain = stages(Choice(4), Space(Stage, width=Choice(3), blocks=blocks))
    with pytest.raises(UsageError, match="toy:broken has no int8"):
        space_of(Whole(), domain).with_int8()


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"width": 2, "hiden": 3}, "unknown size of Scaled 'hiden'"),
        ({"bits": 8}, "Scaled lacks the size 'width'"),
        ({"width": 2.5}, "the size 'width' of Scaled must be a whole number, got 2.5"),
    ],
)
def test_a_wrong_size_of_a_layer_is_named(sizes, problem):
    with pytest.raises(UsageError, match=problem):
        Layer.of("path", Scaled, (3,), **sizes)


def test_sizes_go_where_they_are_named():
    layer = Layer.of("path", Scaled, (3,), width=2, fixed=5, bits=8)
    assert layer.sizes == {"width": 2, "fixed": 5, "bits": 8}
    assert layer.elastic == {"width": 2, "bits": 8}
    assert layer.at_bits(32).elastic == {"width": 2, "bits": 32}
    assert layer.key == "Scaled(bits=8, fixed=5, width=2)@3"
    layer.build()


def test_a_size_by_position_is_refused():
    class ByPosition(ElasticModule):
        def __init__(self, width):
            super().__init__()

    with pytest.raises(UsageError, match="takes the size 'width' by position"):
        Layer.of("path", ByPosition, (3,), width=2)


@pytest.mark.parametrize("name", [name for name in space_names() if name.endswith(":micro")])
def test_the_check_is_quick(name):
    load_space(name)  # modules are imported, and what is cached is there
    best = 1.0
    for _ in range(5):
        space, start = load_space(name), time.thread_time()
        check_family(space)
        best = min(best, time.thread_time() - start)
    assert best < 0.02
