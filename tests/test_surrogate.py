"""The surrogates against closed forms, finite differences and brute force."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from test_trellis import everything, random_trellis

from nas.families import load_space
from nas.space.rules import ENDED, Position
from nas.strategy.features import Fields
from nas.strategy.gaussian_process import _PRIOR, Surrogate, _negative_evidence
from nas.strategy.ridge import Ridge
from nas.strategy.statistics import hypervolumes, pareto, spearman
from nas.trellis.graph import Graph
from nas.trellis.trellis import whole

SPACE = load_space("swin:debug")
PATHS = np.array(list(everything("swin:debug")))


@dataclass(frozen=True)
class Block:
    heads: int
    kind: str


def additive(rng, by_first=False):
    """A score of all paths that adds up over the fields, by itself or given the first choice."""
    x = Fields(SPACE.positions)(PATHS)
    scores = np.stack([x @ rng.normal(size=x.shape[1]) for _ in range(2)])
    return scores[PATHS[:, 0] if by_first else 0, np.arange(len(PATHS))]


def test_likeness_is_one_for_the_same_and_falls_with_the_distance():
    levels = Position("levels", (1, 2, 4, 8))
    blocks = Position("blocks", (ENDED, Block(1, "a"), Block(1, "b"), Block(2, "a"), Block(3, "c")))
    fields = Fields([levels, Position("one", ("x",)), blocks])
    paths = np.array([[i, 0, j] for i in range(4) for j in range(5)])
    x = fields(paths)
    assert fields.count == 5  # levels twice, heads twice, kind once; nothing where nothing varies
    near = x[:, fields.owner == 1] @ x[:, fields.owner == 1].T
    assert near[0, ::5] == pytest.approx([1, 1 / 3, -1 / 3, -1])
    categories = x[:, fields.owner == 0] @ x[:, fields.owner == 0].T
    assert categories[0, ::5] == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert np.diag(x @ x.T)[1] == pytest.approx(fields.count)


def test_the_gradient_of_the_evidence_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    fields = Fields(SPACE.positions)
    paths = PATHS[rng.choice(len(PATHS), 30, replace=False)]
    x, y = fields(paths), rng.normal(size=30)
    noise = rng.gamma(1.0, size=30) * 0.1
    theta = np.concatenate([rng.normal(size=fields.count) * 0.5, _PRIOR])
    arguments = (x, y, noise, fields.owner)
    error = check_grad(
        lambda t: _negative_evidence(t, *arguments)[0],
        lambda t: _negative_evidence(t, *arguments)[1],
        theta,
    )
    assert error < 1e-3 * np.linalg.norm(_negative_evidence(theta, *arguments)[1])


def test_it_interpolates_exact_scores_and_knows_what_it_does_not_know():
    rng = np.random.default_rng(1)
    truth = additive(rng)
    chosen = rng.choice(len(PATHS), 40, replace=False)
    surrogate = Surrogate.fit(SPACE.positions, PATHS[chosen], truth[chosen])
    mean, deviation = surrogate.posterior(PATHS)
    assert np.abs(mean - surrogate.predict(PATHS)).max() < 1e-9
    assert spearman(mean, truth) > 0.8
    left = np.setdiff1d(np.arange(len(PATHS)), chosen)
    assert deviation[chosen].mean() < 0.7 * deviation[left].mean()
    inside = np.abs(mean - truth)[left] < 3 * deviation[left]
    assert inside.mean() > 0.9
    assert np.diag(surrogate.covariance(PATHS[:50])) == pytest.approx(deviation[:50] ** 2, rel=0.01)


def test_pairs_that_a_sum_cannot_hold_are_learned():
    rng = np.random.default_rng(2)
    signs = [np.where(PATHS[:, i] > np.median(PATHS[:, i]), 1, -1) for i in range(1, 6)]
    truth = 2.0 * signs[0] * signs[1] + signs[1] * signs[4] + 0.2 * additive(rng)
    chosen = rng.choice(len(PATHS), 250, replace=False)
    left = np.setdiff1d(np.arange(len(PATHS)), chosen)
    process = Surrogate.fit(SPACE.positions, PATHS[chosen], truth[chosen])
    ridge = Ridge.fit(SPACE.positions, PATHS[chosen], truth[chosen])
    ours, theirs = (spearman(m.predict(PATHS[left]), truth[left]) for m in (process, ridge))
    assert ours > max(0.9, theirs + 0.1)


def test_expected_scores_are_nearer_to_the_truth_than_noisy_ones():
    rng = np.random.default_rng(0)
    truth = additive(rng)
    truth = 50 + 4 * (truth - truth.mean()) / truth.std() + rng.normal(0, 0.5, len(PATHS))
    chosen = rng.choice(len(PATHS), 400, replace=False)
    noisy = truth[chosen] + rng.normal(0, 2.5, 400)
    process = Surrogate.fit(SPACE.positions, PATHS[chosen], noisy, 2.5**2)
    expected = process.predict(PATHS[chosen])
    error = [np.sqrt(np.mean((x - truth[chosen]) ** 2)) for x in (noisy, expected)]
    assert error[1] < 0.6 * error[0]
    # What is chosen by expectation is truly better than what is chosen by luck.
    assert truth[chosen][np.argmax(expected)] >= truth[chosen][np.argmax(noisy)]


@pytest.mark.parametrize("count", [12, 200])  # fewer and more than there are features
def test_the_ridge_is_that_of_least_leave_one_out_error_by_leaving_each_out(count):
    rng = np.random.default_rng(5)
    paths = PATHS[rng.choice(len(PATHS), count, replace=False)]
    scores = rng.normal(50, 10, count)
    ridge = Ridge.fit(SPACE.positions, paths, scores)
    x, y = Ridge._features(Fields(SPACE.positions), paths), scores - scores.mean()
    assert (len(x) < x.shape[1]) == (count == 12)

    def weights(penalty, kept):
        own = x[kept]
        return np.linalg.solve(own.T @ own + penalty * np.eye(x.shape[1]), own.T @ y[kept])

    errors, everyone = {}, np.arange(count)
    for penalty in np.logspace(-2, 3, 21):
        left_out = [y[i] - x[i] @ weights(penalty, everyone != i) for i in everyone]
        errors[penalty] = float(np.mean(np.square(left_out))) ** 0.5
    best = min(errors, key=errors.get)
    assert ridge.error == pytest.approx(errors[best])
    assert ridge.weights == pytest.approx(weights(best, everyone >= 0), abs=1e-6)


def test_the_ridge_is_additive_given_the_first_choice_and_its_maximum_is_exact():
    rng = np.random.default_rng(3)
    truth = additive(rng, by_first=True)
    chosen = rng.choice(len(PATHS), 1500, replace=False)
    ridge = Ridge.fit(SPACE.positions, PATHS[chosen], truth[chosen])
    predicted = ridge.predict(PATHS)
    assert spearman(predicted, truth) > 0.995
    for path, value in zip(PATHS[::500], predicted[::500]):
        assert sum(t[v] for t, v in zip(ridge.tables[path[0]], path)) == pytest.approx(value)
    trellis = random_trellis("swin:debug", 1)
    budget = (trellis.fastest + trellis.slowest) / 2
    fits = trellis.costs_of(PATHS) <= budget
    best, score = ridge.maximise(trellis.within(budget))
    bound = max(trellis.bound(budget, tables) for tables in ridge.tables)
    assert score == pytest.approx(float(ridge.predict(best[None])[0]))
    assert score - 1e-9 <= predicted[fits].max() <= bound + 1e-9
    assert bound - score < 0.05 * np.ptp(predicted)


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


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=15))
def test_hypervolume_is_the_area_counted_cell_by_cell(points):
    limit, base = 10, 2
    volumes = hypervolumes([p[0] for p in points], [p[1] for p in points], limit, base)
    assert volumes == sorted(volumes)
    cells = {(x, y) for c, s in points for x in range(c, limit) for y in range(base, s)}
    best = max([s for c, s in points if c <= limit], default=base)
    whole = limit * (best - base)
    assert volumes[-1] == pytest.approx(len(cells) / whole if whole > 0 else 0)


def test_a_first_position_of_many_values_adds_up_with_the_others():
    """With weights of its own for each of 512 values a search of 40 scores took 71 s."""
    rng = np.random.default_rng(0)
    positions = [Position("wide", tuple(range(512))), Position("a", (1, 2, 3)), Position("b", "xy")]
    gain = [rng.normal(size=len(p.values)) for p in positions]
    paths = np.stack([rng.integers(len(p.values), size=300) for p in positions], axis=1)
    scores = sum(own[paths[:, i]] for i, own in enumerate(gain))
    ridge = Ridge.fit(positions, paths, scores)
    [tables] = ridge.tables
    added = sum(t[paths[:, i]] for i, t in enumerate(tables))
    assert added == pytest.approx(ridge.predict(paths))
    graph = Graph.build([p.values for p in positions], lambda i, s, v: (((i, v),), None),
                        lambda s: ())  # fmt: skip
    best, score = ridge.maximise(whole(graph))
    assert best.tolist() == [int(np.argmax(t)) for t in tables]
    assert score == pytest.approx(sum(t.max() for t in tables))
