"""Spaces as data, against enumeration and hand-written examples."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import asdict, dataclass, replace
from random import Random
from time import process_time

import numpy as np
import pytest
from conftest import DEBUG_SPACES
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UsageError
from nas.families import load_space
from nas.space import domains
from nas.space.architecture import Architecture, Stage
from nas.space.domains import Choice, Fixed, Repeat, Space, restrict, rewrite
from nas.space.rules import ENDED, Along
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph, decode, encode
from nas.trellis.trellis import Trellis


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
    with pytest.raises(UsageError, match="each field of Toy needs exactly one domain; not so"):
        Space(Toy, size=Choice(1))


def test_a_choice_needs_distinct_values():
    for values in ((1, 1), (), (1, True), (0.0, -0.0), tuple(range(500)) * 2):
        with pytest.raises(UsageError, match=r"distinct values.*give each value once") as error:
            Choice(*values)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", DEBUG_SPACES)
@given(seed=st.integers(0, 2**32))
def test_architectures_survive_json(name, seed):
    space = load_space(name, Classification(2))
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
        load_space("vit:debug", Classification(2)).parse(text)


def test_falling_sparsity_is_not_an_architecture():
    space = load_space("vit:debug", Classification(2))
    block = dict(heads=1, mlp_ratio=1, precision="fp32")
    blocks = [{**block, "sparsity": 50}, {**block, "sparsity": 0}]
    text = json.dumps({"resolution": 16, "stages": [{"width": 8, "blocks": blocks}]})
    with pytest.raises(UsageError, match="not allowed after"):
        space.parse(text)


def test_contains_only_its_own():
    space = load_space("vit:debug", Classification(2))
    assert space.largest in space
    assert space.smallest in space
    assert Architecture(16, (Stage(9, ()),)) not in space
    assert "vit:debug" not in space


def test_restrict_narrows_one_field_everywhere():
    space = load_space("swin:debug", Classification(2))
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
    with pytest.raises(UsageError, match="2 domains for up to 3 items"):
        list(Repeat((first, later), Choice(3)).positions("x"))


@dataclass(frozen=True)
class Widths:
    widths: tuple[int, ...]


def test_items_of_a_repeat_may_be_plain_choices():
    rising_widths = Repeat(Choice(1, 2, 3), Choice(2, 4), rules=(Along("widths", "<="),))
    space = Space(Widths, widths=rising_widths)
    plain = {Widths(w) for n in (2, 4) for w in itertools.product((1, 2, 3), repeat=n) if rising(w)}
    found = [decode(space, np.array(path)) for path in paths_of(Graph.choices(space))]
    assert len(found) == len(plain)
    assert set(found) == plain
    assert all(space.parse(asdict(w)) == w for w in found)
    with pytest.raises(UsageError, match=r"widths\[1\] must be one of 1, 2, 3, got 5"):
        space.parse({"widths": [1, 5]})


def test_none_is_an_item_of_a_repeat_and_its_end_is_not():
    """What was refused before the end had a value of its own."""
    space = Space(Widths, widths=Repeat(Choice(1, None), Choice(0, 2)))
    plain = {Widths(()), *(Widths(w) for w in itertools.product((1, None), repeat=2))}
    graph = Graph.choices(space)
    found = [decode(space, np.array(path)) for path in paths_of(graph)]
    assert len(found) == graph.count == len(plain)
    assert set(found) == plain
    assert all(space.parse(json.loads(json.dumps(asdict(w)))) == w for w in found)
    assert graph.along(encode(space, Widths((None, 1)))) == [("widths[0]", None), ("widths[1]", 1)]
    assert graph.along(encode(space, Widths(()))) == []
    assert pickle.loads(pickle.dumps(ENDED)) is ENDED


@given(
    times=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    numpy=st.booleans(),
)
def test_a_repeat_has_every_number_of_items_in_whatever_order_they_are_written(times, numpy):
    written = Choice(*(np.int64(n) if numpy else n for n in times))
    space = Space(Widths, widths=Repeat(Choice(1, 2), written))
    plain = {Widths(w) for n in times for w in itertools.product((1, 2), repeat=n)}
    graph = Graph.choices(space)
    found = [decode(space, np.array(path)) for path in paths_of(graph)]
    assert len(found) == graph.count == len(plain)
    assert set(found) == plain
    assert all(tuple(encode(space, w)) in set(paths_of(graph)) for w in plain)
    for n in range(6):
        if n in times:
            assert space.parse({"widths": [1] * n}) == Widths((1,) * n)
        else:
            with pytest.raises(UsageError, match="must be a list of"):
                space.parse({"widths": [1] * n})


def test_items_of_their_own_follow_the_greatest_number_wherever_it_is_written():
    items = (Choice(1), Choice(2), Choice(3))
    space = Space(Widths, widths=Repeat(items, Choice(3, 1)))
    assert set(space.values()) == {Widths((1,)), Widths((1, 2, 3))}


@pytest.mark.parametrize("times", [Choice(-1), Choice(2, -3), Choice(1.5), Choice(2, "3"),
                                   Choice(True), -1, 2.0, None, "3", (2, 3)])  # fmt: skip
def test_the_number_of_items_is_whole_and_not_negative(times):
    with pytest.raises(UsageError, match="whole numbers, 0 or more"):
        Repeat(Choice(1), times)
    with pytest.raises(UsageError, match="distinct"):
        Choice(3, 3)


def test_a_plain_number_of_items_is_a_choice_of_one():
    assert Repeat(Choice(1), 3) == Repeat(Choice(1), Choice(3))


def test_a_rule_sees_none_as_a_value():
    same = Space(Widths, widths=Repeat(Choice(None, 1), Choice(2), (Along("widths", "=="),)))
    assert set(same.values()) == {Widths((None, None)), Widths((1, 1))}


@dataclass(frozen=True)
class Net:
    """A user's own architecture, of no family."""

    widths: tuple[int, ...]
    stages: tuple[tuple[Item, ...], ...]
    size: int


