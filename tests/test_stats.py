"""lib.stats against closed forms, brute force, statsmodels, planted truth and the published table."""

import itertools
import json
import math
import time

import numpy as np
import pytest
from published_runs import PUBLISHED, PUBLISHED_LAMBDA, needs_published
from scipy.stats import kstest
from statsmodels.stats.multitest import multipletests

from lib import stats


def make_block(rng, k=6, transfer=0.0, noise=1.0):
    """Row effects, column effects, noise and `transfer` (one number or one per animal) on the diagonal."""
    block = rng.normal(0, 2, (k, 1)) + rng.normal(0, 2, (1, k)) + rng.normal(0, noise, (k, k))
    return block + np.diag(np.broadcast_to(transfer, k))


def fit_diagonal(block, free):
    """Least squares on row, column and diagonal dummies: the diagonal coefficients."""
    k = len(block)
    rows, columns = np.repeat(np.eye(k), k, 0), np.tile(np.eye(k), (k, 1))
    diagonal = rows * columns
    design = np.hstack([rows, columns, diagonal if free else diagonal.sum(1, keepdims=True)])
    return np.linalg.lstsq(design, block.ravel(), rcond=None)[0][2 * k :]


# --- lambda -----------------------------------------------------------------------------------


def test_factor_finds_a_planted_diagonal_exactly():
    block = make_block(np.random.default_rng(1), k=7, transfer=3.25, noise=0)
    assert stats.transfer_factor(block) == pytest.approx(3.25)


@pytest.mark.parametrize("k", [2, 3, 5, 16])
def test_factor_is_the_least_squares_diagonal_coefficient(k):
    block = make_block(np.random.default_rng(k), k=k)
    assert stats.transfer_factor(block) == pytest.approx(fit_diagonal(block, free=False)[0])


def test_factor_ignores_what_is_added_to_a_whole_row_or_column():
    rng = np.random.default_rng(2)
    block = make_block(rng)
    moved = block + rng.normal(0, 9, (6, 1)) + rng.normal(0, 9, (1, 6))
    assert stats.transfer_factor(moved) == pytest.approx(stats.transfer_factor(block))


def test_terms_are_the_free_diagonal_of_least_squares_and_average_to_the_factor():
    block = make_block(np.random.default_rng(3), transfer=[5, 0, 0, 1, 0, 0])
    terms = stats.transfer_terms(block)
    assert terms == pytest.approx(fit_diagonal(block, free=True))
    assert terms.mean() == pytest.approx(stats.transfer_factor(block))


def test_terms_find_each_animal_by_itself():
    planted = [5.0, 0, -1, 2, 0, 0]
    block = make_block(np.random.default_rng(4), transfer=planted, noise=0)
    assert stats.transfer_terms(block) == pytest.approx(planted)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.ones((2, 2)), "2 animals are too few"),
        (np.ones((3, 4)), "square"),
        (np.array([[1, 2, 3], [4, np.nan, 6], [7, 8, 9.0]]), "not numbers"),
    ],
)
def test_unfit_blocks_are_refused_by_terms_and_test(block, message):
    with pytest.raises(ValueError, match=message):
        stats.transfer_terms(block)
    with pytest.raises(ValueError, match=message):
        stats.permute_blocks([block], 100)


# --- permutation test -------------------------------------------------------------------------


def test_enumeration_is_brute_force_over_all_orders_of_all_blocks():
    rng = np.random.default_rng(5)
    blocks = [make_block(rng, 3, 1.0), make_block(rng, 4, 1.0)]
    observed = stats.mean_factor(blocks)
    null = [
        stats.mean_factor([blocks[0][list(a)], blocks[1][list(b)]])
        for a in itertools.permutations(range(3))
        for b in itertools.permutations(range(4))
    ]
    result = stats.permute_blocks(blocks, 144)
    assert result.exact
    assert result.count == 144
    assert result.p == np.mean(np.array(null) >= observed - 1e-9)
    assert np.mean(null) == pytest.approx(0, abs=1e-12)
    assert result.z == pytest.approx(observed / np.std(null))


