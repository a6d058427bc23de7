"""Search over a user's own space: every kind of latency and score, against brute force."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import threading
from dataclasses import dataclass, fields, make_dataclass, replace
from math import comb, isnan, nan
from time import sleep

import numpy as np
import pandas as pd
import pytest

import nas
from nas.errors import EvaluationError, InfeasibleError, RunError, UsageError
from nas.progress import bar
from nas.records import CHECK, Journal, write_json
from nas.space.domains import restrict
from nas.strategy.features import Fields
from nas.strategy.searchers import searcher_names
from nas.strategy.searchers.evolution import Evolution


@dataclass(frozen=True)
class Layer:
    width: int
    kind: str


@dataclass(frozen=True)
class Net:
    layers: tuple[Layer, ...]
    depth: int


RULES = (nas.Along("width", "<="),)
SPACE = nas.Space(
    Net,
    layers=nas.Repeat(
        nas.Space(Layer, width=nas.Choice(1, 2, 3), kind=nas.Choice("a", "b")),
        nas.Choice(2, 3),
        rules=RULES,
    ),
    depth=nas.Choice(1, 2, 4),
)
MS = {1: 1.0, 2: 2.5, 3: 4.0}


def everything():
    layer = [Layer(w, k) for w in MS for k in "ab"]
    for n in (2, 3):
        for layers in itertools.product(layer, repeat=n):
            if all(a.width <= b.width for a, b in itertools.pairwise(layers)):
                yield from (Net(layers, d) for d in (1, 2, 4))


def latency(net):
    return 0.5 + net.depth + sum(MS[x.width] + (x.kind == "b") for x in net.layers)


def score(net):
    widths = [x.width + 0.3 * (x.kind == "b") for x in net.layers]
    return sum(w * net.depth**0.5 for w in widths) - abs(widths[0] * 2 - widths[-1])


def cost(name, value):
    if name == "depth":
        return value
    return 0.0 if value is nas.ENDED else MS[value.width] + (value.kind == "b")


TABLE = {p.name: {v: cost(p.name, v) for v in p.values} for p in SPACE.positions()}
ROWS = pd.DataFrame([(n, v, ms) for n, own in TABLE.items() for v, ms in own.items()],
                    columns=["choice", "value", "ms"])  # fmt: skip
MEMBERS = list(everything())
BUDGET = 11.2
BEST = max(score(net) for net in MEMBERS if latency(net) <= BUDGET)


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        (nas.Additive(cost, fixed=0.5), 0.0),
        (TABLE, 0.5),
        (ROWS, 0.5),
        (latency, 0.0),
    ],
    ids=["additive", "mapping", "table", "black box"],
)
def test_every_kind_of_latency_keeps_the_budget_and_finds_the_optimum(given, fixed):
    found = nas.search(BUDGET - fixed, space=SPACE, latency=given, score=score, evaluations=120)
    assert all(
        latency(c.architecture) == pytest.approx(c.latency + fixed) for c in found.candidates
    )
    assert all(c.latency <= BUDGET - fixed for c in found.candidates)
    assert all(c.architecture in MEMBERS for c in found.candidates)  # the rule is honoured
    assert found.best.score == pytest.approx(BEST)
    assert found.proposals == len(found.candidates) + sum(found.rejections.values())
    for a, b in itertools.pairwise(found.front):
        assert a.latency <= b.latency
        assert a.score < b.score
    assert list(found.hypervolume) == sorted(found.hypervolume)


def test_what_is_said_of_the_answer_is_true():
    found = nas.search(
        BUDGET, space=SPACE, latency=nas.Additive(cost, 0.5), score=score, evaluations=60
    )
    quality = found.answers[0].quality
    assert quality.architectures == len(MEMBERS)
    inside = sum(latency(net) <= BUDGET for net in MEMBERS)
    assert 0.97 * inside <= quality.within_budget <= inside
    assert quality.gap >= -1e-9
    assert quality.gain_10_percent >= 0
    assert quality.error > 0
    assert not isnan(found.rank_correlation)


def test_several_budgets_and_further_limits():
    found = nas.search(
        ["8ms", 12.0], space=SPACE, latency=nas.Additive(cost, 0.5), score=score, evaluations=120,
        limits={"depth": (lambda net: float(net.depth), 2.0)},
    )  # fmt: skip
    for answer in found.answers:
        best = max(score(n) for n in MEMBERS if latency(n) <= answer.budget and n.depth <= 2)
        assert 0.99 * best <= answer.best.score <= best + 1e-9
    assert all(c.architecture.depth <= 2 for c in found.candidates)


def test_scores_from_a_table_and_candidates_as_one():
    known = pd.DataFrame(
        [{"layers[0].width": n.layers[0].width, "layers[1].width": n.layers[1].width,
          "depth": n.depth, "score": float(n.layers[0].width * n.depth)} for n in MEMBERS]
    ).drop_duplicates()  # fmt: skip
    found = nas.search(9.0, space=SPACE, latency=TABLE, score=known, evaluations=50)
    frame = found.frame()
    assert {"layers[0].width", "layers[0].kind", "depth", "latency", "score"} <= set(frame.columns)
    assert len(frame) == 50
    assert (frame["score"] == frame["layers[0].width"] * frame["depth"]).all()
    with pytest.raises(EvaluationError, match=r"set aside.*has no row"):
        nas.search(9.0, space=SPACE, latency=TABLE, score=known[:2], evaluations=50)


def test_a_score_that_fails_sets_its_candidate_aside():
    def moody(net):
        if net.depth == 4:
            return nan
        if net.layers[0].width == 3:
            raise RuntimeError("out of\nmemory")
        return score(net)

    def run(share):
        return nas.search(
            20.0, space=SPACE, latency=TABLE, score=moody, evaluations=60, searcher="random",
            failed_share=share,
        )  # fmt: skip

    found = run(0.9)
    assert len(found.candidates) + len(found.set_aside) == 60
    assert found.rejections["failed"] == len(found.set_aside)
    reasons = set(found.set_aside.values())
    assert any("the score is nan" in r for r in reasons)
    assert any("RuntimeError: out of memory" in r for r in reasons)
    with pytest.raises(EvaluationError, match=r"more than 25 %"):
        run(0.25)


@pytest.mark.parametrize("members", [1, 2, 4])
def test_where_nothing_has_a_score_that_is_said(members):
    """Up to four failures once passed for a search that found nothing."""
    space = nas.Space(Chain, ops=nas.Fixed(nas.Choice(*range(members))))

    def fails(net):
        raise RuntimeError("no memory")

    settings = dict(space=space, latency=nas.Additive(lambda n, v: 1.0), score=fails)
    with pytest.raises(EvaluationError, match=rf"none of {members} .* has a score.*no memory"):
        nas.search(9.0, **settings)
    found = nas.search(9.0, failed_share=1.0, **settings)  # as somebody wanted
    assert found.best is None
    assert len(found.set_aside) == members


def test_a_search_resumes_to_the_same_and_refuses_another(tmp_path):
    settings = dict(space=SPACE, latency=TABLE, score=score, evaluations=64)
    whole = nas.search(BUDGET, out=tmp_path / "whole", **settings)
    calls = []

    def dies(net):
        if len(calls) == 41:
            raise KeyboardInterrupt
        calls.append(net)
        return score(net)

    with pytest.raises(KeyboardInterrupt):
        nas.search(BUDGET, out=tmp_path / "part", **{**settings, "score": dies})
    resumed = nas.search(BUDGET, out=tmp_path / "part", resume=True, **settings)
    assert resumed == whole
    journals = [Journal(tmp_path / name / "candidates.jsonl") for name in ("whole", "part")]
    assert journals[0].path.read_text() == journals[1].path.read_text()
    with pytest.raises(RunError, match="exists already"):
        nas.search(BUDGET, out=tmp_path / "part", **settings)
    for key, value in (("budget", 9.0), ("latency", nas.Additive(cost, 0.25)), ("seed", 5)):
        other = {"budget": BUDGET, **settings, key: value}
        with pytest.raises(RunError, match=f"another .*{key}"):
            nas.search(out=tmp_path / "part", resume=True, **other)


def test_what_cannot_be_is_refused_in_one_line():
    def refused(kind, match, **changed):
        settings = dict(budget=BUDGET, space=SPACE, latency=TABLE, score=score)
        with pytest.raises(kind, match=match):
            nas.search(**settings | changed)

    refused(InfeasibleError, "smallest possible has 3", budget=2.0)
    refused(UsageError, "no unit", budget="20")
    refused(UsageError, "nothing for depth = 4", latency={**TABLE, "depth": {1: 1, 2: 2}})
    refused(UsageError, "cannot be a int", latency=3)
    refused(InfeasibleError, "none of .* proposals meets", latency=lambda net: 100 + latency(net))
    refused(InfeasibleError, "not together", budget=4.0,
            limits={"negative": (nas.Additive(lambda n, v: 20 - cost(n, v)), 50.0)})  # fmt: skip
    with pytest.raises(UsageError, match="needs a latency and a score"):
        nas.search(BUDGET, space=SPACE)


@dataclass(frozen=True)
class Cube:
    a: int
    b: int
    c: int


SIDE = nas.Choice(*range(8))
CUBE = nas.Space(Cube, a=SIDE, b=SIDE, c=SIDE)
CUBES = [Cube(*t) for t in itertools.product(range(8), repeat=3)]
WHOLE = nas.Additive(lambda name, value: float(value))


@pytest.mark.parametrize("budget", [7, 11, 13])
def test_what_costs_exactly_the_budget_fits(budget):
    found = nas.search(budget, space=CUBE, latency=WHOLE, score=lambda m: float(m.a * m.b * m.c),
                       evaluations=512, searcher="random")  # fmt: skip
    fitting = [m for m in CUBES if m.a + m.b + m.c <= budget]
    assert found.answers[0].quality.within_budget == len(fitting) == len(found.candidates)


@pytest.mark.parametrize(
    ("latency", "budget"),
    [
        (lambda m: float(max(m.a, m.b, m.c)), 1.5),
        (lambda m: float(max(m.a, m.b, m.c)), 3.0),
        (lambda m: float((m.a + 1) * (m.b + 1) * (m.c + 1)), 4.0),
        (lambda m: (m.a + m.b + m.c) ** 0.5, 1.1),
    ],
)
def test_a_black_box_that_is_no_sum_is_searched_all_the_same(latency, budget):
    found = nas.search(budget, space=CUBE, latency=latency, evaluations=60,
                       score=lambda m: 2.0 * m.a + m.b + m.c)  # fmt: skip
    best = max(2 * m.a + m.b + m.c for m in CUBES if latency(m) <= budget)
    assert found.best.score == best
    assert all(latency(c.architecture) <= budget for c in found.candidates)


def test_a_frame_of_candidates_is_a_table_of_scores():
    before = nas.search(BUDGET, space=SPACE, latency=TABLE, score=score, evaluations=200)
    frame = before.frame()
    again = nas.search(BUDGET, space=SPACE, latency=TABLE, score=frame, evaluations=20,
                       failed_share=1.0)  # fmt: skip
    assert len(again.candidates) > 5
    known = {c.architecture: c.score for c in before.candidates}
    assert all(known[c.architecture] == c.score for c in again.candidates)


def test_equal_spaces_keep_their_own_values():
    for values in ((1, 0), (True, False), (1.0, 0.0)):
        space = nas.Space(Cube, a=nas.Choice(*values), b=SIDE, c=SIDE)
        found = nas.search(5.0, space=space, latency=WHOLE, score=lambda m: float(m.a),
                           evaluations=4, searcher="random")  # fmt: skip
        assert all(type(c.architecture.a) is type(values[0]) for c in found.candidates)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"limits": {"x": (WHOLE, nan)}}, "must be a positive number, got nan"),
        ({"limits": {"x": (WHOLE, "5X")}}, "cannot read '5X' as a number of the limit x"),
        ({"limits": {"budget": (WHOLE, 3.0)}}, "cannot be called budget"),
        ({"budget": nan}, "must be a positive number"),
        ({"budget": []}, "needs a budget"),
        ({"latency": nas.Additive(lambda n, v: nan)}, "cannot be used"),
        ({"latency": lambda m: 1 / 0}, "raised ZeroDivisionError"),
        ({"latency": lambda m: nan}, "is nan"),
        ({"score": 5}, "without a column called score"),
        ({"evaluations": 0}, "at least 1"),
        ({"evaluations": 2.5}, "evaluations must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, at least 0"),
        ({"seed": None}, "seed must be a whole number"),
        ({"batch": "8"}, "batch must be a whole number"),
        ({"budget": None}, "must be a positive number, got None"),
        ({"limits": {"x": 5.0}}, "must be a cost and its bound, got 5.0"),
        ({"limits": {"x": (WHOLE, True)}}, "must be a positive number"),
        ({"latency": nas.Additive(lambda n, v: 1 / 0)}, "latency of a = 0 raised ZeroDivision"),
        ({"latency": nas.Additive(lambda n, v: None)}, "latency of a = 0 raised TypeError"),
        ({"latency": nas.Additive(lambda v: 1.0)}, r"called as function\(name, value\)"),
        ({"latency": nas.Additive(lambda n, v: 1.0, fixed="x")}, "fixed cost must be a number"),
        ({"latency": {"a": 3.0}}, "give the cost of each value"),
        ({"latency": {"a": dict.fromkeys(range(8), "x")}}, "cost of a = 0 must be a number"),
        ({"evalutions": 9}, "keyword of nas.search.* 'evalutions'; did you mean evaluations"),
        ({"device": "cpu"}, "unknown keyword of nas.search over a space of your own 'device'"),
        ({"out": 3}, "out must be the path of a folder, got 3"),
        ({"space": SIDE}, "space must be a nas.Space, .* got a Choice"),
        ({"space": Cube}, "space must be a nas.Space, .* got a type"),
        ({"noise": "x"}, "noise must be a number, at least 0, got 'x'"),
        ({"failed_share": 2}, "failed_share must be"),
        ({"workers": "2"}, "workers must be a whole number"),
        ({"timeout_s": 0}, "timeout_s must be a number"),
        ({"sampler": 7}, "unknown sampler"),
        ({"searcher": None}, "unknown searcher"),
        ({"limits": [3]}, "limits must be"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_scored(changed, match):
    with pytest.raises(UsageError, match=match):
        nas.search(**{"budget": 5.0, "space": CUBE, "latency": WHOLE, "score": score, **changed})


def test_a_member_that_breaks_the_rule_is_no_member():
    net = MEMBERS[0]
    falling = replace(net, layers=(Layer(3, "a"), Layer(1, "a")))
    with pytest.raises(UsageError, match="width"):
        SPACE.parse({"layers": [vars(x) for x in falling.layers], "depth": 1})


@dataclass(frozen=True)
class Normed:
    norm: str | None
    heads: tuple[int | None, ...]


NORMED = nas.Space(
    Normed,
    norm=nas.Choice(None, "layer"),
    heads=nas.Repeat(nas.Choice(None, 2), nas.Choice(1, 3)),
)
NORM_COST = {None: 50.0, "layer": 1.0, 2: 3.0}


def normed_cost(net):
    return sum(NORM_COST[x] for x in (net.norm, *net.heads))


@pytest.mark.parametrize(
    "given",
    [
        {p.name: {v: NORM_COST[v] for v in p.values if v is not nas.ENDED}
         for p in NORMED.positions()},
        nas.Additive(lambda name, value: NORM_COST[value]),
        normed_cost,
    ],
    ids=["mapping", "additive", "black box"],
)  # fmt: skip
@pytest.mark.parametrize("budget", [4.0, 10.0, 60.0, 500.0])
def test_none_is_a_value_like_any_other_and_costs_what_it_costs(given, budget):
    """Also within a Repeat, where it once stood for the end."""
    members = [Normed(norm, heads) for norm in (None, "layer")
               for n in (1, 3) for heads in itertools.product((None, 2), repeat=n)]  # fmt: skip
    fitting = {m: normed_cost(m) for m in members if normed_cost(m) <= budget}
    found = nas.search(budget, space=NORMED, latency=given, score=lambda m: len(m.heads),
                       evaluations=40, searcher="random")  # fmt: skip
    assert {c.architecture: c.latency for c in found.candidates} == fitting


@dataclass(frozen=True)
class Conv:
    kernel: int


@dataclass(frozen=True)
class Pool:
    kernel: int


@dataclass(frozen=True)
class Odd:
    """Unequal values of one text."""

    number: int

    def __str__(self):
        return "odd"

    __repr__ = __str__


class Same:
    """Values that only their identity tells apart."""

    def __repr__(self):
        return "same"


@dataclass(frozen=True)
class Mixed:
    op: object
    width: int


@dataclass(frozen=True)
class Chain:
    ops: tuple[object, ...]


def halved(x):
    return x / 2


def doubled(x):
    return x * 2


KINDS = {
    "classes": (Conv(3), Conv(5), Pool(3)),
    "a class and text": (Conv(3), "skip", None),
    "one text": (Odd(1), Odd(2), Odd(3)),
    "text and number": ("3", 3, 3.5),
    "identity": (Same(), Same(), Same()),
    "functions": (halved, doubled, Conv),
    "records of records": (Mixed(Conv(3), 1), Mixed(Pool(3), 1), Mixed(Conv(3), 2)),
    "tuples": ((), ((),), (1,)),
}


@pytest.mark.parametrize("repeated", [False, True], ids=["one", "repeated"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_member_has_the_score_and_the_cost_of_its_own(kind, repeated, tmp_path):
    values = KINDS[kind]
    worth = {id(v): 10.0**i for i, v in enumerate(values)}
    if repeated:
        space = nas.Space(Chain, ops=nas.Repeat(nas.Choice(*values), nas.Choice(1, 2)))
    else:
        space = nas.Space(Mixed, op=nas.Choice(*values), width=nas.Choice(1, 2))

    def parts(member):
        return member.ops if repeated else (member.op,)

    def score(member):
        own = sum(worth[id(v)] * (i + 1) for i, v in enumerate(parts(member)))
        return own + (0 if repeated else member.width / 10)

    def cost(name, value):
        return worth.get(id(value), 0.0) + 1

    settings = dict(space=space, latency=nas.Additive(cost), evaluations=50, searcher="random")
    found = nas.search(1e4, score=score, out=tmp_path, **settings)
    assert len(found.candidates) == (3 + 9 if repeated else 6)
    for c in found.candidates:
        assert c.score == score(c.architecture)
        assert c.latency == pytest.approx(
            sum(cost("", v) for v in parts(c.architecture)) + (0 if repeated else 1)
        )
    rows = Journal(tmp_path / "candidates.jsonl").read()
    assert (
        len({row["id"] for row in rows})
        == len({row["architecture"] for row in rows})
        == len(found.candidates)
    )
    resumed = nas.search(1e4, score=score, out=tmp_path, resume=True, **settings)
    assert resumed.candidates == found.candidates
    assert Journal(tmp_path / "candidates.jsonl").read() == rows
    # What is a table of candidates is a table of scores, each of its own member.
    again = nas.search(1e4, score=found.frame(), **settings)
    assert {c.path: c.score for c in again.candidates} == {
        c.path: c.score for c in found.candidates
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_surrogate_tells_every_two_values_apart(kind):
    space = nas.Space(Mixed, op=nas.Choice(*KINDS[kind]), width=nas.Choice(1, 2))
    features = Fields(tuple(space.positions()))(np.array([[i, 0] for i in range(3)]))
    assert len(np.unique(features, axis=0)) == 3
    found = nas.search(
        9.0, space=nas.Space(Chain, ops=nas.Repeat(nas.Choice(*KINDS[kind]), 4)),
        latency=nas.Additive(lambda name, value: 1.0), evaluations=48,
        score=lambda m: sum(KINDS[kind].index(op) for op in m.ops),
    )  # fmt: skip
    assert found.best.score == 8


def test_failures_of_members_with_equal_fields_are_told_apart():
    def fails(member):
        raise RuntimeError(type(member.op).__name__)

    for kind in ("classes", "one text", "identity"):
        space = nas.Space(Mixed, op=nas.Choice(*KINDS[kind]), width=nas.Choice(1))
        found = nas.search(9.0, space=space, latency=nas.Additive(lambda n, v: 1.0), score=fails,
                           evaluations=3, failed_share=1.0)  # fmt: skip
        assert len(found.set_aside) == 3


def test_numbers_of_numpy_are_numbers(tmp_path):
    settings = dict(space=CUBE, latency=WHOLE, score=lambda m: float(m.a + m.b))
    plain = nas.search(7, evaluations=40, seed=3, limits={"x": (WHOLE, 6)}, **settings)
    texts = nas.search(7, evaluations=40, seed=3, limits={"x": (WHOLE, "0.006k")}, **settings)
    assert texts == plain
    found = nas.search(np.float32(7), evaluations=np.int64(40), seed=np.int64(3), batch=np.int8(8),
                       limits={"x": (WHOLE, np.int64(6))}, out=tmp_path, **settings)  # fmt: skip
    assert found == plain
    assert len(nas.search(np.array([5, 7]), evaluations=9, **settings).answers) == 2


@dataclass(frozen=True, slots=True)
class Slotted:
    op: object
    width: int


def test_slots_and_classes_as_values_are_values():
    space = nas.Space(Slotted, op=nas.Choice(Conv, Pool, halved), width=nas.Choice(1, 2))
    found = nas.search(9.0, space=space, latency=nas.Additive(lambda n, v: 1.0), evaluations=6,
                       score=lambda m: m.width + 10 * (m.op is Pool))  # fmt: skip
    assert found.best.architecture == Slotted(Pool, 2)
    assert set(found.frame().columns) == {"op", "width", "latency", "score"}


@dataclass(frozen=True)
class Bench:
    legs: int
    width: int


@dataclass(frozen=True)
class Table:
    """Refuses whatever has more legs than it is wide."""

    legs: int
    width: int

    def __post_init__(self):
        if self.legs > self.width:
            raise ValueError("it would fall")


@pytest.mark.parametrize(
    "latency", [nas.Additive(lambda n, v: float(v)), lambda t: float(t.legs + t.width)]
)
def test_what_the_dataclass_refuses_is_rejected_and_counted(latency):
    space = nas.Space(Table, legs=nas.Choice(*range(8)), width=nas.Choice(*range(8)))
    fitting = {(a, b) for a in range(8) for b in range(8) if a <= b and a + b <= 9}
    found = nas.search(9.0, space=space, latency=latency, score=lambda t: float(t.legs),
                       evaluations=100, searcher="random")  # fmt: skip
    assert {(c.architecture.legs, c.architecture.width) for c in found.candidates} == fitting
    assert found.rejections["refused"] > 0
    assert found.proposals == len(found.candidates) + sum(found.rejections.values())
    none = nas.Space(Table, legs=nas.Choice(5), width=nas.Choice(1, 2))
    with pytest.raises((InfeasibleError, UsageError), match=r"refused|refuses"):
        nas.search(9.0, space=none, latency=latency, score=score)


def low(t):
    return t.legs <= t.width


@pytest.mark.parametrize(
    "latency", [nas.Additive(lambda n, v: float(v)), lambda t: float(t.legs + t.width)]
)
def test_combinations_are_forbidden_by_a_predicate(latency):
    """Like what a dataclass refuses, without a dataclass that does."""
    side = nas.Choice(*range(8))
    space = nas.Space(Bench, legs=side, width=side).where(low, lambda t: t.width != 3)
    fitting = {Bench(a, b) for a in range(8) for b in range(8) if a <= b and b != 3 and a + b <= 9}
    settings = dict(latency=latency, score=lambda t: 1.0, evaluations=100, searcher="random")
    found = nas.search(9.0, space=space, **settings)
    assert {c.architecture for c in found.candidates} == fitting
    assert found.rejections["refused"] > 0
    assert found.proposals == len(found.candidates) + sum(found.rejections.values())
    assert nas.search(9.0, space=space, **settings).candidates == found.candidates
    with pytest.raises(UsageError, match="architecture: the check low does not hold"):
        space.parse({"legs": 3, "width": 2})


def test_a_predicate_on_what_is_one_choice_leaves_it_out_of_the_trellis():
    bench = nas.Space(Bench, legs=nas.Choice(1, 2, 3), width=nas.Choice(1, 2, 3)).where(low)
    space = nas.Space(Chain, ops=nas.Repeat(bench, nas.Choice(1, 2)))
    found = nas.search(9.0, space=space, latency=nas.Additive(lambda n, v: 1.0),
                       score=lambda m: 1.0, evaluations=50, searcher="random")  # fmt: skip
    assert len(found.candidates) == found.answers[0].quality.within_budget == 6 + 36
    assert "refused" not in found.rejections
    one = nas.Space(Chain, ops=nas.Choice(*bench.values()))
    assert nas.Graph.choices(one).count == 6
    with pytest.raises(UsageError, match=r"has no value: the check <lambda> does not hold"):
        bench.where(lambda b: b.legs > 3).values()


def test_a_predicate_of_a_part_holds_wherever_the_part_is():
    pair = nas.Space(Bench, legs=nas.Choice(1, 2), width=nas.Choice(1, 2)).where(low)
    for domain in (nas.Fixed(pair, pair), nas.Fixed(nas.Fixed(pair), pair)):
        space = nas.Space(Chain, ops=domain)
        found = nas.search(9.0, space=space, latency=nas.Additive(lambda n, v: 1.0),
                           score=lambda m: 1.0, evaluations=50, searcher="random")  # fmt: skip
        assert len(found.candidates) == 9
    assert restrict(nas.Space(Chain, ops=nas.Fixed(pair)), "legs", 2).choices[0].values == (2,)
    assert restrict(pair, "legs", 2).checks == pair.checks


@pytest.mark.parametrize(
    ("check", "match"),
    [
        (3, "a check must be a function of a Bench, got 3"),
        (lambda b: b.height > 1, "check <lambda> raised AttributeError for Bench.*no attribute"),
    ],
)
def test_a_predicate_that_cannot_be_used_is_named(check, match):
    space = nas.Space(Bench, legs=nas.Choice(1, 2), width=nas.Choice(1, 2))
    with pytest.raises(UsageError, match=match):
        nas.search(9.0, space=space.where(check), score=lambda m: 1.0,
                   latency=nas.Additive(lambda n, v: 1.0))  # fmt: skip


def test_a_table_of_more_members_than_floats_hold():
    space = nas.Space(Chain, ops=nas.Repeat(nas.Choice(*range(48)), 200))
    latency = {p.name: {v: v % 2 for v in p.values} for p in space.positions()}
    found = nas.search(100, space=space, latency=latency, score=lambda m: float(sum(m.ops)),
                       evaluations=10, searcher="random")  # fmt: skip
    quality = found.answers[0].quality
    assert quality.architectures == 48**200
    odd = sum(comb(200, k) for k in range(101)) / 2**200
    assert quality.share_within_budget == pytest.approx(odd)
    assert all(c.latency <= 100 for c in found.candidates)


def test_a_score_that_cannot_travel_is_said_to_be_that():
    lock = threading.Lock()
    with pytest.raises(UsageError, match=r"cannot be sent to them: TypeError.*lock"):
        nas.search(5.0, space=CUBE, latency=WHOLE, score=lambda m: bool(lock), workers=1)


@dataclass(frozen=True)
class Six:
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int


@pytest.mark.parametrize("decimals", [1, 2, 16])
def test_a_budget_of_exactly_what_the_best_or_the_cheapest_costs(decimals):
    """Sums are rounded otherwise when they are added up in another order."""
    names = [f.name for f in fields(Six)]
    space = nas.Space(Six, **dict.fromkeys(names, nas.Choice(*range(4))))
    grid = np.array(list(itertools.product(range(4), repeat=6)))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        cost, gain = np.round(rng.gamma(2.0, size=(6, 4)), decimals) + 0.1, rng.normal(size=(6, 4))
        table = {name: dict(enumerate(own.tolist())) for name, own in zip(names, cost)}
        costs = sum(cost[i][grid[:, i]] for i in range(6))
        scores = sum(gain[i][grid[:, i]] for i in range(6))
        best = np.argmax(np.where(costs <= np.quantile(costs, 0.3), scores, -np.inf))

        def score(member, gain=gain):
            return float(sum(own[v] for own, v in zip(gain, vars(member).values())))

        budget = float(costs[best])
        found = nas.search(budget, space=space, latency=table, score=score, evaluations=100)
        assert found.best.score == pytest.approx(scores[best])
        assert found.best.latency <= budget
        least = float(sum(own.min() for own in cost[::-1]))
        found = nas.search(least, space=space, latency=table, score=score, evaluations=100)
        assert len(found.candidates) == np.isclose(costs, least, rtol=1e-12).sum()
        assert all(c.latency <= least for c in found.candidates)
        # One that is cheaper by more than rounding is still refused.
        with pytest.raises(InfeasibleError, match="smallest possible"):
            nas.search(least * (1 - 1e-9), space=space, latency=table, score=score)


def test_all_that_fits_is_found_whatever_it_costs():
    """Also what a sum of rounded costs leaves out."""
    rng = np.random.default_rng(3)
    cost = rng.gamma(2.0, size=(3, 8))
    table = {name: dict(enumerate(own.tolist())) for name, own in zip("abc", cost)}
    sums = {m: cost[0][m.a] + cost[1][m.b] + cost[2][m.c] for m in CUBES}
    for budget in sorted(sums.values())[20:200:30]:
        found = nas.search(budget, space=CUBE, latency=table, score=lambda m: 1.0,
                           evaluations=512, searcher="random")  # fmt: skip
        assert {c.architecture for c in found.candidates} == {
            m for m, ms in sums.items() if ms <= budget + 1e-12
        }


CUBE_SCORES = pd.DataFrame([{**vars(m), "score": m.a + 10.0 * m.b + 100 * m.c} for m in CUBES])
CUBE_COSTS = pd.DataFrame(
    [(name, v, float(v)) for name in "abc" for v in range(8)], columns=["choice", "value", "ms"]
)


def explored(budget=9.0, latency=WHOLE, score=CUBE_SCORES, **more):
    return nas.search(budget, space=CUBE, latency=latency, score=score, evaluations=40, **more)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.assign(ms=range(512), params=1, note="x"),
        lambda t: t.reset_index().rename(columns={"index": "Unnamed: 0"}),
        lambda t: t[["score", "c", "a", "b"]].sample(frac=1, random_state=0),
        lambda t: t.astype({"a": str}),
        lambda t: pd.read_csv(io.StringIO(t.assign(a=t["a"].astype(float)).to_csv())),
        lambda t: pd.concat([t, t.assign(a=99)]),
        lambda t: pd.concat([t, t.assign(score=nan)]),
    ],
)
def test_a_table_of_scores_goes_by_the_names_of_its_columns(change):
    assert explored(score=change(CUBE_SCORES)).candidates == explored().candidates


def test_what_is_not_used_of_a_table_is_said(capfd):
    """It once passed without a word as long as enough was left."""
    explored(score=pd.concat([CUBE_SCORES, CUBE_SCORES[:3].assign(a=99)]))
    said = capfd.readouterr().err
    assert "of the table of scores 3 rows are of no member, e.g. a = 99: they are not used" in said
    explored(score=pd.concat([CUBE_SCORES, CUBE_SCORES[:5].assign(score=nan)]))
    assert "of the table of scores 5 have no score: they are not used" in capfd.readouterr().err
    explored(latency=pd.concat([CUBE_COSTS, CUBE_COSTS[:2].assign(value="wide")]))
    said = capfd.readouterr().err
    assert "2 costs are of no value of the space, e.g. a = 'wide': they are not used" in said
    explored(score=CUBE_SCORES[["a", "b", "score"]])
    assert "no column c: a score holds for all values of it" in capfd.readouterr().err
    explored()
    assert capfd.readouterr().err == ""


def test_choices_may_be_called_like_results():
    fields = ["score", "latency", "expected_score"]
    space = nas.Space(make_dataclass("Own", fields, frozen=True),
                      **dict.fromkeys(fields, nas.Choice(1, 2, 3)))  # fmt: skip
    settings = dict(space=space, latency=nas.Additive(lambda n, v: v))
    found = nas.search(9.0, score=lambda m: m.score * 10.0, evaluations=27, **settings)
    frame = found.frame()
    assert (frame["score"] == 10 * frame["choice.score"]).all()
    assert (frame["latency"] == frame[[f"choice.{f}" for f in fields]].sum(axis=1)).all()
    assert frame["expected_score"].tolist() == [c.expected_score for c in found.candidates]
    again = nas.search(9.0, score=frame, evaluations=27, **settings)
    assert {c.path: c.score for c in again.candidates} == {
        c.path: c.score for c in found.candidates
    }


def test_several_trials_of_a_member_are_averaged_and_their_noise_is_used(tmp_path):
    rng = np.random.default_rng(0)
    trials = [CUBE_SCORES.assign(score=CUBE_SCORES["score"] + rng.normal(0, 3, 512)) for _ in "abc"]
    mean = sum(t["score"] for t in trials) / 3
    found = explored(score=pd.concat(trials), out=tmp_path)
    expected = {m: s for m, s in zip(CUBES, mean)}
    assert all(c.score == pytest.approx(expected[c.architecture]) for c in found.candidates)
    noise = {row["noise"] for row in Journal(tmp_path / "candidates.jsonl").read()}
    assert len(noise) == 1
    assert noise.pop() == pytest.approx(3.0 / 3**0.5, rel=0.1)


def test_of_noisy_scores_the_highest_expected_one_is_better_than_the_luckiest(tmp_path):
    def truth(m):
        return m.a + m.b * 0.8 + m.c * 0.5

    def noisy(m, pair=False):
        seed = m.a * 64 + m.b * 8 + m.c
        score = truth(m) + np.random.default_rng((trial, seed)).normal(0, 2)
        return (score, 2.0) if pair else score

    optimum = max(truth(m) for m in CUBES if m.a + m.b + m.c <= 11)
    gaps = {"best": [], "expected": []}
    for trial in range(5):  # noqa: B007 - read by `noisy`
        found = nas.search(11.0, space=CUBE, latency=WHOLE, score=noisy, noise=2.0, evaluations=80)
        for name, own in gaps.items():
            own.append(optimum - truth(getattr(found, name).architecture))
        assert found.best.score == max(c.score for c in found.candidates)
        assert found.expected.expected_score == max(c.expected_score for c in found.candidates)
    assert np.mean(gaps["expected"]) < 0.7 * np.mean(gaps["best"])
    paired = nas.search(11.0, space=CUBE, latency=WHOLE, score=lambda m: noisy(m, True),
                        evaluations=80)  # fmt: skip
    assert paired.candidates == found.candidates
    with pytest.raises(UsageError, match="noise must be a number"):
        explored(noise=-1.0)


def test_few_scores_expect_nothing():
    found = nas.search(9.0, space=CUBE, latency=WHOLE, score=lambda m: m.a, evaluations=8)
    assert isnan(found.expected.expected_score)
    assert found.expected == found.best


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"score": CUBE_SCORES[["score"]]}, "no column a, b, c"),
        ({"score": CUBE_SCORES.rename(columns={"a": "A"})}, "no column a, and A is no choice"),
        (
            {"score": pd.concat([CUBE_SCORES, CUBE_SCORES[["score", "b"]] + 1], axis=1)},
            "several columns called b, score; drop all but one",
        ),
        (
            {"score": CUBE_SCORES.assign(a=99)},
            "no row .* can be used; 512 rows are of no member, e.g. a = 99",
        ),
        ({"latency": CUBE_COSTS.rename(columns={"ms": "count"})}, "column ms or cost.*got choice"),
        ({"latency": CUBE_COSTS.assign(cost=1)}, "needs one column ms or cost"),
        ({"latency": CUBE_COSTS.replace({"choice": {"c": "d"}})}, "costs for 'd', which is no"),
        (
            {"latency": {n: dict.fromkeys(range(8), 1) for n in "abcd"}},
            "costs for 'd', which is no",
        ),
        ({"latency": CUBE_COSTS[1:]}, "nothing for a = 0"),
    ],
)
def test_what_does_not_match_in_a_table_is_named(changed, match):
    with pytest.raises(UsageError, match=match):
        explored(**changed)


@pytest.mark.parametrize(
    "latency",
    [
        CUBE_COSTS.assign(count=7)[["count", "ms", "value", "choice"]],
        CUBE_COSTS.astype({"value": str}),
        pd.concat([CUBE_COSTS.assign(ms=0.0), CUBE_COSTS.assign(ms=2 * CUBE_COSTS["ms"])]),
        {name: {str(v): v for v in range(9)} for name in "abc"},
    ],
    ids=["order", "text", "trials", "mapping of text"],
)
def test_a_table_of_latencies_goes_by_names_and_values(latency):
    assert explored(latency=latency).candidates == explored().candidates


@pytest.mark.parametrize("seed", range(4))
def test_more_evaluations_keep_every_score_that_was_paid_for(seed, tmp_path):
    calls = []

    def counted(m):
        calls.append(m)
        return float(m.a * m.b + m.c)

    settings = dict(space=CUBE, latency=WHOLE, score=counted, seed=seed, out=tmp_path)
    first = nas.search([9.0, 12.0], evaluations=20, **settings)
    second = nas.search([9.0, 12.0], evaluations=43, resume=True, **settings)
    third = nas.search([9.0, 12.0], evaluations=60, resume=True, **settings)
    assert len(calls) == len(third.candidates) == 60
    assert {c.path for c in first.candidates} <= {c.path for c in second.candidates}
    assert {c.path for c in second.candidates} <= {c.path for c in third.candidates}
    assert first.best.score <= second.best.score <= third.best.score
    settings["out"] = None
    assert nas.search([9.0, 12.0], evaluations=60, **settings) == third


@pytest.mark.parametrize("shift", [-30.0, -12.0, 0.0])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_a_black_box_may_have_costs_of_zero_and_below(shift, power):
    """What is below zero by the estimate was once cut off."""

    def cost(m):
        return (m.a + m.b + m.c) ** power + shift

    found = nas.search(0.5, space=CUBE, latency=cost, score=lambda m: 1.0, evaluations=512,
                       searcher="random")  # fmt: skip
    fitting = {m for m in CUBES if cost(m) <= 0.5}
    assert {c.architecture for c in found.candidates} == fitting
    assert all(c.latency == cost(c.architecture) for c in found.candidates)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("low", "high"), [(6, 6), (3, 9), (10, 11.5), (15, None), (21, None)])
@pytest.mark.parametrize("kind", ["sum", "table", "black box"])
def test_a_limit_may_have_a_lower_bound(kind, low, high, whole):
    """All that fits is found, whatever the costs are, and what does not is counted as what it is."""
    scale = 1.0 if whole else 1 / 3 + 1e-3
    table = {name: {v: scale * v for v in range(8)} for name in "abc"}
    given = {
        "sum": nas.Additive(lambda name, value: scale * value),
        "table": table,
        "black box": lambda m: scale * (m.a + m.b + m.c),
    }[kind]
    bounds = (scale * low, None if high is None else scale * high)
    found = nas.search(99.0, space=CUBE, latency=WHOLE, score=lambda m: 1.0, evaluations=512,
                       searcher="random", limits={"params": (given, bounds)})  # fmt: skip
    top = 21 if high is None else high
    fitting = {m for m in CUBES if low <= m.a + m.b + m.c <= top}
    assert {c.architecture for c in found.candidates} == fitting
    assert "under_params" in found.rejections
    assert found.proposals == len(found.candidates) + sum(found.rejections.values())


def test_a_narrow_band_is_proposed_from_and_not_found_by_chance():
    names = [f"x{i}" for i in range(14)]
    space = nas.Space(make_dataclass("Long", names, frozen=True),
                      **dict.fromkeys(names, nas.Choice(*range(6))))  # fmt: skip
    rng = np.random.default_rng(0)
    cost = {name: dict(enumerate(np.sort(rng.random(6)).tolist())) for name in names}
    found = nas.search(1e3, space=space, latency=cost, score=lambda m: -m.x0, evaluations=100,
                       limits={"params": (cost, (8.9, 8.902))})  # fmt: skip
    assert len(found.candidates) == 100
    assert all(8.9 <= c.latency <= 8.902 for c in found.candidates)
    assert (
        found.rejections["under_params"] + found.rejections["over_params"] < 2000
    )  # of 1 in 1,500


@pytest.mark.parametrize(
    ("bounds", "kind", "match"),
    [
        (
            (30, None),
            InfeasibleError,
            "nothing has a x of at least 30: the largest possible has 21",
        ),
        ((9, 3), UsageError, "lower bound of 9 above the upper one of 3"),
        ((None, None), UsageError, "must have two bounds"),
        ((1, 2, 3), UsageError, "must have two bounds"),
        (("5X", 3), UsageError, "cannot read '5X'"),
        ((20, 21), InfeasibleError, "can be met, but not together; raise the upper bounds, or"),
        ((6.2, 6.8), InfeasibleError, "between 6.2 and 6.8"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(bounds, kind, match):
    with pytest.raises(kind, match=match):
        nas.search(12.0, space=CUBE, latency=WHOLE, score=score, limits={"x": (WHOLE, bounds)})


class Noisy:
    """A latency that is another one at every call, which it counts."""

    def __init__(self):
        self.rng, self.calls = np.random.default_rng(0), 0

    def __call__(self, m):
        self.calls += 1
        return (m.a + m.b) * 1.0 + m.c**2 / 7 + self.rng.normal(0, 0.05)


def proposing(monkeypatch):
    """A list that grows with every call of the evolution."""
    calls, propose = [], Evolution.__call__

    def counted(self, *given):
        calls.append(given)
        return propose(self, *given)

    monkeypatch.setattr(Evolution, "__call__", counted)
    return calls


@pytest.mark.parametrize("latency", [WHOLE, Noisy()], ids=["sum", "noisy black box"])
@pytest.mark.parametrize("budgets", [[12.0], [7.0, 12.0]])
def test_a_resume_goes_on_and_replays_nothing(latency, budgets, tmp_path, monkeypatch):
    """It once took as long as the search, and a noisy latency was refused as another one."""
    calls = proposing(monkeypatch)

    def value(m):
        if m.c == 7 and m.a == 0:
            raise RuntimeError("fails every time")
        return float(m.a * m.b + m.c)

    settings = dict(budget=budgets, space=CUBE, latency=latency, score=value, failed_share=1.0)
    whole = nas.search(evaluations=96, out=tmp_path, **settings)
    asked = getattr(latency, "calls", 0)
    assert len(calls) >= 12
    del calls[:]
    assert nas.search(evaluations=96, out=tmp_path, resume=True, **settings) == whole
    assert calls == []
    assert getattr(latency, "calls", 0) <= asked + 5  # to see whether it is the same
    more = nas.search(evaluations=120, out=tmp_path, resume=True, **settings)
    assert 3 <= len(calls) < 12 * len(budgets)
    assert more.candidates[: len(whole.candidates)] == whole.candidates
    fewer = nas.search(evaluations=37, out=tmp_path, resume=True, **settings)
    kept = [c for c in fewer.candidates if c.path in {c.path for c in whole.candidates}]
    assert len(kept) == len(fewer.candidates)


@pytest.mark.parametrize(
    ("searcher", "kind"),
    [(name, "sum") for name in searcher_names()]
    + [("evolution", kind) for kind in ("black box", "lost batch", "lost batches")],
)
def test_wherever_it_was_killed_it_ends_as_if_it_had_not_been(searcher, kind, tmp_path):
    latency = nas.Additive(cost, 0.5) if kind != "black box" else latency_of_net
    settings = dict(budget=[9.0, 12.0], space=SPACE, latency=latency, searcher=searcher)
    whole = nas.search(score=score, evaluations=56, out=tmp_path / "whole", **settings)
    for end in (1, 40):
        calls, folder = [], tmp_path / str(end)

        def dies(net, calls=calls, end=end):
            if len(calls) == end:
                raise KeyboardInterrupt
            calls.append(net)
            return score(net)

        with pytest.raises(KeyboardInterrupt):
            nas.search(score=dies, evaluations=56, out=folder, **settings)
        batches = folder / "batches.jsonl"
        if kind == "lost batch" and end > 16:
            batches.write_text(batches.read_text().partition("\n")[2])
        elif kind == "lost batches":
            batches.unlink(missing_ok=True)
        resumed = nas.search(score=score, evaluations=56, out=folder, resume=True, **settings)
        assert repr(resumed) == repr(whole)
        for name in ("candidates", "batches") + ("latencies",) * (kind == "black box"):
            files = [f / f"{name}.jsonl" for f in (tmp_path / "whole", folder)]
            assert files[0].read_text() == files[1].read_text()


def latency_of_net(net):
    return latency(net)


def test_a_score_that_was_mended_is_used_and_the_search_goes_on_from_there(tmp_path):
    def fails(m):
        if m.a == 5:
            raise RuntimeError("a bug")
        return float(m.a * m.b + m.c)

    settings = dict(budget=12.0, space=CUBE, latency=WHOLE, failed_share=1.0, evaluations=80)
    first = nas.search(score=fails, out=tmp_path, **settings)
    assert first.set_aside
    mended = nas.search(score=lambda m: float(m.a * m.b + m.c), out=tmp_path, resume=True,
                        **settings)  # fmt: skip
    assert not mended.set_aside
    assert {str(c.architecture) for c in mended.candidates if c.architecture.a == 5}
    assert mended == nas.search(score=lambda m: float(m.a * m.b + m.c), out=tmp_path, resume=True,
                                **settings)  # fmt: skip


def test_calls_of_a_latency_are_counted_and_bounded(tmp_path, capfd):
    calls = []

    def tight(m):
        calls.append(m)
        return float(100 if (m.a * 64 + m.b * 8 + m.c) % 97 else 1)

    settings = dict(budget=2.0, space=CUBE, latency=tight, score=lambda m: 1.0, evaluations=6)
    found = nas.search(**settings)
    assert found.calls == {"budget": len(calls)} == {"budget": len(set(calls))}
    assert len(found.candidates) == 6  # all that fit, though no sum tells which they are
    del calls[:]
    found = nas.search(latency_calls=300, out=tmp_path, **settings)
    assert len(calls) == 300
    assert 0 < len(found.candidates) < 6
    assert "asked for 300 members, as many as allowed" in capfd.readouterr().err
    more = nas.search(latency_calls=512, out=tmp_path, resume=True, **settings)
    assert len(more.candidates) == 6
    assert len(calls) <= 512 + 5
    with pytest.raises(InfeasibleError, match="as many as allowed, and none fits; raise its bound"):
        nas.search(**{**settings, "budget": 0.5, "latency_calls": 40})
    with pytest.raises(UsageError, match="latency_calls must be a whole number"):
        nas.search(latency_calls=0, **settings)


@pytest.mark.parametrize("seed", range(3))
def test_what_no_sum_tells_is_found_all_the_same(seed):
    """Of 61 members that fitted none could be proposed once."""
    names = "abcdef"
    space = nas.Space(Six, **dict.fromkeys(names, nas.Choice(*range(4))))
    hidden = np.random.default_rng(seed).permutation(4**6)

    def cost(m):
        return float(hidden[sum(v * 4**i for i, v in enumerate(vars(m).values()))])

    found = nas.search(60.5, space=space, latency=cost, score=lambda m: 1.0, evaluations=61,
                       seed=seed)  # fmt: skip
    assert len(found.candidates) >= 58
    assert found.calls["budget"] <= 4**6


@pytest.mark.parametrize("kind", ["sum", "product", "worst", "outliers"])
def test_an_estimate_learns_from_the_calls_that_were_paid_for(kind):
    """One in a thousand fits: drawn at random, 60 would take 60,000 calls."""
    names = [f"x{i}" for i in range(12)]
    space = nas.Space(make_dataclass("Long", names, frozen=True),
                      **dict.fromkeys(names, nas.Choice(*range(6))))  # fmt: skip
    own = np.sort(np.random.default_rng(0).random((12, 6)), axis=1)

    def of(v):
        costs = own[np.arange(12), v]
        return float({
            "sum": costs.sum(),
            "product": np.exp(3 * costs).prod(),
            "worst": costs.max() + 0.1 * costs.sum(),
            "outliers": costs.sum() + 1e6 * (v[0] == v[1]),
        }[kind])  # fmt: skip

    drawn = np.random.default_rng(1).integers(0, 6, size=(20_000, 12))
    budget = float(np.quantile([of(v) for v in drawn], 1e-3))
    found = nas.search(budget, space=space, latency=lambda m: of([getattr(m, n) for n in names]),
                       score=lambda m: sum(vars(m).values()), evaluations=60)  # fmt: skip
    assert len(found.candidates) == 60
    assert found.calls["budget"] < 6000


def test_another_latency_is_noticed_by_a_resume(tmp_path):
    settings = dict(budget=30.0, space=CUBE, score=lambda m: 1.0, evaluations=8)
    for i, (change, match) in enumerate([(3.0, "another cost of budget"), (1.02, "off by 2 %")]):
        folder = tmp_path / str(i)
        first = nas.search(latency=lambda m: m.a + m.b + 1.0, out=folder, **settings)

        def other(m, change=change):
            return change * (m.a + m.b + 1.0)

        if change == 3.0:
            with pytest.raises(RunError, match=match):
                nas.search(latency=other, out=folder, resume=True, **settings)
        else:
            again = nas.search(latency=other, out=folder, resume=True, **settings)
            assert again.candidates == first.candidates


def test_folders_may_have_brackets_in_their_names(tmp_path):
    folder = tmp_path / "run[/] [v2]"
    settings = dict(space=CUBE, latency=lambda m: m.a + 1.0, score=lambda m: 1.0, evaluations=9)
    found = nas.search(4.0, out=folder, **settings)
    assert nas.search(4.0, out=str(folder), resume=True, **settings).candidates == found.candidates
    with pytest.raises(RunError, match=r"run\[/\] \[v2\] exists already"):
        nas.search(4.0, out=folder, **settings)


def test_a_search_that_ended_before_it_paid_for_anything_is_begun_anew(tmp_path):
    settings = dict(space=CUBE, latency=WHOLE, score=lambda m: float(m.b), evaluations=9)
    write_json(tmp_path / "run" / "settings.json", {"seed": 9})
    found = nas.search(9.0, out=tmp_path / "run", **settings)
    again = nas.search(9.0, out=tmp_path / "run", resume=True, **settings)
    assert again.candidates == found.candidates


def test_nothing_is_left_of_a_search_that_could_not_begin(tmp_path):
    settings = dict(space=CUBE, score=lambda m: 1.0, evaluations=9, out=tmp_path / "run")
    for latency in (lambda m: 1 / 0, lambda m: nan, WHOLE):
        with pytest.raises((UsageError, InfeasibleError)):
            nas.search(0.5 if latency is WHOLE else 4.0, latency=latency,
                       limits={"x": (WHOLE, (30, None))}, **settings)  # fmt: skip
        assert not (tmp_path / "run").exists()
    nas.search(4.0, latency=WHOLE, **settings)


def test_a_bar_that_is_not_wanted_at_once_waits(capfd):
    with bar("soon", 3) as advance:
        advance(3)
    assert "soon" in capfd.readouterr().err
    with bar("later", 3, after_s=9.0) as advance:
        advance(3)
    assert capfd.readouterr().err == ""
    with bar("late", 3, after_s=0.01) as advance:
        sleep(0.02)
        advance(3, "a note")
    assert "a note" in capfd.readouterr().err


@dataclass(frozen=True)
class Tall:
    stages: tuple[Chain, ...]


def test_stages_of_blocks_are_searched_though_a_stage_has_millions_of_values(tmp_path):
    """A `Repeat` of what holds a `Repeat` took 101 s, and was refused then."""
    stage = nas.Space(Chain, ops=nas.Repeat(nas.Choice(*range(6)), nas.Choice(*range(1, 10))))
    short = stage.where(lambda s: s.ops[0] != 5)
    space = nas.Space(Tall, stages=nas.Repeat(short, nas.Choice(*range(2, 7))))

    def worth(m):
        return sum((v + 0.5) ** 0.5 for s in m.stages for v in s.ops)

    settings = dict(space=space, latency=nas.Additive(lambda name, v: v + 1.0), evaluations=60)
    found = nas.search(40.0, score=worth, out=tmp_path, **settings)
    assert len(found.candidates) == 60
    for c in found.candidates:
        stages = c.architecture.stages
        assert 2 <= len(stages) <= 6
        assert all(1 <= len(s.ops) <= 9 and s.ops[0] != 5 for s in stages)
        assert c.latency == sum(v + 1 for s in stages for v in s.ops) <= 40
    # The worth of a block for its cost is .71, .61, .53, ...: forty of the first kind are best.
    assert found.best.score > 0.9 * 40 * 0.5**0.5
    assert found.rejections["refused"] > 0
    resumed = nas.search(40.0, score=worth, out=tmp_path, resume=True, **settings)
    assert resumed == found
    again = nas.search(40.0, score=found.frame(), failed_share=1.0, **settings)
    known = {c.path: c.score for c in found.candidates}
    assert all(known[c.path] == c.score for c in again.candidates)


WEIRD = (None, [], {}, "x", -1, 1e400, True, "9" * 5000, [[1]])


@pytest.mark.parametrize("name", ["candidates", "latencies", "batches", "settings"])
def test_a_damaged_folder_is_refused_or_gives_the_same(name, tmp_path):
    """Cut, altered, replaced and lost: what cannot be read is asked for again."""
    settings = dict(space=CUBE, latency=latency_of_cube, score=product, evaluations=32)
    whole = nas.search(9.0, out=tmp_path / "whole", **settings)
    file = f"{name}.json" + "l" * (name != "settings")
    text = (tmp_path / "whole" / file).read_text()
    rng, damaged = np.random.default_rng(0), ["", "[]\n", text[: len(text) // 2], text[:-9]]
    for weird in WEIRD:
        lines = text.splitlines() if name != "settings" else [text]
        i = int(rng.integers(len(lines)))
        record = {k: v for k, v in json.loads(lines[i]).items() if k != CHECK}
        record[list(record)[int(rng.integers(len(record)))]] = weird
        damaged.append("\n".join([*lines[:i], json.dumps(record), *lines[i + 1 :], ""]))
    for i, content in enumerate(damaged):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / file).write_text(content)
        try:
            found = nas.search(9.0, out=folder, resume=True, **settings)
        except nas.VitnasError as error:
            assert len(str(error).replace(str(folder), "")) < 300
        else:
            assert found.candidates == whole.candidates or name == "candidates"


def latency_of_cube(m):
    return m.a + m.b + m.c * 0.5


def product(m):
    return float(m.a * m.b)
