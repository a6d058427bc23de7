"""The evolution on problems with a known optimum; statistics against SciPy and brute force."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import astuple, is_dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_trellis import everything, random_trellis

from nas.family import load_space
from nas.searcher import EvolutionSearcher, Surrogate, pareto, spearman

SPACE = load_space("swin:debug")


def fields(value):
    return list(enumerate(astuple(value))) if is_dataclass(value) else [value]


def problem(seed=0):
    """Costs, a budget with a third of the space in it, additive scores, and the true optimum."""
    trellis = random_trellis("swin:debug", seed)
    rng = np.random.default_rng(seed)
    tables = [rng.normal(size=len(p.values)) for p in SPACE.positions]

    def score(path):
        return float(sum(t[v] for t, v in zip(tables, path)))

    costs = {path: trellis.cost(np.array(path)) for path in everything("swin:debug")}
    budget = float(np.quantile(list(costs.values()), 0.33))
    best = max(score(path) for path, cost in costs.items() if cost <= budget)
    return trellis, budget, score, best


def run(searcher, score, evaluations, batch=8):
    seen = []
    while len(seen) < evaluations:
        paths = searcher.ask(min(batch, evaluations - len(seen)))
        searcher.tell(paths, [score(path) for path in paths.tolist()])
        seen += [tuple(path) for path in paths.tolist()]
    return seen


@pytest.mark.parametrize("sampler", ["trellis", "rejection"])
def test_everything_asked_for_fits_is_new_and_counted(sampler):
    trellis, budget, score, _ = problem()
    searcher = EvolutionSearcher(trellis, budget, np.random.default_rng(0), sampler=sampler)
    seen = run(searcher, score, 120)
    assert len(set(seen)) == 120
    assert all(trellis.cost(np.array(path)) <= budget for path in seen)
    assert searcher.proposals == 120 + sum(searcher.rejections.values())
    assert (searcher.rejections["over_budget"] > 0) == (sampler == "rejection")


def test_evolution_comes_nearer_to_the_optimum_than_random_draws():
    gaps = {"evolution": [], "random": []}
    for seed in range(8):
        trellis, budget, score, best = problem(seed)
        searcher = EvolutionSearcher(trellis, budget, np.random.default_rng(seed))
        gaps["evolution"].append(best - max(map(score, run(searcher, score, 160))))
        drawn = trellis.within(budget).sample(160, np.random.default_rng(seed)).tolist()
        gaps["random"].append(best - max(map(score, drawn)))
    assert np.mean(gaps["evolution"]) < 0.7 * np.mean(gaps["random"])


def test_a_surrogate_of_an_additive_score_finds_the_optimum_at_once():
    trellis, budget, _, _ = problem()
    rng = np.random.default_rng(5)
    tables = [
        [sum(t[f] for f in fields(v)) for v in p.values]
        for p in SPACE.positions
        for t in [defaultdict(rng.normal)]
    ]

    def score(path):
        return float(sum(t[v] for t, v in zip(tables, path)))

    fitting = [p for p in everything("swin:debug") if trellis.cost(np.array(p)) <= budget]
    best = max(map(score, fitting))
    paths = trellis.within(budget).sample(300, np.random.default_rng(0))
    values = np.array([score(path) for path in paths.tolist()])
    surrogate = Surrogate(SPACE.positions).fit(paths, values)
    assert surrogate.rank_correlation > 0.99
    searcher = EvolutionSearcher(trellis, budget, np.random.default_rng(0), surrogate)
    searcher.tell(paths[:1], values[:1])
    assert max(map(score, run(searcher, score, 16))) >= best - 1e-6


def test_expected_scores_are_nearer_to_the_truth_than_noisy_ones():
    rng = np.random.default_rng(0)
    paths = np.array(list(everything("swin:debug")))
    surrogate = Surrogate(SPACE.positions)
    truth = surrogate.features(paths) @ rng.normal(size=surrogate.features(paths).shape[1])
    truth = 50 + 4 * (truth - truth.mean()) / truth.std() + rng.normal(0, 0.5, len(paths))
    chosen = rng.choice(len(paths), 400, replace=False)
    noisy = truth[chosen] + rng.normal(0, 2.5, 400)
    expected = surrogate.fit(paths[chosen], noisy).expected(
        paths[chosen], noisy, np.full(400, 2.5**2)
    )
    error = [np.sqrt(np.mean((x - truth[chosen]) ** 2)) for x in (noisy, expected)]
    assert error[1] < 0.6 * error[0]
    # What is chosen by expectation is truly better than what is chosen by luck.
    assert truth[chosen][np.argmax(expected)] >= truth[chosen][np.argmax(noisy)]


def test_the_same_seed_asks_the_same():
    trellis, budget, score, _ = problem()
    runs = [
        run(EvolutionSearcher(trellis, budget, np.random.default_rng(3)), score, 100)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_validity_is_a_cause_of_rejection():
    trellis, budget, score, _ = problem()
    searcher = EvolutionSearcher(
        trellis, budget, np.random.default_rng(0), valid=lambda path: path[0] == 0
    )
    assert all(path[0] == 0 for path in run(searcher, score, 10))
    assert searcher.rejections["invalid"] > 0


def test_an_exhausted_space_gives_all_it_has_and_then_nothing():
    trellis, _, score, _ = problem()
    costs = [trellis.cost(np.array(path)) for path in everything("swin:debug")]
    budget = float(np.sort(costs)[11]) + 1e-9
    searcher = EvolutionSearcher(trellis, budget, np.random.default_rng(0))
    found = searcher.ask(100)
    # Of twelve that fit, those within rounding of the budget may be left out.
    assert 10 <= len(found) <= 12
    searcher.tell(found, [score(path) for path in found.tolist()])
    assert len(searcher.ask(5)) == 0


def test_rejection_on_a_tight_budget_ends_instead_of_hanging():
    trellis, _, _, _ = problem()
    tight = trellis.fastest + 1e-6
    searcher = EvolutionSearcher(trellis, tight, np.random.default_rng(0), sampler="rejection")
    assert len(searcher.ask(50)) <= 1
    assert searcher.rejections["over_budget"] > 1000


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.randoms())
def test_spearman_is_scipys(values, random):
    other = [random.randint(0, 5) for _ in values]
    ours = spearman(np.array(values, float), np.array(other, float))
    if len(set(values)) == 1 or len(set(other)) == 1:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(values, other).statistic)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_pareto_is_brute_force(points):
    costs, scores = [p[0] for p in points], [p[1] for p in points]
    front = {points[i] for i in pareto(costs, scores)}
    brute = {
        (c, s)
        for c, s in points
        if not any((c2 <= c and s2 >= s) and (c2, s2) != (c, s) for c2, s2 in points)
    }
    assert front == brute