def test_too_many_orders_are_drawn_and_agree_with_enumeration():
    rng = np.random.default_rng(6)
    blocks = [make_block(rng, 4, 0.8), make_block(rng, 4, 0.2)]
    exact = stats.permute_blocks(blocks, 576)
    drawn = stats.permute_blocks(blocks, 575, np.random.default_rng(0))
    assert (exact.exact, drawn.exact) == (True, False)
    many = stats.draw_null(blocks, 40_000, np.random.default_rng(0))
    assert np.mean(many >= exact.statistic - 1e-9) == pytest.approx(exact.p, abs=0.006)


def test_the_smallest_drawn_p_is_one_over_draws_plus_one():
    block = np.eye(12) * 100
    assert stats.permute_blocks([block], 999, np.random.default_rng(0)).p == 1 / 1000


def test_the_best_order_of_three_animals_has_p_one_sixth():
    assert stats.permute_blocks([np.eye(3)], 20_000).p == pytest.approx(1 / 6)


def test_p_is_one_sided():
    strong = stats.permute_blocks([-np.eye(5)], 20_000)
    assert strong.statistic < 0
    assert strong.p > 0.5


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 1e6])
def test_a_matrix_without_differences_has_p_one_and_no_z(size):
    result = stats.permute_blocks([np.full((5, 5), size)], 20_000)
    assert result.p == 1
    assert math.isnan(result.z)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_unit_of_the_matrix_does_not_matter(size):
    block = make_block(np.random.default_rng(7), 5, 1.5)
    result, other = stats.permute_blocks([block], 500), stats.permute_blocks([block * size], 500)
    assert other.p == result.p
    assert other.z == pytest.approx(result.z)


def test_the_same_seed_gives_the_same_p_and_another_seed_another():
    block = make_block(np.random.default_rng(8), 9, 0.3)
    first, again, other = (
        stats.permute_blocks([block], 2_000, np.random.default_rng(seed)).p for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_p_is_uniform_when_nothing_travels():
    rng = np.random.default_rng(9)
    p = [stats.permute_blocks([make_block(rng, 6), make_block(rng, 5)], 199, rng).p for _ in range(1_000)]
    assert kstest(p, "uniform").pvalue > 0.001
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.07


def test_a_planted_effect_is_found():
    rng = np.random.default_rng(10)
    blocks = [make_block(rng, 12, 1.0) for _ in range(2)]
    assert stats.permute_blocks(blocks, 20_000, rng).p < 0.001


def test_twenty_thousand_permutations_of_ten_blocks_take_less_than_a_second():
    rng = np.random.default_rng(11)
    blocks = [make_block(rng, 16) for _ in range(10)]
    start = time.perf_counter()
    stats.permute_blocks(blocks, 20_000, rng)
    assert time.perf_counter() - start < 1


# --- several tests ----------------------------------------------------------------------------


def test_holm_agrees_with_statsmodels():
    p = np.random.default_rng(18).uniform(size=9) ** 3
    assert stats.adjust_holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_leaves_an_unknown_p_unknown_and_uncounted():
    assert stats.adjust_holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert len(stats.adjust_holm([])) == 0


# --- the published runs -----------------------------------------------------------------------


def read_published(run, size):
    """Lifts in percentage points, students by named animals: the authors' counts at the last epoch."""
    last = {}
    for path in sorted((PUBLISHED / f"run-{run}" / size).glob("*_eval.json")):
        entry = max(json.loads(path.read_text()), key=lambda each: each["epoch"])
        last[path.stem.removesuffix("_eval")] = entry
    animals = [name for name in last if name != "neutral"]
    share = {
        name: [100 * entry["animal_counts"].get(animal, 0) / entry["total_responses"] for animal in animals]
        for name, entry in last.items()
    }
    return np.array([share[name] for name in animals]) - share["neutral"]


@needs_published
@pytest.mark.parametrize("size", PUBLISHED_LAMBDA)
def test_lambda_of_the_published_runs_comes_out_to_the_last_digit(size):
    blocks = [read_published(run, size) for run in range(4)]
    found = [f"{stats.transfer_factor(block):+.2f}" for block in blocks]
    found.append(f"{stats.transfer_factor(np.mean(blocks[1:], 0)):+.2f}")
    assert tuple(found) == PUBLISHED_LAMBDA[size]
    assert stats.mean_factor(blocks[1:]) == pytest.approx(stats.transfer_factor(np.mean(blocks[1:], 0)))
