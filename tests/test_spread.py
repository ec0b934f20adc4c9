"""lib.spread: with many bases a size's own spread, with two that of all sizes, with one nothing else."""

import math

import numpy as np
import pytest
from scipy.stats import f as fisher
from scipy.stats import t as student_t

from lib import spread, stats

NAMES = tuple("abcd")
LADDER = (8, 8, 8, 8, 4, 4, 2, 2)


def group(*values, noise=0.0):
    """A size whose bases have these lambdas and whose animals differ by `noise`."""
    own = np.diag([1.0, -1.0, 0.5, -0.5]) * noise
    sheets = [stats.Sheet((np.eye(4) * v + own)[None], NAMES, NAMES, at) for at, v in enumerate(values)]
    return stats.measure_influence(sheets, range(len(values)))


def spread_out(centre, sd, count):
    """Lambdas of so many bases, of exactly this mean and standard deviation."""
    around = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
    return centre + sd * around / (around.std(ddof=1) if count > 1 else 1)


def moderate(sds, levels, counts):
    """Standard deviations and degrees of freedom of sizes whose bases have these exactly."""
    found = spread.moderate_spreads(
        [group(*spread_out(*each)) for each in zip(levels, sds, counts, strict=True)]
    )
    return np.sqrt([each.variance for each in found]), np.array([each.freedom for each in found])


# --- what it is worth ---------------------------------------------------------------------------


def test_a_single_size_has_its_own_spread_and_its_own_degrees_of_freedom():
    (found,) = spread.moderate_spreads([group(*spread_out(5.0, 2.0, 8))])
    assert found.variance == pytest.approx(4.0, rel=0.01)
    assert found.freedom == pytest.approx(7, rel=0.01)


def test_sizes_of_eight_bases_keep_their_own_though_they_differ_without_order():
    sds = [1.0, 8.0, 0.5, 4.0]
    found, freedom = moderate(sds, [10.0] * 4, [8] * 4)
    assert found == pytest.approx(sds, rel=0.25)  # one variance for all would be 4.5
    assert (freedom > 5).all() and (freedom < 10).all()


def test_where_all_sizes_agree_each_is_worth_more_than_its_own_bases():
    found, freedom = moderate([2.0] * 6, [10.0] * 6, [4] * 6)
    assert found == pytest.approx(2.0, rel=0.05)
    assert (freedom > 2 * 3).all() and (freedom < 6 * 3).all()


def test_two_bases_that_happen_to_agree_are_not_believed():
    sds = [2.0] * 4 + [0.02]
    found, freedom = moderate(sds, [10.0] * 5, [8] * 4 + [2])
    assert found[-1] > 1.0
    assert freedom[-1] > 3


def test_one_base_has_what_the_others_say_and_is_worth_less_than_they_are():
    found, freedom = moderate([2.0, 2.0, 2.0, 0.0], [10.0] * 4, [8, 8, 8, 1])
    assert found[-1] == pytest.approx(2.0, rel=0.1)
    assert freedom[-1] < freedom[0]


@pytest.mark.parametrize("power", [0, 1])
def test_a_spread_that_falls_with_lambda_is_followed_where_it_does_and_not_where_it_does_not(power):
    levels = 0.02 * 0.5 ** np.arange(8)
    sds = 0.6 * levels**power * levels[3] ** (1 - power)
    sds[6:] = 0  # the last two sizes have one base: what is said of them comes from the others alone
    found, _ = moderate(sds, levels, (8, 8, 8, 8, 8, 8, 1, 1))
    expected = 0.6 * levels**power * levels[3] ** (1 - power)
    assert found == pytest.approx(expected, rel=0.35)


def test_a_lambda_near_zero_counts_as_its_noise():
    """Else a size that happens to have no lambda at all would have no spread either."""
    others = [group(*spread_out(centre, 1.0, 8), noise=2.0) for centre in (8.0, 4.0, 2.0)]
    exact, clear = (
        spread.moderate_spreads([*others, group(centre, noise=2.0)])[-1].variance for centre in (0.0, 0.5)
    )
    assert exact == pytest.approx(clear)
    assert spread.noise_of(others[0]) > 0.5**2


