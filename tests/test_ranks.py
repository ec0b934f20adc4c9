"""Rank correlation within groups, against scipy and by counting orders."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from lib import ranks

GROUPS = ["a"] * 4 + ["b"] * 4


def test_rho_is_the_mean_of_scipys_over_groups():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 8))
    each = [spearmanr(x[at], y[at]).statistic for at in (slice(4), slice(4, 8))]
    assert ranks.associate(x, y, GROUPS).rho == pytest.approx(np.mean(each))


def test_p_counts_the_orders_within_groups():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 8))
    found = ranks.associate(x, y, GROUPS)
    null = []
    for one in itertools.permutations(range(4)):
        for other in itertools.permutations(range(4, 8)):
            order = [*one, *other]
            null.append(np.mean([spearmanr(x[at], y[order][at]).statistic for at in (slice(4), slice(4, 8))]))
    assert found.orders == len(null) == 24**2
    assert found.greater == pytest.approx(np.mean(np.array(null) >= found.rho - 1e-9))
    assert found.either == pytest.approx(np.mean(abs(np.array(null)) >= abs(found.rho) - 1e-9))


def test_what_differs_between_groups_alone_does_not_count():
    """Pooled over groups x and y would correlate perfectly."""
    x = np.array([1.0, 2.0, 3.0, 4.0, 101.0, 102.0, 103.0, 104.0])
    y = np.array([2.0, 1.0, 4.0, 3.0, 104.0, 103.0, 102.0, 101.0])
    assert ranks.associate(x, y, GROUPS).rho == pytest.approx((0.6 - 1) / 2)


def test_many_orders_are_drawn_and_agree_with_all_of_them(monkeypatch):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 8))
    exact = ranks.associate(x, x + y, GROUPS)
    monkeypatch.setattr(ranks, "EXACT", 10)
    drawn = ranks.associate(x, x + y, GROUPS)
    assert drawn.orders == ranks.DRAWS
    assert drawn.rho == exact.rho
    assert drawn.greater == pytest.approx(exact.greater, abs=0.015)
    assert ranks.associate(x, x + y, GROUPS) == drawn


def test_a_perfect_order_has_the_smallest_p_there_is():
    found = ranks.associate(range(8), range(8), GROUPS)
    assert (found.rho, found.greater, found.either) == pytest.approx((1, 1 / 24**2, 2 / 24**2))


def test_ties_share_a_rank_and_equal_values_say_nothing():
    assert ranks.associate([1, 1, 2, 3], [1, 1, 2, 3], "aaaa").rho == pytest.approx(1)
    flat = ranks.associate([1, 1, 1, 1], [1, 2, 3, 4], "aaaa")
    assert (flat.rho, flat.greater, flat.either) == (0, 1, 1)


@pytest.mark.parametrize(
    ("x", "groups", "message"),
    [([1, 2, 3], "aab", "at least three"), ([1, float("nan"), 2], "aaa", "not numbers"), ([], "", "three")],
)
def test_what_has_no_order_is_refused(x, groups, message):
    with pytest.raises(ValueError, match=message):
        ranks.associate(x, range(len(x)), groups)