_ITEM = Space(Item, a=Choice(1, 2, 3), b=Choice(5, 4))
NET = Space(
    Net,
    widths=Fixed(Choice(1, 2), Choice(2, 1), rules=(Along("widths", "<="),)),
    stages=Fixed(
        Repeat(_ITEM, Choice(0, 2), rules=(Along("a", "<="),)),
        Repeat(_ITEM, Choice(1, 2), rules=(Along("a", ">="),)),
        rules=(Along("b", "=="),),
    ),
    size=Choice(7, 8),
)


def rising(values):
    return all(x <= y for x, y in itertools.pairwise(values))


def obeys(net):
    """The rules of NET, in so many words."""
    first, second = ([item.a for item in stage] for stage in net.stages)
    b = {item.b for stage in net.stages for item in stage}
    return rising(net.widths) and rising(first) and rising(second[::-1]) and len(b) == 1


def all_nets():
    """Every value of NET's fields whether or not it obeys, by plain enumeration."""
    items = [Item(a, b) for a in (1, 2, 3) for b in (5, 4)]
    stages = [[tuple(s) for n in times for s in itertools.product(items, repeat=n)]
              for times in ((0, 2), (1, 2))]  # fmt: skip
    for widths in itertools.product((1, 2), repeat=2):
        for pair in itertools.product(*stages):
            yield from (Net(widths, pair, size) for size in (7, 8))


def paths_of(graph):
    """Every path of a graph, by following every edge."""
    paths = [((), 0)]
    for level in graph.levels:
        paths = [
            ((*path, int(v)), int(level.target[level.edge[state, v]]))
            for path, state in paths
            for v in np.flatnonzero(level.edge[state] >= 0)
        ]
    return [path[:-1] for path, _ in paths]


def test_a_space_over_any_dataclass_is_a_graph_of_what_obeys_its_rules():
    expected = {net for net in all_nets() if obeys(net)}
    graph = Graph.choices(NET)
    paths = paths_of(graph)
    assert {decode(NET, np.array(path)) for path in paths} == expected
    assert graph.count == len(paths) == len(expected)
    assert all(tuple(encode(NET, decode(NET, np.array(path)))) == path for path in paths)
    assert set(NET.values()) == expected


def test_items_of_a_plain_space_are_names_with_values():
    net = Net((1, 2), ((), (Item(3, 4),)), 8)
    graph = Graph.choices(NET)
    assert graph.along(encode(NET, net)) == [
        ("widths[0]", 1),
        ("widths[1]", 2),
        ("stages[1][0]", Item(3, 4)),
        ("size", 8),
    ]


