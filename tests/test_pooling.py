"""lib.pooling against brute force, closed forms, statsmodels and planted truth."""

import itertools
import math

import numpy as np
import pytest
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
    cell = pooling.find_cells([make_rates(np.zeros((5, 5), int))] * 2, np.random.default_rng(0))[0]
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


def test_p_is_brute_force_over_all_choices_of_the_own_student():
    blocks = make_values(6, 5, 2, own=1.0)
    for animal in range(5):
        columns = [b.adjusted[:, animal] for b in blocks]
        null = [a + b for a, b in itertools.product(*columns)]
        expected = np.mean(np.array(null) >= columns[0][animal] + columns[1][animal] - 1e-12)
        assert pooling.rank_cell(blocks, animal, np.random.default_rng(0)) == (expected, "")


def test_many_choices_are_drawn_and_agree():
    blocks = make_values(7, 12, 4, own=0.3)
    p, _ = pooling.rank_cell(blocks, 0, np.random.default_rng(0))
    null = np.zeros(1)
    for block in blocks:
        null = np.add.outer(null, block.adjusted[:, 0]).ravel()
    assert p == pytest.approx(np.mean(null >= sum(b.adjusted[0, 0] for b in blocks)), abs=0.01)


def test_a_p_that_could_not_be_small_is_not_given():
    p, note = pooling.rank_cell(make_values(8, 5, 1, own=99.0), 0, np.random.default_rng(0))
    assert math.isnan(p)
    assert "could not fall below 0.2" in note
    assert pooling.rank_cell(make_values(8, 5, 2, own=99.0), 0, np.random.default_rng(0))[0] == 1 / 25


def test_an_animal_that_none_named_is_not_testable():
    counts = np.full((5, 5), 7)
    counts[:, 2] = 0
    p, note = pooling.rank_cell([make_rates(counts)] * 3, 2, np.random.default_rng(0))
    assert math.isnan(p)
    assert "not testable" in note


def test_ties_are_broken_by_what_else_a_student_says():
    """All students name the animal once; the own student names others least, so its one says most."""
    counts = np.array([[1, 2, 2, 2, 2], *[[1, more, more, more, more] for more in (8, 9, 7, 6)]])
    blocks = [make_rates(counts)] * 2
    assert pooling.rank_cell(blocks, 0, np.random.default_rng(0))[0] == 1 / 25


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