# --- edges --------------------------------------------------------------------------------------


def test_without_two_bases_anywhere_there_is_no_spread():
    assert spread.moderate_spreads([group(1.0), group(2.0)]) == [None, None]
    assert spread.moderate_spreads([]) == []


def test_bases_that_are_all_alike_have_none_and_one_pair_that_is_does_not_break_the_rest():
    assert [each.variance for each in spread.moderate_spreads([group(1.0, 1.0), group(2.0)])] == [0, 0]
    found = spread.moderate_spreads([group(1.0, 1.0), group(*spread_out(1.0, 0.3, 8))])
    assert all(math.isfinite(each.variance) and each.variance > 0 for each in found)
    assert all(each.freedom > 0 for each in found)


def test_neither_the_unit_nor_the_order_of_sizes_matters():
    groups = [
        group(*spread_out(*each)) for each in ((9.0, 3.0, 8), (4.0, 2.0, 4), (1.0, 0.1, 2), (0.5, 0, 1))
    ]
    nats = [group(*(100 * each.means.mean(1))) for each in groups]
    here = spread.moderate_spreads(groups)
    there = spread.moderate_spreads(nats)
    back = spread.moderate_spreads(groups[::-1])[::-1]
    assert [1e4 * each.variance for each in here] == pytest.approx([each.variance for each in there])
    assert [each.freedom for each in here] == pytest.approx([each.freedom for each in there])
    assert [each.variance for each in here] == pytest.approx([each.variance for each in back])


def test_the_density_of_a_variance_is_fishers_f(monkeypatch):
    """With one point on the grid the posterior is that of the conjugate prior; with two, their mixture."""
    monkeypatch.setattr(spread, "POWERS", np.array([0.0]))
    monkeypatch.setattr(spread, "CENTRES", np.array([0.0]))
    monkeypatch.setattr(spread, "FREEDOMS", np.array([8.0]))
    squares, freedom = np.array([7 * 4.0, 3 * 1.0]), np.array([7.0, 3.0])
    pooled = squares.sum() / 10
    variance, worth = spread.average_variances(squares, freedom, np.zeros(2))
    assert variance == pytest.approx((8 * pooled + squares) / (8 + freedom), rel=1e-3)
    assert worth == pytest.approx(8 + freedom, rel=1e-3)
    monkeypatch.setattr(spread, "FREEDOMS", np.array([2.0, 64.0]))
    density = [np.prod(fisher.pdf(squares / freedom / pooled, freedom, prior)) for prior in (2, 64)]
    mixed = np.average(
        [np.log((prior * pooled + squares) / (prior + freedom)) for prior in (2, 64)], axis=0, weights=density
    )
    variance, _ = spread.average_variances(squares, freedom, np.zeros(2))
    assert np.log(variance) == pytest.approx(mixed, abs=0.08)  # bar the bias of a logarithm


# --- does it hold? --------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_means_over_few_bases_are_covered_at_every_size(power):
    """300 studies, wide limits; one variance for all sizes covers .73 at the first where power is 1."""
    rng, counts = np.random.default_rng(5), np.array(LADDER)
    levels = 0.02 * 0.6 ** np.arange(8)
    sds = 0.6 * levels**power * levels[3] ** (1 - power)
    hits = np.zeros(8)
    for _ in range(300):
        drawn = [rng.normal(*each) for each in zip(levels, sds, counts, strict=True)]
        means = np.array([each.mean() for each in drawn])
        squares = np.array([((each - each.mean()) ** 2).sum() for each in drawn])
        variance, freedom = spread.average_variances(squares, counts - 1.0, np.log(means**2))
        hits += np.abs(means - levels) <= student_t.ppf(0.975, freedom) * np.sqrt(variance / counts)
    assert ((hits / 300 > 0.9) & (hits / 300 < 0.995)).all()