def test_parse_refuses_exactly_what_breaks_a_rule():
    for net in all_nets():
        data = json.loads(json.dumps(asdict(net)))
        if obeys(net):
            assert NET.parse(data) == net
        else:
            with pytest.raises(UsageError, match=r"must (not (de|in)crease|stay the same)"):
                NET.parse(data)


def test_a_broken_rule_is_named_with_what_broke_it():
    net = Net((1, 2), ((Item(2, 5), Item(1, 5)), (Item(1, 5),)), 7)
    with pytest.raises(UsageError) as error:
        NET.parse(asdict(net), "net")
    assert (
        str(error.value)
        == "net.stages[0]: a must not decrease from one to the next (<=), got 2, 1; choose a in that order"
    )


def test_rules_are_forgotten_where_they_end():
    """States are what rules remember, between the first and the last position of each."""
    sources = [level.sources for level in Graph.choices(NET).levels]
    # Ahead of: two widths, two items (a 0 or 2 long), two more (b is still remembered), size, end.
    assert sources[:3] == [1, 2, 1]
    assert sources[-2:] == [1, 1]


def test_rules_that_cannot_be_meant():
    with pytest.raises(UsageError, match="one of <=, >=, =="):
        Along("a", "<")
    with pytest.raises(UsageError, match="no choice of that name"):
        Graph.choices(Space(Item, a=Choice(1), b=Repeat(_ITEM, Choice(2), (Along("c", "<="),))))


def ruled(*widths):
    """swin:debug with a rule along its stages and one along the blocks of each."""
    space = load_space("swin:debug", Classification(2))
    stages = dict(space.domain.domains)["stages"].items
    stages = [
        Space(
            Stage,
            width=Choice(*width),
            blocks=replace(dict(stage.domains)["blocks"], rules=(Along("heads", "=="),)),
        )
        for stage, width in zip(stages, widths)
    ]
    stages = Fixed(*stages, rules=(Along("width", "<="),))
    resolution = dict(space.domain.domains)["resolution"]
    domain = Space(Architecture, resolution=resolution, stages=stages)
    return replace(space, domain=rewrite(domain, "precision", lambda _: Choice("fp32")))


def keeps(architecture):
    heads = [{b.heads for b in s.blocks} for s in architecture.stages]
    return rising([s.width for s in architecture.stages]) and all(len(h) == 1 for h in heads)


def unruled(space):
    """The same space without its rules, through `Fixed` and `Repeat` made anew."""
    domains = dict(space.domain.domains)
    stages = [
        Space(
            Stage,
            width=dict(s.domains)["width"],
            blocks=replace(dict(s.domains)["blocks"], rules=()),
        )
        for s in domains["stages"].items
    ]
    domain = Space(Architecture, resolution=domains["resolution"], stages=Fixed(*stages))
    return replace(space, domain=domain)


def test_a_family_obeys_the_rules_of_its_space():
    space = ruled((8, 16), (8, 16))
    free = unruled(space)
    everything = {decode(free, np.array(path)) for path in paths_of(Graph.of(free))}
    expected = {a for a in everything if keeps(a)}
    assert 0 < len(expected) < len(everything)
    graph = Graph.of(space)
    assert {decode(space, np.array(path)) for path in paths_of(graph)} == expected
    assert graph.count == len(expected)
    assert all((a in space) == keeps(a) for a in everything)
    broken = next(a for a in everything if not keeps(a))
    with pytest.raises(UsageError, match="must"):
        space.parse(broken.to_json())
    with pytest.raises(UsageError, match="not allowed after"):
        space.layers(broken)
    assert {space.draw(Random(i)) for i in range(50)} <= expected


def test_draws_and_extremes_take_back_what_leaves_no_way_on():
    space = ruled((8, 16, 24), (8, 16))
    assert [s.width for s in space.largest.stages] == [16, 16]
    assert [s.width for s in space.smallest.stages] == [8, 8]
    drawn = [tuple(s.width for s in space.draw(Random(i)).stages) for i in range(50)]
    assert set(drawn) == {(8, 8), (8, 16), (16, 16)}
    assert {
        tuple(s.width for s in a.stages)
        for a in map(space.restrict("width", 16).draw, map(Random, range(9)))
    } == {(16, 16)}
    with pytest.raises(UsageError, match="obeys its rules"):
        _ = ruled((16,), (8,)).smallest


