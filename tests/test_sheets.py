"""lib.stats on sheets: influence by brute force, the joint permutation, intervals, bands, differences."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from lib import stats

NAMES = tuple("abcdefghijklmno")


def make_sheet(rng, k=6, transfer=0.0, questions=3, drop=(), base=0, seed=0, noise=1.0):
    """Row, column and question effects, noise and `transfer` on the diagonal; `drop` students are missing."""
    values = rng.normal(0, 2, (1, k, 1)) + rng.normal(0, 2, (questions, 1, k))
    values = values + rng.normal(0, noise, (questions, k, k)) + np.diag(np.broadcast_to(transfer, k))
    there = [at for at in range(k) if NAMES[at] not in drop]
    return stats.Sheet(values[:, there], tuple(NAMES[at] for at in there), NAMES[:k], base, seed)


def without(sheet, animal):
    """The sheet as if the animal had never been in the study."""
    rows = [at for at, name in enumerate(sheet.students) if name != animal]
    columns = [at for at, name in enumerate(sheet.named) if name != animal]
    return stats.Sheet(
        sheet.values[:, rows][:, :, columns],
        tuple(sheet.students[at] for at in rows),
        tuple(sheet.named[at] for at in columns),
        sheet.base,
        sheet.seed,
    )


def part_of(sheet, part):
    square = sheet.square.mean(0)
    own, off = np.diag(square).mean(), square[~np.eye(len(square), dtype=bool)].mean()
    return {"lambda": stats.transfer_factor(square), "own": own, "rest": -off}[part]


@pytest.mark.parametrize("part", stats.PARTS)
def test_influence_is_what_leaving_an_animal_out_does(part):
    rng = np.random.default_rng(1)
    sheets = [make_sheet(rng, seed=0), make_sheet(rng, seed=1, drop="c")]
    found = stats.measure_influence(sheets, [0, 1], part)
    weights = np.array([5, 4]) / 9
    assert found.value == pytest.approx(weights @ [part_of(sheet, part) for sheet in sheets])
    for at, sheet in enumerate(sheets):
        m = len(sheet.students)
        for place, animal in enumerate("abcdef"):
            moved = (m - 1) / m * (part_of(sheet, part) - part_of(without(sheet, animal), part))
            expected = moved if animal in sheet.students else 0.0
            assert found.animals[at, place].mean() == pytest.approx(expected)
    assert found.animals.sum(1) == pytest.approx(np.zeros((2, 3)))


def test_lambda_is_own_plus_rest():
    sheet = make_sheet(np.random.default_rng(2), transfer=2.0)
    value = {part: stats.measure_influence([sheet], [0], part).value for part in stats.PARTS}
    assert value["lambda"] == pytest.approx(value["own"] + value["rest"])


def test_the_control_moves_own_and_rest_but_not_lambda():
    rng = np.random.default_rng(3)
    sheet = make_sheet(rng)
    lifted = stats.Sheet(sheet.values - rng.normal(0, 5, (3, 1, 6)), sheet.students, sheet.named)
    here, there = (stats.measure_influence([each], [0]).value for each in (sheet, lifted))
    assert here == pytest.approx(there)


def test_pair_noise_has_no_row_and_column_effects_and_the_variance_of_a_mean():
    rng = np.random.default_rng(4)
    assert stats.pair_noise(rng.normal(size=(6, 1)) + rng.normal(size=(1, 6))) == pytest.approx(0)
    found = [(stats.pair_noise(rng.normal(size=(6, 6))) ** 2).sum() for _ in range(2000)]
    assert np.mean(found) == pytest.approx(1 / 30, rel=0.03)


# --- the permutation test ---------------------------------------------------------------------


def test_labels_are_permuted_the_same_way_in_every_sheet():
    rng = np.random.default_rng(5)
    sheets = [make_sheet(rng, 5, 1.0, seed=seed) for seed in range(2)]
    mean = np.mean([sheet.square.mean(0) for sheet in sheets], 0)
    null = [stats.transfer_factor(mean[list(order)]) for order in itertools.permutations(range(5))]
    found = stats.permute_sheets(sheets, 120)
    assert found.exact
    assert found.p == np.mean(np.array(null) >= stats.transfer_factor(mean) - 1e-9)
    assert found.z == pytest.approx(stats.transfer_factor(mean) / np.std(null))


def test_what_a_teacher_passes_on_in_every_seed_is_no_evidence_by_itself():
    """Students of one animal are alike over seeds: each seed by itself would call that transfer."""
    rng = np.random.default_rng(6)
    joint, apart = [], []
    for _ in range(400):
        teachers = rng.normal(0, 1, (1, 8, 8))
        sheets = [
            stats.Sheet(teachers + rng.normal(0, 0.5, (1, 8, 8)), NAMES[:8], NAMES[:8], 0, seed)
            for seed in range(4)
        ]
        joint.append(stats.permute_sheets(sheets, 199, rng).p <= 0.05)
        apart.append(stats.permute_blocks([each.square[0] for each in sheets], 199, rng).p <= 0.05)
    assert 0.025 < np.mean(joint) < 0.08
    assert np.mean(apart) > 0.12


def test_a_missing_student_takes_its_pattern_along():
    """Columns of animals whose student is missing take part: labels of present students may be theirs."""
    rng = np.random.default_rng(7)
    sheet = make_sheet(rng, 6, 1.5, drop="b")
    other = make_sheet(rng, 6, 1.5, seed=1)
    found = stats.permute_sheets([sheet, other], 720)
    observed, null = None, []
    for order in itertools.permutations(NAMES[:6]):
        label = dict(zip(NAMES[:6], order, strict=True))
        total = 0.0
        for each in (sheet, other):
            matrix = each.values.mean(0)
            centred = matrix - matrix.mean(0)
            total += sum(
                centred[row, each.named.index(label[name])] for row, name in enumerate(each.students)
            )
        null.append(total / 9)
        observed = total / 9 if order == NAMES[:6] else observed
    assert found.statistic == pytest.approx(observed)
    assert found.p == pytest.approx(np.mean(np.array(null) >= observed - 1e-9))


def test_the_statistic_is_lambda_weighed_by_students():
    rng = np.random.default_rng(8)
    sheets = [make_sheet(rng, 7, 1.0, drop="a"), make_sheet(rng, 7, 1.0, seed=1)]
    assert stats.permute_sheets(sheets, 99).statistic == pytest.approx(
        stats.measure_influence(sheets, [0, 1]).value
    )


def test_four_animals_give_no_p_and_five_do():
    rng = np.random.default_rng(9)
    assert math.isnan(stats.permute_sheets([make_sheet(rng, 4, 9.0)], 999).p)
    assert stats.permute_sheets([make_sheet(rng, 5, 90.0)], 999).p == pytest.approx(1 / 120)


def test_ties_of_counts_are_broken_by_square_roots():
    """Two orders with the same sum: the one whose roots sum to more counts as more extreme, not both."""
    rng = np.random.default_rng(10)
    values = rng.poisson(0.6, (1, 6, 6)).astype(float)
    sheet = stats.Sheet(values, NAMES[:6], NAMES[:6])
    found = stats.permute_sheets([sheet], 720)
    matrix, roots = values[0], np.sqrt(values[0])
    sums = [
        (matrix[range(6), order].sum(), roots[range(6), order].sum())
        for order in map(list, itertools.permutations(range(6)))
    ]
    own = np.trace(matrix), np.trace(roots)
    more = [first > own[0] or (first == own[0] and second >= own[1] - 1e-9) for first, second in sums]
    assert found.p == np.mean(more)
    assert found.p < np.mean([first >= own[0] for first, _ in sums])


def test_relabelling_animals_and_reordering_sheets_changes_nothing():
    rng = np.random.default_rng(11)
    sheets = [make_sheet(rng, 5, 1.0, seed=seed) for seed in range(2)]
    order = [3, 0, 4, 1, 2]
    renamed = dict(zip("abcde", "vwxyz", strict=True))
    turned = [
        stats.Sheet(
            each.values[:, order][:, :, order[::-1]],
            tuple(renamed[each.students[at]] for at in order),
            tuple(renamed[each.named[at]] for at in order[::-1]),
            each.base,
            each.seed,
        )
        for each in reversed(sheets)
    ]
    here, there = stats.permute_sheets(sheets, 120), stats.permute_sheets(turned, 120)
    assert there.p == here.p
    intervals = [stats.interval_of(stats.measure_influence(each, [0, 1])) for each in (sheets, turned)]
    assert (intervals[0].low, intervals[0].high) == pytest.approx((intervals[1].low, intervals[1].high))


def test_sheets_without_students_or_with_gaps_are_refused():
    rng = np.random.default_rng(12)
    with pytest.raises(ValueError, match="at least 3 students"):
        stats.permute_sheets([make_sheet(rng, 5, drop="abc")], 99)
    broken = make_sheet(rng, 5)
    broken.values[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not numbers"):
        stats.permute_sheets([broken], 99)


# --- intervals --------------------------------------------------------------------------------


def test_one_sheet_without_skewness_gives_a_t_interval_of_the_jackknife():
    """Planted terms -1 0 1 and no noise: the leave-one-out variance less the pairs', a t with k - 2.5."""
    block = np.diag([-2.0, -1.0, 0.0, 1.0, 2.0])[None]
    found = stats.interval_of(stats.measure_influence([stats.Sheet(block, NAMES[:5], NAMES[:5])], [0]))
    left = [stats.transfer_factor(np.delete(np.delete(block[0], a, 0), a, 1)) for a in range(5)]
    variance = 4 / 5 * np.sum((np.array(left) - np.mean(left)) ** 2)
    assert found.freedom == pytest.approx(5 - stats.LOST)
    assert found.error == pytest.approx(math.sqrt(variance))
    assert found.high - found.centre == pytest.approx(student_t.ppf(0.975, 2.5) * found.error)


