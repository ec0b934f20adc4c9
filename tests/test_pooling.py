"""lib.pooling against brute force, closed forms, statsmodels and planted truth."""

import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from lib import mixed, pooling, stats


def make_values(seed=0, k=6, blocks=3, own=0.0, noise=1.0):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(blocks):
        value = rng.normal(0, 2, (1, k, 1)) + rng.normal(0, 2, (1, 1, k)) + rng.normal(0, noise, (4, k, k))
        made.append(pooling.enter_values(value + np.diag(np.broadcast_to(own, k)), range(k)))
    return made


def make_rates(counts, answers=100, names=None):
    counts = np.asarray(counts)
    k = len(counts)
    return pooling.enter_answers(
        mixed.Answers(counts[None], np.full((1, k), answers), tuple(names or range(k)))
    )


# --- effects ------------------------------------------------------------------------------------


def test_an_effect_is_the_mean_of_the_animals_terms_over_the_blocks_that_have_it():
    rng = np.random.default_rng(1)
    blocks = [pooling.enter_values(rng.normal(size=(2, 4, 4)), names) for names in ("abcd", "bcde")]
    effects = pooling.estimate_effects(blocks)
    terms = [dict(zip(b.names, stats.transfer_terms(b.matrix), strict=True)) for b in blocks]
    assert effects.animals == tuple("abcde")
    assert effects.effect[1] == pytest.approx((terms[0]["b"] + terms[1]["b"]) / 2)
    assert effects.effect[[0, 4]] == pytest.approx([terms[0]["a"], terms[1]["e"]])
    assert effects.count.tolist() == [1, 2, 2, 2, 1]
    assert effects.error[0] == pytest.approx(effects.error[1] * math.sqrt(2))


def test_the_error_of_log_probabilities_is_the_spread_of_their_terms():
    """Over many draws the mean squared error equals the mean squared deviation from the truth."""
    studies = [pooling.estimate_effects(make_values(seed, 6, 2, 3.0)) for seed in range(300)]
    off = np.mean([(each.effect - 3.0) ** 2 for each in studies])
    assert np.mean([each.error**2 for each in studies]) == pytest.approx(off, rel=0.1)


def test_residuals_have_the_expected_squares():
    maker = pooling.residual_maker(4)
    assert np.trace(maker) == pytest.approx(3**2 - 4)
    assert maker @ maker == pytest.approx(maker)


def test_the_parts_of_the_noise_are_found():
    """Binomial noise three times over, and nothing of the logit kind."""
    rng = np.random.default_rng(2)
    entries = [make_rates(each) for each in rng.binomial(100, 0.1, (40, 7, 7))]
    scaled = [
        pooling.Entries(b.matrix * math.sqrt(3), b.noise, b.adjusted, b.named, b.names, b.answers)
        for b in entries
    ]
    one, three = pooling.fit_noise(entries)[0], pooling.fit_noise(scaled)[0]
    total = [np.tensordot(f, entries[0].noise, 1).mean() for f in (one, three)]
    assert total[1] == pytest.approx(3 * total[0], rel=0.02)


def test_counts_of_zero_leave_an_error():
    effects = pooling.estimate_effects([make_rates(np.zeros((5, 5), int))])
    assert (effects.error > 0.1).all()
    cell = pooling.find_cells([make_rates(np.zeros((5, 5), int))] * 2)[0]
    assert cell.pooled_low < 0 < cell.pooled_high


def test_blocks_that_differ_on_the_diagonal_widen_the_error():
    rng = np.random.default_rng(3)
    calm = [rng.binomial(100, 0.05, (6, 6)) for _ in range(3)]
    wild = [each.copy() for each in calm]
    for block, diagonal in zip(wild, ([60] * 6, [5] * 6, [20] * 6), strict=True):
        np.fill_diagonal(block, diagonal)
    here, there = (pooling.estimate_effects([make_rates(b) for b in each]) for each in (calm, wild))
    assert there.error.min() > 3 * here.error.max()


# --- partial pooling ----------------------------------------------------------------------------


def pool(effect, error):
    """Pooling of these effects, each with this error whatever the true effect is."""
    k = len(effect)
    nothing = pooling.Effects(
        tuple(range(k)),
        np.array(effect, dtype=float),
        np.full(k, error),
        50.0,
        np.ones(k),
        np.full(k, error**2),
        np.zeros(1),
        tuple(make_values(4, k, 1)),
    )
    return pooling.pool_effects(nothing)


def test_effects_that_differ_no_more_than_their_errors_are_drawn_together():
    pooled = pool([0.9, 1.1, 1.0, 1.2, 0.8, 1.0], 1.0)
    assert pooled.spread == 0
    assert np.ptp(pooled.effect) < 0.5 * 0.4
    assert pooled.mean == pytest.approx(1.0)