@dataclass
class Melting:
    """Not frozen, so without a hash."""

    a: int


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Choice([16, 32]), r"one by one, got one list; write Choice\(16, 32\)"),
        (lambda: Choice((16, 32)), "one by one, got one tuple"),
        (lambda: Choice(range(3)), "one by one, got one range"),
        (lambda: Choice(np.arange(3)), "one by one, got one ndarray"),
        (lambda: Choice({"a": 1}), "one by one, got one dict"),
        (lambda: Choice(x for x in "ab"), "one by one, got one generator"),
        (lambda: Choice([16], [32]), "has no hash; use a tuple"),
        (lambda: Choice(Melting(1), Melting(2)), r"no hash; write @dataclass\(frozen=True\)"),
        (lambda: Space(Item, a=Choice(1), b=[1, 2]), r"b must be a Choice.*got \[1, 2\]"),
        (lambda: Space(Item, a=Choice(1), b=3), "b must be a Choice"),
        (lambda: Space(Item, a=Choice(1), b=Choice), "b must be a Choice"),
        (lambda: Fixed([Choice(1)]), "entry 0 must be a Choice"),
        (lambda: Repeat([1, 2], 2), "an item must be a Choice"),
        (lambda: Repeat(Choice(1), 2, rules=("<=",)), "a rule must be an Along"),
        (lambda: Fixed(Choice(1), rules="<="), "a rule must be an Along"),
        (lambda: list(Repeat(Space(Melting, a=Choice(1)), 2).positions("x")), "frozen=True"),
    ],
)
def test_what_cannot_be_a_domain_is_refused_with_the_fix(make, match):
    with pytest.raises(UsageError, match=match):
        make()
    with pytest.raises(UsageError, match="of a dataclass"):
        Space(dict, a=Choice(1))


def test_one_rule_needs_no_comma():
    rule = Along("widths", "<=")
    assert Repeat(Choice(1, 2), 3, rules=rule) == Repeat(Choice(1, 2), 3, rules=(rule,))
    assert Repeat(Choice(1, 2), 3, rules=[rule]) == Repeat(Choice(1, 2), 3, rules=(rule,))
    assert Fixed(Choice(1), Choice(2), rules=rule).rules == (rule,)
    with pytest.raises(UsageError, match="have no order"):
        Graph.choices(Space(Widths, widths=Repeat(Choice(None, 1), 2, rules=rule)))


@dataclass(frozen=True)
class Even:
    a: int
    b: int

    def __post_init__(self):
        if (self.a + self.b) % 2:
            raise ValueError("odd")


def test_what_a_dataclass_refuses_is_no_value():
    even = Space(Even, a=Choice(1, 2, 3), b=Choice(1, 2))
    assert even.values() == (Even(1, 1), Even(2, 2), Even(3, 1))
    space = Space(Widths, widths=Repeat(even, Choice(0, 2)))
    assert Graph.choices(space).count == 1 + 9
    with pytest.raises(UsageError, match="has no value: odd"):
        Space(Even, a=Choice(1), b=Choice(2)).values()


def test_items_of_a_repeat_may_be_of_any_domain():
    pairs = Repeat(Fixed(Choice(1, 2), Choice(3), rules=()), Choice(1, 2))
    space = Space(Widths, widths=pairs)
    pair = [(1, 3), (2, 3)]
    plain = {Widths(w) for n in (1, 2) for w in itertools.product(pair, repeat=n)}
    assert {decode(space, np.array(p)) for p in paths_of(Graph.choices(space))} == plain
    nested = Space(Widths, widths=Repeat(Repeat(Choice(1, 2), Choice(1, 2)), 2))
    assert Graph.choices(nested).count == (2 + 4) ** 2


@dataclass(frozen=True)
class Own:
    of: int
    self: int


def test_fields_may_have_any_name():
    assert Space(Own, of=Choice(1), **{"self": Choice(2)}).values() == (Own(1, 2),)