def test_a_few_strong_animals_widen_the_upper_side():
    block = np.diag([30.0, 2, 1, 0, 0, 0, 0, 0])[None] + np.random.default_rng(13).normal(0, 0.1, (1, 8, 8))
    found = stats.interval_of(stats.measure_influence([stats.Sheet(block, NAMES[:8], NAMES[:8])], [0]))
    assert found.high - found.centre > 2 * (found.centre - found.low)


def test_bases_that_differ_widen_the_interval_and_seeds_of_one_base_are_one_unit():
    rng = np.random.default_rng(14)
    sheets = [make_sheet(rng, 8, t, base=b, seed=s) for b, t in ((0, 0.0), (1, 6.0)) for s in (0, 1)]
    by_base = stats.interval_of(stats.measure_influence(sheets, [each.base for each in sheets]))
    by_seed = stats.interval_of(stats.measure_influence(sheets[:2], [0, 1]))
    assert by_base.units == 2
    assert by_base.error > 3 * by_seed.error


def test_a_pooled_spread_widens_the_interval_of_a_single_base():
    influence = stats.measure_influence([make_sheet(np.random.default_rng(15), 10, 1.0)], [0])
    alone, informed = stats.interval_of(influence), stats.interval_of(influence, stats.Spread(4.0, 5))
    assert informed.error == pytest.approx(math.sqrt(alone.error**2 + 4.0))


def test_no_spread_gives_no_width():
    found = stats.interval_of(
        stats.measure_influence([stats.Sheet(np.zeros((1, 5, 5)), NAMES[:5], NAMES[:5])], [0])
    )
    assert (found.low, found.high, found.error) == (0, 0, 0)


def test_a_joint_band_is_wider_than_its_pointwise_intervals_and_the_same_for_the_same_draws():
    rng = np.random.default_rng(16)
    sheets = [[make_sheet(rng, 12, float(epoch))] for epoch in range(4)]
    influences = [stats.measure_influence(each, [0]) for each in sheets]
    band = stats.joint_band(influences, np.random.default_rng(0))
    again = stats.joint_band(influences, np.random.default_rng(0))
    assert band == again
    for joint, influence in zip(band, influences, strict=True):
        alone = stats.interval_of(influence)
        assert joint.low <= alone.low and alone.high <= joint.high
        assert joint.high - joint.low > 1.05 * (alone.high - alone.low)