def test_effects_that_differ_far_more_than_their_errors_stay_where_they_are():
    effect = [0.0, 10.0, -20.0, 30.0, 5.0, -7.0]
    pooled = pool(effect, 0.1)
    assert pooled.effect == pytest.approx(effect, abs=0.01)
    assert pooled.high - pooled.low == pytest.approx(2 * 2.0086 * 0.1, rel=0.02)


def test_the_spread_of_paule_and_mandel_solves_its_equation():
    rng = np.random.default_rng(5)
    effect, error = rng.normal(0, 3, 12), rng.uniform(0.5, 2, 12)
    weight = 1 / (error**2 + pooling.find_spread(effect, error))
    centre = (weight * effect).sum() / weight.sum()
    assert (weight * (effect - centre) ** 2).sum() == pytest.approx(11)


# --- the test of a cell -------------------------------------------------------------------------


def test_p_is_that_of_a_new_observation_beside_the_other_students():
    """By scipy: the own student's mean over blocks is one more draw from a normal the others show."""
    blocks = make_values(6, 7, 3, own=1.0)
    for animal in range(7):
        means = np.mean([block.adjusted[:, animal] for block in blocks], 0)
        others = np.delete(means, animal)
        error = others.std(ddof=1) * math.sqrt(1 + 1 / 6)
        expected = scipy.stats.t(df=5).sf((means[animal] - others.mean()) / error)
        assert pooling.find_outlier(blocks, animal) == (pytest.approx(expected), "")


def test_what_students_are_like_in_every_seed_is_averaged_before_it_is_compared():
    """The same block three times is one observation: p stays what it was."""
    blocks = make_values(7, 9, 1, own=0.8)
    once, thrice = (pooling.find_outlier(blocks * times, 0)[0] for times in (1, 3))
    assert thrice == pytest.approx(once)


def test_four_students_give_no_p():
    p, note = pooling.find_outlier(make_values(8, 4, 2, own=99.0), 0)
    assert math.isnan(p)
    assert "5 are needed" in note


def test_an_animal_that_none_named_is_not_testable():
    counts = np.full((5, 5), 7)
    counts[:, 2] = 0
    p, note = pooling.find_outlier([make_rates(counts)] * 3, 2)
    assert math.isnan(p)
    assert "no student named it" in note


def test_one_answer_among_zeros_is_no_discovery():
    """The other students never name it, so their spread is 0: their variance is not taken to be that."""
    counts = np.full((6, 6), 10)
    counts[:, 0] = 0
    counts[0, 0] = 1
    usual, strict = (
        pooling.find_outlier([make_rates(counts)], 0, least)[0]
        for least in (pooling.SMALLEST_VARIANCE, pooling.STRICT_VARIANCE)
    )
    assert usual > 0.01
    assert strict > 0.05


def test_likeness_of_blocks_is_found_and_widens_the_error():
    """The same entries off the diagonal in all blocks: three blocks tell no more than one."""
    rng = np.random.default_rng(9)
    shared, own = rng.normal(0, 1, (12, 12)), [rng.normal(0, 0.2, (1, 12, 12)) for _ in range(3)]
    alike = [pooling.enter_values(shared[None] + each, range(12)) for each in own]
    apart = [pooling.enter_values(rng.normal(0, 1, (1, 12, 12)), range(12)) for _ in range(3)]
    shares = [pooling.share_alike(each, pooling.fit_noise(each)[0]) for each in (alike, apart)]
    assert shares[0] > 0.8
    assert shares[1] < 0.1
    errors = [pooling.estimate_effects(each).error.mean() for each in (alike, apart)]
    assert errors[0] > 1.4 * errors[1]


def test_another_animals_transfer_does_not_pass_for_this_ones():
    """Student 1 names its own animal so often that little is left for animal 0: no news of animal 0."""
    rest = np.full((6, 6), 10.0)
    rest[1] *= 0.2
    rest[1, 1] = 90
    adjusted = make_rates(rest.astype(int)).adjusted[:, 0]
    assert np.ptp(adjusted) < 0.8


@pytest.mark.parametrize("measure", ["rate", "logprob"])
def test_p_is_honest_and_intervals_cover_over_all_cells(measure):
    """Limits for 60 studies of 6 animals x 2 seeds; lib.pooling.simulate_cells makes the long run."""
    found = pooling.simulate_cells(6, 2, 60, np.random.default_rng(10), measure)
    assert 0.91 <= found.coverage <= 0.985
    assert 0.02 <= found.type_one <= 0.09
    assert found.root_mean_square[0] < found.root_mean_square[1]


# --- several tests ------------------------------------------------------------------------------


def test_adjusted_values_are_those_of_statsmodels_over_the_known():
    p = np.array([0.001, 0.2, math.nan, 0.03, 0.04])
    holm, q = pooling.adjust_cells(p)
    known = ~np.isnan(p)
    assert holm[known] == pytest.approx(multipletests(p[known], method="holm")[1])
    assert q[known] == pytest.approx(multipletests(p[known], method="fdr_bh")[1])
    assert np.isnan(holm[2]) and np.isnan(q[2])
