"""The trellis against brute force on every debug space, with random and with whole costs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from math import comb, prod

import numpy as np
import pytest
from conftest import DEBUG_SPACES
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import chisquare
from test_space import NET, all_nets, obeys

from nas.errors import InfeasibleError
from nas.families import load_space
from nas.space.domains import Choice, rewrite
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph, decode, encode, space_layers
from nas.trellis.matrix_game import solve_game
from nas.trellis.trellis import Trellis, contradiction, edge_costs

seeds = st.integers(0, 2**32 - 1)
ENUMERABLE = 20_000  # tuples of values, allowed or not


@lru_cache
def small(name):
    """The debug space, without the choices that matter least to its trellis if it is too large."""
    space = load_space(name, Classification(5))
    for field in ("precision", "expansion", "kernel", "mlp_ratio", "heads", "resolution"):
        if prod(len(p.values) for p in space.positions) > ENUMERABLE:
            domain = rewrite(space.domain, field, lambda choice: Choice(choice.values[-1]))
            space = replace(space, domain=domain)
    return space


@lru_cache
def everything(name):
    """Every path and architecture of a space, by plain enumeration of all value tuples."""
    space = small(name)
    found = {}
    for values in itertools.product(*(range(len(p.values)) for p in space.positions)):
        state, allowed = None, True
        for i, (position, v) in enumerate(zip(space.positions, values)):
            part = space.advance(i, state, position.values[v])
            if part is None:
                allowed = False
                break
            state = part.state
        if allowed:
            found[values] = decode(space, np.array(values))
    return found


def random_costs(name, seed=0, whole=False):
    """Costs by layer key; `whole` ones are integers."""
    rng = np.random.default_rng(seed)
    keys = Graph.of(small(name)).items()
    return {key: float(rng.integers(0, 9) if whole else rng.gamma(2.0)) for key in keys}


def random_trellis(name, seed=0, whole=False):
    costs = random_costs(name, seed, whole)
    return Trellis(Graph.of(small(name)), lambda layer: costs[layer.key], fixed=1.5)


def all_costs(name, trellis):
    paths = everything(name)
    return dict(zip(paths, trellis.costs_of(np.array(list(paths))).tolist()))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_rows_are_exactly_those_of_all_architectures(name):
    space = small(name)
    brute = {layer.key for a in everything(name).values() for layer in space.layers(a)}
    assert set(space_layers(space)) == brute


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_count_is_exact(name):
    assert Graph.of(small(name)).count == len(everything(name))
    assert len(set(everything(name).values())) == len(everything(name))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_path_cost_is_the_sum_over_the_layers(name):
    space, trellis = small(name), random_trellis(name, 7)
    costs = random_costs(name, 7)
    for path, architecture in everything(name).items():
        total = trellis.fixed + sum(costs[layer.key] for layer in space.layers(architecture))
        assert trellis.cost(np.array(path)) == pytest.approx(total)


@pytest.mark.parametrize("name", DEBUG_SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_extremes_are_exact(name, seed):
    trellis = random_trellis(name, seed)
    costs = all_costs(name, trellis).values()
    assert trellis.fastest == pytest.approx(min(costs))
    assert trellis.slowest == pytest.approx(max(costs))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_the_cheapest_path_costs_the_least(name):
    trellis = random_trellis(name, 3)
    path = trellis.cheapest_path()
    assert tuple(path) in everything(name)
    assert trellis.cost(path) == pytest.approx(min(all_costs(name, trellis).values()))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_costs_of_many_paths_are_those_of_each_and_infinite_where_there_is_none(name):
    trellis = random_trellis(name, 3)
    sizes = [level.values for level in trellis.graph.levels[:-1]]
    rng = np.random.default_rng(0)
    paths = np.stack([rng.integers(-1, size + 1, 500) for size in sizes], axis=1)
    paths = np.concatenate([paths, np.array(list(everything(name)))])
    brute = all_costs(name, trellis)
    expected = [brute.get(tuple(path), np.inf) for path in paths.tolist()]
    assert trellis.costs_of(paths) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no such path"):
        trellis.cost(np.array(sizes))


@pytest.mark.parametrize("name", DEBUG_SPACES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_number_within_a_budget_is_exact_for_whole_costs(name, share):
    trellis = random_trellis(name, whole=True)
    budget = np.floor(trellis.fastest + share * (trellis.slowest - trellis.fastest) - 0.5) + 0.5
    ticks = max(1, round(budget - trellis.fastest))  # one tick is one unit of cost
    brute = sum(cost <= budget for cost in all_costs(name, trellis).values())
    assert trellis.within(budget, ticks=ticks).count == brute


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_number_in_a_band_is_exact_for_whole_costs(name):
    trellis = random_trellis(name, whole=True)
    low, high = (np.floor(np.quantile(list(all_costs(name, trellis).values()), (0.3, 0.6)))) + 0.5
    within = trellis.within(high, low, ticks=round(high - trellis.fastest))
    brute = sum(low <= cost <= high for cost in all_costs(name, trellis).values())
    assert within.count == brute


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_rounding_leaves_out_little_and_nothing_too_much(name):
    trellis = random_trellis(name)
    budget = (trellis.fastest + trellis.slowest) / 2
    costs = np.array(list(all_costs(name, trellis).values()))
    slack = len(trellis.graph.levels) / 4096 * (budget - trellis.fastest)
    count = trellis.within(budget).count
    assert (costs <= budget - slack).sum() <= count <= (costs <= budget).sum()


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_draws_are_uniform_among_what_fits(name):
    trellis = random_trellis(name, whole=True)
    costs = all_costs(name, trellis)
    budget = np.floor(np.quantile(list(costs.values()), 0.4)) + 0.5
    fitting = [path for path, cost in costs.items() if cost <= budget]
    within = trellis.within(budget, ticks=round(budget - trellis.fastest))
    paths = within.sample(40 * len(fitting), np.random.default_rng(0))
    number = {path: i for i, path in enumerate(fitting)}
    observed = np.bincount([number[tuple(p)] for p in paths.tolist()], minlength=len(fitting))
    assert chisquare(observed).pvalue > 1e-3


@pytest.mark.parametrize("name", DEBUG_SPACES)
@given(seed=seeds, share=st.floats(0, 1), probability=st.floats(0, 1))
def test_variation_stays_within_the_budget(name, seed, share, probability):
    trellis = random_trellis(name)
    budget = trellis.fastest + share * (trellis.slowest - trellis.fastest)
    rng = np.random.default_rng(seed)
    within = trellis.within(budget)
    mothers, fathers = within.sample(20, rng), within.sample(20, rng)
    for paths in (
        within.mutate(mothers, probability, rng),
        within.crossover(mothers, fathers, rng),
    ):
        assert all(tuple(path) in everything(name) for path in paths.tolist())
        assert max(trellis.cost(path) for path in paths) <= budget + 1e-9


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_what_is_wanted_and_fits_is_kept(name):
    trellis = random_trellis(name)
    within = trellis.within(trellis.slowest * 0.7)
    rng = np.random.default_rng(0)
    paths = within.sample(50, rng)
    assert (within.mutate(paths, 0.0, rng) == paths).all()
    assert (within.crossover(paths, paths, rng) == paths).all()
    changed = (within.mutate(paths, 0.5, rng) != paths).mean()
    assert 0.05 < changed < 0.7


@pytest.mark.parametrize("name", DEBUG_SPACES)
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_best_under_an_additive_score_is_exact(name, share):
    trellis = random_trellis(name, whole=True)
    budget = np.floor(trellis.fastest + share * (trellis.slowest - trellis.fastest) - 0.5) + 0.5
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=level.values) for level in trellis.graph.levels[:-1]]
    within = trellis.within(budget, ticks=round(budget - trellis.fastest))
    path, score = within.best(scores)
    brute = max(
        sum(s[v] for s, v in zip(scores, path))
        for path, cost in all_costs(name, trellis).items()
        if cost <= budget
    )
    assert score == pytest.approx(brute)
    assert sum(s[v] for s, v in zip(scores, path)) == pytest.approx(brute)
    assert trellis.cost(path) <= budget


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_encode_and_decode_are_inverse(name):
    space = small(name)
    for path, architecture in everything(name).items():
        assert tuple(encode(space, architecture)) == path


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_tours_contain_every_row(name):
    graph = Graph.of(small(name))
    seen = {layer.key for path in graph.tours() for layer in graph.along(path)}
    assert seen == set(graph.items())


def test_an_impossible_budget_is_refused_with_the_cheapest():
    trellis = random_trellis("vit:debug")
    with pytest.raises(InfeasibleError, match=f"{trellis.fastest:.4g}"):
        trellis.within(trellis.fastest * 0.9)


def test_costs_must_be_finite_and_not_negative():
    graph = Graph.build([(0, 1)], lambda i, s, v: (("x",), v), lambda s: ())
    with pytest.raises(ValueError, match="finite and not negative"):
        Trellis(graph, lambda _: float("nan"))


def test_a_dead_end_is_not_counted():
    # After choosing 1 nothing is allowed at the second position.
    graph = Graph.build(
        [(0, 1), (0,)],
        lambda i, s, v: ((f"{i}{v}",), v) if (i, s) != (1, 1) else None,
        lambda s: ("end",),
    )
    assert graph.count == 1
    assert set(graph.items()) == {"00", "10", "end"}
    within = Trellis(graph, lambda _: 1.0).within(10.0)
    assert within.sample(20, np.random.default_rng(0)).tolist() == [[0, 0]] * 20


def random_scores(trellis, rng):
    return [rng.normal(size=level.values) for level in trellis.graph.levels[:-1]]


def best_score(costs, scores, budget):
    """Brute force."""
    fitting = (path for path, cost in costs.items() if cost <= budget)
    return max(sum(s[v] for s, v in zip(scores, path)) for path in fitting)


@pytest.mark.parametrize("name", DEBUG_SPACES)
@pytest.mark.parametrize("ticks", [16, 64, 4096])
def test_the_optimum_is_between_the_best_and_the_bound(name, ticks):
    trellis = random_trellis(name, 5)
    costs = all_costs(name, trellis)
    rng = np.random.default_rng(ticks)
    for share in (0.0, 0.03, 0.2, 0.6):
        budget = trellis.fastest + share * (trellis.slowest - trellis.fastest)
        scores = random_scores(trellis, rng)
        brute = best_score(costs, scores, budget)
        path, best = trellis.within(budget, ticks=ticks).best(scores)
        bound = trellis.bound(budget, scores, ticks)
        assert trellis.cost(path) <= budget + 1e-9
        assert best <= brute + 1e-9 <= bound + 2e-9
        # Rounding down lets in at most one tick for each position, and the finish.
        over = budget + len(trellis.graph.levels) * (budget - trellis.fastest) / ticks
        assert bound <= best_score(costs, scores, over + 1e-9) + 1e-9


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_the_bound_is_the_optimum_for_whole_costs(name):
    trellis = random_trellis(name, whole=True)
    budget = np.floor((trellis.fastest + trellis.slowest) / 2) + 0.5
    scores = random_scores(trellis, np.random.default_rng(0))
    bound = trellis.bound(budget, scores, ticks=round(budget - trellis.fastest))
    assert bound == pytest.approx(best_score(all_costs(name, trellis), scores, budget))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_draws_are_in_proportion_to_the_product_of_weights(name):
    trellis = random_trellis(name, whole=True)
    costs = all_costs(name, trellis)
    budget = np.floor(np.quantile(list(costs.values()), 0.4)) + 0.5
    rng = np.random.default_rng(3)
    weights = [rng.choice([0.5, 1.0, 2.0], level.values) for level in trellis.graph.levels[:-1]]
    for weight in weights:
        if len(weight) > 2:
            weight[rng.integers(1, len(weight))] = 0.0
    ticks = round(budget - trellis.fastest)
    within = trellis.within(budget, ticks=ticks, weights=weights)
    products = {p: prod(w[v] for w, v in zip(weights, p)) for p, c in costs.items() if c <= budget}
    expected = np.array(list(products.values()))
    paths = within.sample(20_000, rng)
    number = {path: i for i, path in enumerate(products)}
    observed = np.bincount([number[tuple(p)] for p in paths.tolist()], minlength=len(number))
    assert not observed[expected == 0].any()
    expected *= len(paths) / expected.sum()
    rare = expected < 5
    observed, expected = (
        np.append(x[~rare], x[rare].sum()) if x[rare].sum() else x[~rare]
        for x in (observed, expected)
    )
    assert chisquare(observed, expected).pvalue > 1e-3
    assert within.count == trellis.within(budget, ticks=ticks).count
    for children in (
        within.mutate(paths[:99], 0.5, rng),
        within.crossover(paths[:99], paths[99:198], rng),
    ):
        assert all(products[tuple(child)] > 0 for child in children.tolist())


def test_weights_must_be_finite_and_not_negative_and_leave_something():
    trellis = random_trellis("vit:debug")
    whole = [np.ones(level.values) for level in trellis.graph.levels[:-1]]
    with pytest.raises(ValueError, match="none negative"):
        trellis.within(trellis.slowest, weights=[-whole[0], *whole[1:]])
    with pytest.raises(ValueError, match="finite numbers"):
        trellis.within(trellis.slowest, weights=[np.ones(99), *whole[1:]])
    with pytest.raises(InfeasibleError, match="weight"):
        trellis.within(trellis.slowest, weights=[0 * whole[0], *whole[1:]])


def best_mixture(payoff):
    """The value of the game by linear programming: most of t with shares @ payoff >= t."""
    rows, columns = payoff.shape
    solved = linprog(
        [*np.zeros(rows), -1],
        A_ub=np.column_stack([-payoff.T, np.ones(columns)]),
        b_ub=np.zeros(columns),
        A_eq=[[*np.ones(rows), 0]],
        b_eq=[1],
        bounds=[(0, None)] * rows + [(None, None)],
    )
    return -solved.fun


@given(seed=seeds, rows=st.integers(1, 5), columns=st.integers(1, 30), whole=st.booleans())
def test_a_game_is_solved_as_by_linear_programming(seed, rows, columns, whole):
    rng = np.random.default_rng(seed)
    payoff = (
        rng.integers(0, 4, (rows, columns)) + 0.0 if whole else rng.gamma(1.0, size=(rows, columns))
    )
    shares, value = solve_game(payoff)
    assert value == pytest.approx(best_mixture(payoff))
    assert shares.min() >= -1e-12
    assert shares.sum() == pytest.approx(1)
    assert (shares @ payoff).min() == pytest.approx(value)


@pytest.mark.parametrize("name", DEBUG_SPACES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_contradiction_is_that_of_all_paths_together(name, n):
    graph = Graph.of(small(name))
    costs = [random_costs(name, seed) for seed in range(n)]
    trellises = [Trellis(graph, lambda layer, own=own: own[layer.key], fixed=0.5) for own in costs]
    paths = np.array(list(everything(name)))
    table = np.stack([trellis.costs_of(paths) for trellis in trellises])
    rng = np.random.default_rng(n)
    proven = 0
    for _ in range(5):
        budgets = [t.fastest + rng.uniform(0, 0.15) * (t.slowest - t.fastest) for t in trellises]
        value = contradiction(trellises, budgets)
        assert value == pytest.approx(best_mixture(table / np.array(budgets)[:, None]))
        nothing_fits = not (table <= np.array(budgets)[:, None]).all(0).any()
        assert nothing_fits or value <= 1 + 1e-9
        proven += value > 1
    assert proven or n < 3


def test_contradictions_are_between_positive_budgets_of_one_graph():
    a, b = random_trellis("vit:debug"), random_trellis("vit:debug")
    with pytest.raises(ValueError, match="one graph"):
        contradiction([a, b], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive budget"):
        contradiction([a], [0.0])


PHASES, WIDTHS = (1, 2, 4), (2, 3, 5)


def phased_graph():
    """Two blocks that run in as many phases as is chosen first, with one set of weights each.

    An item is a block's path, its phase, and its widths from and to.
    """

    def advance(index, state, value):
        if index == 0:
            return (), (value, 1)
        phases, before = state
        return tuple((f"block{index}", p, before, value) for p in range(phases)), (phases, value)

    def finish(state):
        return tuple(("head", p, state[1], 7) for p in range(state[0]))

    return Graph.build([PHASES, WIDTHS, WIDTHS], advance, finish)


def test_weights_count_once_and_time_in_every_phase_of_a_layer():
    def weights(items):
        return sum(a * b for a, b in {path: sizes for path, _, *sizes in items}.values())

    graph = phased_graph()
    params = Trellis(graph, edge_costs(graph, weights))
    time = Trellis(graph, lambda item: (item[1] + 1) * item[2] * item[3])  # later phases are larger
    brute = {}
    for values in itertools.product(range(3), repeat=3):
        phases, first, second = PHASES[values[0]], WIDTHS[values[1]], WIDTHS[values[2]]
        products = first + first * second + second * 7
        brute[values] = products, products * sum(range(1, phases + 1))
    paths = np.array(list(brute))
    assert params.costs_of(paths).tolist() == [own for own, _ in brute.values()]
    assert time.costs_of(paths).tolist() == [ms for _, ms in brute.values()]
    budget = params.fastest + 15
    fitting = {path for path, (own, _) in brute.items() if own <= budget}
    within = params.within(budget)
    assert within.count == len(fitting) < len(brute)
    drawn = within.sample(40 * len(fitting), np.random.default_rng(0))
    assert set(map(tuple, drawn.tolist())) == fitting


def test_costs_of_edges_are_checked_like_those_of_items():
    graph = phased_graph()
    with pytest.raises(ValueError, match="finite and not negative"):
        Trellis(graph, edge_costs(graph, lambda items: -len(items)))


def test_a_space_over_any_dataclass_has_a_trellis():
    def cost(item):
        _, value = item
        return float(value if isinstance(value, int) else 2 * value.a + value.b)

    def total(net):
        items = [*net.widths, net.size, *itertools.chain(*net.stages)]
        return sum(cost(("", item)) for item in items)

    trellis = Trellis(Graph.choices(NET), cost)
    costs = {net: total(net) for net in all_nets() if obeys(net)}
    assert total(decode(NET, trellis.cheapest_path())) == trellis.fastest == min(costs.values())
    assert all(trellis.cost(encode(NET, net)) == own for net, own in costs.items())
    budget = trellis.fastest + 9
    within = trellis.within(budget, ticks=9)
    fitting = {net for net, own in costs.items() if own <= budget}
    assert within.count == len(fitting) < len(costs)
    drawn = within.sample(40 * len(fitting), np.random.default_rng(0))
    assert {decode(NET, path) for path in drawn} == fitting


@pytest.mark.parametrize(("length", "width"), [(200, 48), (350, 8), (40, 4)])
def test_more_paths_than_floats_hold_are_counted_and_drawn(length, width):
    """48**200 is more than 1e308."""
    values = [tuple(range(width))] * length
    graph = Graph.build(values, lambda i, s, v: (((i, v),), None), lambda s: ())
    rng = np.random.default_rng(0)
    trellis = Trellis(graph, lambda item: float(item[1] % 2))  # as many odd values as even ones
    everything_fits = trellis.within(trellis.slowest)
    assert everything_fits.count / width**length == pytest.approx(1, rel=1e-9)
    paths = everything_fits.sample(400, rng)
    assert abs(paths.mean() - (width - 1) / 2) < 5 * width / np.sqrt(12 * paths.size)
    inside = trellis.within(length / 2)
    share = sum(comb(length, k) for k in range(length // 2 + 1)) / 2**length
    assert inside.count / width**length == pytest.approx(share, rel=1e-9)
    assert (trellis.costs_of(inside.sample(50, rng)) <= length / 2).all()
    assert trellis.within(0.0).count / (width // 2) ** length == pytest.approx(1, rel=1e-9)
    weighted = trellis.within(length / 2, weights=[np.ones(width)] * length)
    assert weighted.count == inside.count
    # The one path that costs least stays among so many, however few of all it is.
    rising = Trellis(graph, lambda item: float(item[1]))
    assert rising.within(0.0).count == 1
    inside = rising.within(rising.slowest / 2)
    assert not inside.follow(np.zeros((1, length), np.int64), rng).any()
    assert (rising.costs_of(inside.sample(50, rng)) <= rising.slowest / 2).all()
