"""Racing drops what is worse, and hardly ever what is not: against SciPy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, hypergeom, ttest_1samp

from nas.errors import UsageError
from nas.evaluation.racing import Race, mean_test, sign_test

IMAGES = 400


def hits(rng, shared, *accuracies):
    """Outcomes of networks that agree on which images are easy, as far as `shared` says."""
    easy = rng.random(IMAGES)
    own = rng.random((len(accuracies), IMAGES))
    ease = np.where(rng.random(own.shape) < shared, easy, own)
    return ease < np.array(accuracies)[:, None]


def raced(race, candidate, rival):
    return race.run(lambda start, stop: candidate[start:stop], rival)


@pytest.mark.parametrize("wins", [0, 1, 7, 20, 300])
@pytest.mark.parametrize("losses", [0, 1, 9, 40, 700])
def test_the_sign_test_is_scipys(wins, losses):
    if wins + losses:
        expected = binomtest(wins, wins + losses, 0.5, alternative="less").pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    else:
        assert sign_test(0, 0) == 1


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("error", [0.05, 0.3])
def test_an_equal_candidate_is_dropped_no_more_often_than_stated(shared, error):
    rng, races = np.random.default_rng(0), 3000
    race = Race.doubling(IMAGES, 32, error)
    dropped = sum(raced(race, *hits(rng, shared, 0.6, 0.6)).dropped for _ in range(races))
    assert dropped / races <= error + 3 * np.sqrt(error * (1 - error) / races)
    assert dropped > 0  # a race that drops nothing would keep any bound


def test_a_rival_that_is_the_best_of_many_by_luck_drops_few_that_end_level_with_it():
    """All are equal in truth; the bound is on those that would do as well on these images."""
    rng, error, races = np.random.default_rng(1), 0.2, 0
    race, dropped = Race.doubling(IMAGES, 32, error), 0
    for _ in range(1500):
        outcomes = hits(rng, 0.5, *[0.6] * 12)
        best = outcomes[outcomes.sum(1).argmax()].copy()
        # Turn as many misses of a candidate into hits as it takes to be level with the best.
        candidate = outcomes[0].copy()
        misses = np.flatnonzero(~candidate)
        candidate[rng.choice(misses, best.sum() - candidate.sum(), replace=False)] = True
        dropped += raced(race, candidate, best).dropped
        races += 1
    assert 0 < dropped / races <= error + 3 * np.sqrt(error * (1 - error) / races)


def test_draws_without_replacement_keep_the_bound_of_the_fair_coin():
    """Of n discordant images half are won: few wins among the first m are rarer than with a coin."""
    for n in (2, 10, 24, 50):
        for m in range(1, n):
            wins = np.arange(m + 1)
            coin = np.array([sign_test(int(k), m - int(k)) for k in wins])
            drawn = hypergeom.cdf(wins, n, n // 2, m)
            assert (drawn <= coin + 1e-12)[coin <= 0.5].all()


def test_one_that_is_clearly_worse_is_dropped_early():
    rng = np.random.default_rng(2)
    races = [raced(Race.doubling(IMAGES, 32), *hits(rng, 0.5, 0.3, 0.6)) for _ in range(200)]
    assert np.mean([race.dropped for race in races]) > 0.98
    assert np.mean([race.images for race in races]) < IMAGES / 4


def test_what_is_seen_are_the_first_outcomes_asked_for_part_by_part():
    rng = np.random.default_rng(3)
    candidate, rival = hits(rng, 0.5, 0.2, 0.9)
    asked = []

    def outcomes(start, stop):
        asked.append((start, stop))
        return candidate[start:stop]

    race = Race((50, 100, 400))
    record = race.run(outcomes, rival)
    assert record.dropped
    assert asked == [(0, 50), (50, 100), (100, 400)][: len(asked)]
    np.testing.assert_array_equal(record.outcomes, candidate[: record.images])
    assert record.images == asked[-1][1] < IMAGES
    alone = race.run(outcomes)
    assert not alone.dropped
    np.testing.assert_array_equal(alone.outcomes, candidate)


def test_scores_race_like_hits():
    scores = np.linspace(0, 1, IMAGES)
    race = Race.doubling(IMAGES)
    assert raced(race, scores - 0.1, scores).images == 64
    assert not raced(race, scores, scores).dropped
    assert not raced(race, scores + 0.1, scores).dropped


@pytest.mark.parametrize("shift", [-0.05, 0, 0.02])
def test_the_test_of_means_is_scipys(shift):
    differences = np.random.default_rng(4).normal(shift, 0.3, 90)
    expected = ttest_1samp(differences, 0, alternative="less").pvalue
    assert mean_test(differences) == pytest.approx(expected, rel=1e-9)
    assert mean_test(np.full(9, 0.25)) == mean_test(np.zeros(9)) == mean_test(np.ones(1)) == 1
    assert mean_test(np.full(9, -0.25)) == 0


def overlaps(rng, found, edges):
    """Outcomes of segmenters that find a share of the objects, with better or worse edges."""
    easy, own = rng.random(IMAGES), rng.random((2, IMAGES))
    ease = np.where(rng.random(own.shape) < 0.5, easy, own)
    hit = ease < np.array(found)[:, None]
    noise = rng.normal(0, 0.05, IMAGES) + rng.normal(0, 0.03, own.shape)
    return np.where(hit, 0.92, 0.5) + np.array(edges)[:, None] + noise


@pytest.mark.parametrize("edge", [-0.02, 0, 0.02])
def test_one_with_worse_edges_that_finds_more_objects_is_not_dropped_for_them(edge):
    """Both are as good on average; a count of wins and losses would see the edges alone."""
    rng, error, races = np.random.default_rng(5), 0.05, 1500
    race = Race.doubling(IMAGES, 64, error)
    found = (0.6 - edge / 0.42, 0.6)
    dropped = sum(raced(race, *overlaps(rng, found, (edge, 0))).dropped for _ in range(races))
    assert dropped / races <= error + 3 * np.sqrt(error * (1 - error) / races)
    assert dropped > 0
    worse = [raced(race, *overlaps(rng, (0.4, 0.6), (edge, 0))).dropped for _ in range(100)]
    assert np.mean(worse) > 0.9


def test_the_last_look_drops_nothing():
    worse, rival = np.zeros(IMAGES, bool), np.ones(IMAGES, bool)
    assert not raced(Race((IMAGES,)), worse, rival).dropped


def test_sizes_double_up_to_the_whole():
    assert Race.doubling(400).sizes == (64, 128, 256, 400)
    assert Race.doubling(64).sizes == (64,)
    assert Race.doubling(128, 32).sizes == (32, 64, 128)


@pytest.mark.parametrize("sizes", [(), (0, 4), (8, 8), (9, 3)])
def test_sizes_that_do_not_grow_are_refused(sizes):
    with pytest.raises(UsageError, match="grow"):
        Race(sizes)


def test_errors_name_what_is_wrong():
    with pytest.raises(UsageError, match="between 0 and 1"):
        Race((4,), 1.0)
    with pytest.raises(UsageError, match="3 outcomes of a rival"):
        raced(Race((4,)), np.ones(4), np.ones(3))