@dataclass(frozen=True)
class Piece:
    kind: object
    sizes: tuple


def _single(part):
    return len(part.sizes) != 1 or part.kind != 1


SIZES = Repeat(Choice(1, 2), Choice(1, 2, 3), rules=Along("sizes", "<="))
NESTED = {
    "repeat": Repeat(Repeat(Choice(1, 2, 3), Choice(1, 2)), Choice(0, 1, 3)),
    "records": Repeat(Space(Piece, kind=Choice(None, 1), sizes=SIZES), Choice(1, 2)),
    "late": Repeat(Fixed(Repeat(Choice(1, 2), Choice(0, 2)), Choice(3, 4)), Choice(0, 2)),
    "rule": Repeat(Space(Piece, kind=Choice(1, 2), sizes=Repeat(Choice(1, 2), Choice(0, 1))),
                   Choice(2, 3), rules=(Along("kind", ">="), Along("sizes", "=="))),
    "check": Repeat(Space(Piece, kind=Choice(1, 2), sizes=SIZES).where(_single), Choice(1, 2)),
    "thrice": Repeat(Repeat(Repeat(Choice(1, 2), Choice(1, 2)), Choice(1, 2)), Choice(0, 1)),
    "own": Repeat((Choice(1, 2), Repeat(Choice(1, 2), Choice(1, 2)), Choice(3)), Choice(1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("most", [1, 3, 9])
@pytest.mark.parametrize("name", NESTED)
def test_an_item_that_is_several_positions_has_the_same_members(name, most, monkeypatch):
    """As one that is one choice of all its values, which is an independent way to them."""
    domain = NESTED[name]

    def members(space):
        paths = np.array(paths_of(Graph.choices(space)))
        found = []
        for path in paths:
            try:
                found.append(decode(space, path))
            except ValueError:  # a check
                continue
            assert encode(space, found[-1]).tolist() == path.tolist()
        assert len(set(found)) == len(found)
        return paths, set(found)

    plain, wanted = members(Space(Widths, widths=domain))
    monkeypatch.setattr(domains, "MOST_VALUES", most)
    again = restrict(domain, "nothing")  # a copy, which has listed nothing yet
    paths, found = members(Space(Widths, widths=again))
    assert found == wanted
    if most == 1:
        assert paths.shape[1] > plain.shape[1]


def test_an_item_with_many_values_takes_no_time_and_a_budget_is_kept():
    """Six stages of up to nine blocks were 101 s without a word."""
    stage = Space(Widths, widths=Repeat(Choice(*range(6)), Choice(*range(1, 10))))
    space = Space(Widths, widths=Repeat(stage, Choice(*range(1, 7))))
    begin = process_time()
    graph = Graph.choices(space)
    each = sum(6**n for n in range(1, 10))
    assert graph.count == sum(each**n for n in range(1, 7))
    trellis = Trellis(graph, lambda item: float(item[1]) + 1)
    within = trellis.within(40.0)
    paths = within.sample(50, np.random.default_rng(0))
    for path in paths:
        member = decode(space, path)
        cost = sum(w + 1 for own in member.widths for w in own.widths)
        assert cost == trellis.cost(path) <= 40
        assert encode(space, member).tolist() == path.tolist()
    assert process_time() - begin < 10
    empty = Space(Widths, widths=Repeat(Choice(*range(6)), Choice(*range(10))))
    with pytest.raises(UsageError, match=r"an item of x may be empty, and has too many values"):
        list(Repeat(empty, Choice(1, 6)).positions("x"))
    # Late contradictions are found by what rules remember, not by trying everything.
    same = Repeat(Choice(*range(9)), 9, rules=Along("widths", "=="))
    nested = Space(Widths, widths=Repeat(Space(Widths, widths=same), Choice(1, 2)))
    assert [len(p.values) for p in nested.positions()] == [9, 10]


def test_an_item_of_which_nearly_all_is_refused_ends():
    """It would try 6**9 combinations."""
    rare = Space(Widths, widths=Repeat(Choice(*range(6)), 9)).where(lambda w: sum(w.widths) == 45)
    begin = process_time()
    assert len(Space(Widths, widths=Repeat(rare, Choice(1, 2))).choices) == 18
    assert process_time() - begin < 5
