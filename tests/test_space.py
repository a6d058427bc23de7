"""Spaces as data, against enumeration and hand-written examples."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from random import Random

import pytest
from conftest import DEBUG_SPACES
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UsageError
from nas.family import load_space
from nas.space import Architecture, Choice, Repeat, Space, Stage, restrict


@dataclass(frozen=True)
class Toy:
    size: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    a: int
    b: int


TOY = Space(
    Toy, size=Choice(1, 2), blocks=Repeat(Space(Item, a=Choice(1, 2), b=Choice(5)), Choice(1, 3))
)


def test_positions_are_the_choices_in_order():
    names = [p.name for p in TOY.positions()]
    assert names == ["size", "blocks[0]", "blocks[1]", "blocks[2]"]
    assert [len(p.values) for p in TOY.positions()] == [2, 2, 3, 3]


def test_flatten_and_assemble_are_inverse():
    for n, size in itertools.product((1, 3), (1, 2)):
        toy = Toy(size, (Item(2, 5),) * n)
        flat = tuple(TOY.flatten(toy))
        assert len(flat) == 4
        assert TOY.assemble(iter(flat)) == toy


def test_a_space_needs_a_domain_for_each_field():
    with pytest.raises(TypeError, match="each field needs exactly one"):
        Space(Toy, size=Choice(1))


def test_a_choice_needs_distinct_values():
    with pytest.raises(ValueError, match="distinct"):
        Choice(1, 1)


@pytest.mark.parametrize("name", DEBUG_SPACES)
@given(seed=st.integers(0, 2**32))
def test_architectures_survive_json(name, seed):
    space = load_space(name)
    architecture = space.draw(Random(seed))
    assert space.parse(architecture.to_json()) == architecture
    assert space.parse(json.dumps(asdict(architecture), indent=3)).id == architecture.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object with the keys"),
        ('{"resolution": 17, "stages": []}', "resolution must be one of 16, 24, got 17"),
        ('{"resolution": 16, "stages": []}', "must be a list of 1 entries"),
        ('{"resolution": 16, "stages": [{"width": 8, "blocks": []}]}', "1, 2, 3 blocks"),
    ],
)
def test_a_wrong_architecture_names_the_field(text, message):
    with pytest.raises(UsageError, match=message):
        load_space("vit:debug").parse(text)


def test_falling_sparsity_is_not_an_architecture():
    space = load_space("vit:debug")
    block = dict(heads=1, mlp_ratio=1, precision="fp32")
    blocks = [{**block, "sparsity": 50}, {**block, "sparsity": 0}]
    text = json.dumps({"resolution": 16, "stages": [{"width": 8, "blocks": blocks}]})
    with pytest.raises(UsageError, match="not allowed after"):
        space.parse(text)


def test_contains_only_its_own():
    space = load_space("vit:debug")
    assert space.largest in space
    assert space.smallest in space
    assert Architecture(16, (Stage(9, ()),)) not in space
    assert "vit:debug" not in space


def test_restrict_narrows_one_field_everywhere():
    space = load_space("swin:debug")
    dense = space.restrict("sparsity", 0)
    drawn = {dense.draw(Random(i)) for i in range(50)}
    assert all(a in space for a in drawn)
    assert {b.sparsity for a in drawn for s in a.stages for b in s.blocks} == {0}
    assert restrict(TOY, "a", 2).domains[1][1].items[0].values() == (Item(2, 5),)


def test_restrict_leaves_a_choice_alone_that_has_none_of_the_values():
    """A block that cannot be pruned stays dense at `restrict("sparsity", 50)`."""
    domain = Space(Item, a=Choice(0), b=Choice(5))
    assert restrict(domain, "a", 50).values() == (Item(0, 5),)


def test_items_of_a_repeat_may_have_domains_of_their_own():
    first, later = Space(Item, a=Choice(1), b=Choice(5)), Space(Item, a=Choice(2, 3), b=Choice(5))
    repeat = Repeat((first, later), Choice(1, 2))
    assert [len(p.values) for p in repeat.positions("x")] == [1, 3]
    assert repeat.parse([{"a": 1, "b": 5}, {"a": 3, "b": 5}], "x") == (Item(1, 5), Item(3, 5))
    with pytest.raises(UsageError, match=r"x\[1\].a must be one of 2, 3, got 1"):
        repeat.parse([{"a": 1, "b": 5}, {"a": 1, "b": 5}], "x")
    with pytest.raises(ValueError, match="2 domains for up to 3 items"):
        list(Repeat((first, later), Choice(3)).positions("x"))
