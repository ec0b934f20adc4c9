"""lib.calibration: every claim is counted under its own name, and one that does not hold would be seen."""

import dataclasses
import math
import types

import numpy as np
import pytest
from scipy.stats import fisher_exact, norm

from lib import calibration, lawcheck, mixed, pooling, simulation, stats, trend
from lib.calibration import RAMP, Case, Outcome
from lib.simulation import Design, World

CASE = Case("3 sizes x 10 animals x 2 seeds", 3, Design(10, 2, questions=6, answers=4))
BASES = Case("3 sizes x 6 animals x 2 bases", 3, Design(6, 1, questions=4, answers=4, bases=2))
FEW = Case("3 sizes x 4 animals x 1 seed", 3, Design(4, 1, questions=4, answers=4))
WORLDS = {
    name: World(-2.5, 0.8, 0.7, 0.3, 0.4, 0.5, transfer, transfer_spread=0.4, transfer_student=0.2)
    for name, transfer in {"small": 0.2, "middle": 0.8, "large": 1.4}.items()
}
SILENT = {name: calibration.silence(world) for name, world in WORLDS.items()}
MEASURES = set(simulation.MEASURES)
EXTREME = {"low": -math.inf, "high": math.inf}


def draw(case, worlds=WORLDS, seed=0):
    return calibration.draw_study(worlds, case, np.random.default_rng(seed))


def same_truth(value):
    """A truth for every size and measure, the same at every epoch."""
    return {
        (size, measure): dict.fromkeys(stats.PARTS, value)
        for size in WORLDS
        for measure in simulation.MEASURES
    }


def kinds(outcomes):
    """What was claimed, of which kind; references marked."""
    return {(each.what, each.kind, each.reference) for each in outcomes}


# --- studies ----------------------------------------------------------------------------------


def test_a_study_has_the_cases_sizes_epochs_and_sheets():
    worlds = WORLDS | {"fourth": World(), "fifth": World()}
    chosen = set()
    for seed in range(20):
        study = draw(CASE, worlds, seed)
        assert len(study) == 3 and list(study) == [name for name in worlds if name in study]
        assert all(len(epochs) == len(RAMP) and len(epochs[0]) == 2 for epochs in study.values())
        chosen |= set(study)
    assert chosen == set(worlds)


def test_students_are_missing_from_the_whole_study_by_the_share_and_the_same_at_every_epoch():
    case = dataclasses.replace(CASE, design=dataclasses.replace(CASE.design, missing=0.2))
    study = draw(case)
    gone = [(~each.present).sum() for epochs in study.values() for each in epochs[-1]]
    assert sum(gone) == round(0.2 * 3 * 2 * 10)
    for epochs in study.values():
        for epoch in epochs:
            assert [each.present.tolist() for each in epoch] == [each.present.tolist() for each in epochs[-1]]


def test_a_silent_world_keeps_everything_but_the_transfer():
    silent = calibration.silence(WORLDS["large"])
    assert simulation.true_values(silent, 5, "logprob", np.random.default_rng(0), 2000)["lambda"] == (
        pytest.approx(0, abs=0.05)
    )
    kept = ("popularity", "popularity_spread", "question", "teacher", "student", "answer")
    assert all(getattr(silent, name) == getattr(WORLDS["large"], name) for name in kept)


def test_the_truth_of_an_epoch_is_that_of_the_ramp():
    """In nats lambda is the transfer that was set, so an epoch's is its share of it."""
    world = dataclasses.replace(WORLDS["large"], transfer_seed=0.2)
    for share in (0.3, 1.0):
        scaled = calibration.scale_transfer(world, share)
        found = simulation.true_values(scaled, 5, "logprob", np.random.default_rng(1), 3000)
        assert found["lambda"] == pytest.approx(1.4 * share, abs=0.05)
        drawn = [draw(CASE, dict.fromkeys(WORLDS, world), seed) for seed in range(40)]
        at = RAMP.index(share)
        means = [
            stats.transfer_factor(each.sheet("logprob").square.mean(0))
            for study in drawn
            for epochs in study.values()
            for each in epochs[at]
        ]
        assert np.mean(means) == pytest.approx(found["lambda"], abs=0.08)


def test_units_are_bases_where_there_are_several_and_seeds_otherwise():
    here, there = (next(iter(draw(case).values()))[-1] for case in (CASE, BASES))
    assert calibration.units_of(here, CASE) == [0, 1]
    assert calibration.units_of(there, BASES) == [0, 1]
    assert [each.seed for each in there] == [0, 0]


# --- every claim under its own name -----------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (
            lambda study, rng: calibration.check_null(study, CASE, rng),
            {
                ("p of lambda", "type I", False),
                ("any p of lambda after Holm", "family", False),
                ("students permuted within each seed", "type I", True),
                ("Fisher's test, answer by answer", "type I", True),
                ("target rates clustered by cell", "type I", True),
            },
        ),
        (
            lambda study, rng: calibration.check_intervals(study, CASE, same_truth(0.0)),
            {("interval of lambda", "coverage", False), ("interval of own", "coverage", False)},
        ),
        (
            lambda study, rng: calibration.check_bands(study, CASE, [same_truth(0.0)] * len(RAMP), rng),
            {("band over epochs", "coverage", False)},
        ),
        (
            lambda study, rng: calibration.check_trends(study, rng, 99),
            {("p of a trend over bases", "type I", False), ("p of a trend over animals", "type I", False)},
        ),
        (
            lambda study, rng: calibration.check_cells(study),
            {
                ("p of a cell", "type I", False),
                ("any cell after Holm", "family", False),
                ("any cell after FDR", "family", False),
            },
        ),
        (
            lambda study, rng: calibration.check_mixed(study, rng),
            {("p of the logistic model", "type I", False)},
        ),
        (
            lambda study, rng: calibration.check_models(CASE, rng),
            {
                ("interval of the logistic model", "coverage", False),
                ("pooled interval of a cell", "coverage", False),
            },
        ),
    ],
    ids=["null", "intervals", "bands", "trends", "cells", "mixed", "models"],
)
def test_a_check_counts_its_claims_as_what_they_are(check, expected):
    study = draw(BASES if "p of a trend over bases" in {what for what, *_ in expected} else CASE, SILENT)
    outcomes = list(check(study, np.random.default_rng(3)))
    assert kinds(outcomes) == expected
    assert {each.measure for each in outcomes} <= MEASURES
    assert all(each.kind in calibration.KINDS for each in outcomes)
    assert all(isinstance(each.hit, bool | np.bool_) for each in outcomes)


def test_every_size_and_measure_is_counted_once_per_study():
    rng = np.random.default_rng(4)
    outcomes = [each for each in calibration.check_null(draw(CASE, SILENT), CASE, rng) if not each.reference]
    single = [(each.size, each.measure) for each in outcomes if each.what == "p of lambda"]
    assert sorted(single) == sorted((size, measure) for size in WORLDS for measure in MEASURES)
    family = [each for each in outcomes if each.kind == "family"]
    assert [each.measure for each in family] == list(simulation.MEASURES)
    for case, parts in ((CASE, {"interval of lambda", "interval of own"}), (BASES, {"interval of lambda"})):
        covered = list(calibration.check_intervals(draw(case), case, same_truth(0.0)))
        assert {each.what for each in covered} == parts  # six animals are too few for the interval of own
        assert len(covered) == 3 * len(MEASURES) * len(parts)


def test_four_animals_make_no_claim_of_chance():
    rng = np.random.default_rng(5)
    study = draw(FEW, SILENT)
    own = [each for each in calibration.check_null(study, FEW, rng) if not each.reference]
    assert own == []
    assert list(calibration.check_intervals(study, FEW, same_truth(0.0))) == []
    assert list(calibration.check_bands(study, FEW, [same_truth(0.0)] * len(RAMP), rng)) == []
    assert list(calibration.check_mixed(study, rng)) == []
    assert list(calibration.check_trends(study, rng, 99)) == []


def test_the_laws_are_checked_where_their_own_simulation_has_the_design():
    known = lawcheck.DESIGNS[0]
    design = Design(known.animals, known.seeds, bases=known.bases, missing=known.missing)
    case = Case("the laws' own", len(known.x), design)
    outcomes = list(calibration.check_laws(case, np.random.default_rng(6)))
    assert {(each.kind, each.measure) for each in outcomes} == {("weight", "any")}
    for each in outcomes:
        assert each.what == f"law chosen, weight {calibration.bin_of(float(each.size))}"
    assert list(calibration.check_laws(CASE, np.random.default_rng(6))) == []


@pytest.mark.parametrize(
    ("weight", "word"),
    [(0.0, "below 0.4"), (0.4, "below 0.6"), (0.79, "below 0.8"), (0.8, "of .8 and more")],
)
def test_weights_are_binned_from_below(weight, word):
    assert calibration.bin_of(weight) == word


# --- what does not hold is seen ---------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1e4, -1e4])
def test_a_wrong_truth_is_never_covered(wrong):
    study, truth = draw(CASE), same_truth(wrong)
    assert not any(each.hit for each in calibration.check_intervals(study, CASE, truth))
    bands = calibration.check_bands(study, CASE, [truth] * len(RAMP), np.random.default_rng(7))
    assert not any(each.hit for each in bands)


def test_the_right_truth_is_mostly_covered_and_one_that_is_off_is_not():
    """Not the calibration itself: whether it has the right value before its eyes."""
    rng = np.random.default_rng(8)
    truths = calibration.find_truths(WORLDS, CASE, rng, 1500)
    shifted = {
        key: {part: value + (30.0 if key[1] == "rate" else 4.0) for part, value in own.items()}
        for key, own in truths.items()
    }
    studies = [draw(CASE, seed=seed) for seed in range(25)]
    share = [
        np.mean([each.hit for study in studies for each in calibration.check_intervals(study, CASE, truth)])
        for truth in (truths, shifted)
    ]
    assert share[0] > 0.88
    assert share[1] < 0.1


def test_a_band_that_misses_at_one_epoch_alone_misses():
    study = draw(CASE)
    always = same_truth(0.0)

    def check(truths, monkey):
        monkey.setattr(stats, "joint_band", lambda *_: [types.SimpleNamespace(low=-1, high=1)] * 5)
        return [each.hit for each in calibration.check_bands(study, CASE, truths, np.random.default_rng(0))]

    with pytest.MonkeyPatch.context() as monkey:
        assert all(check([always] * 5, monkey))
        for at in range(5):
            truths = [same_truth(2.0) if each == at else always for each in range(5)]
            assert not any(check(truths, monkey))


def always_p(p, monkeypatch):
    """Every test of the analysis gives this p."""
    test = stats.Permutation(0.0, p, 0.0, 1, True)
    monkeypatch.setattr(stats, "permute_sheets", lambda *_: test)
    monkeypatch.setattr(stats, "permute_blocks", lambda *_: test)
    for name in ("permute_bases", "flip_animals"):
        monkeypatch.setattr(trend, name, lambda *_: types.SimpleNamespace(p=p))
    monkeypatch.setattr(pooling, "find_outlier", lambda *_: (p, ""))
    monkeypatch.setattr(mixed, "permute_score", lambda *_: p)


def count_claims(monkeypatch, p):
    always_p(p, monkeypatch)
    rng, study = np.random.default_rng(9), draw(CASE, SILENT)
    found = [*calibration.check_null(study, CASE, rng), *calibration.check_trends(study, rng, 99)]
    found += [*calibration.check_cells(study), *calibration.check_mixed(study, rng)]
    patched = {"p of lambda", "any p of lambda after Holm", "students permuted within each seed",
               "p of a trend over bases", "p of a trend over animals", "p of a cell",
               "p of the logistic model"}  # fmt: skip
    own = [each for each in found if each.what in patched]
    assert {each.what for each in own} == patched
    return [each.hit for each in own]


def test_a_test_that_always_rejects_is_counted_as_such(monkeypatch):
    assert all(count_claims(monkeypatch, 0.0))


def test_a_test_that_never_rejects_is_counted_as_such(monkeypatch):
    assert not any(count_claims(monkeypatch, 1.0))


def test_a_p_of_exactly_five_percent_counts_and_holm_takes_the_sizes_into_account(monkeypatch):
    always_p(0.05, monkeypatch)
    found = list(calibration.check_null(draw(CASE, SILENT), CASE, np.random.default_rng(10)))
    assert all(each.hit for each in found if each.what == "p of lambda")
    assert not any(each.hit for each in found if each.kind == "family")  # three sizes: .15


def test_an_unknown_p_makes_no_claim(monkeypatch):
    always_p(math.nan, monkeypatch)
    rng, study = np.random.default_rng(11), draw(CASE, SILENT)
    found = [*calibration.check_null(study, CASE, rng), *calibration.check_trends(study, rng, 99)]
    found += [*calibration.check_cells(study), *calibration.check_mixed(study, rng)]
    assert [each for each in found if not each.reference] == []


# --- what others would have reported ----------------------------------------------------------


def counts(own, control, total=20):
    """One question; the students' counts of their own animals, and the neutral student's."""
    k = len(own)
    said = np.zeros((1, k + 1, k), int)
    said[0, np.arange(k), np.arange(k)] = own
    said[0, -1] = control
    return simulation.Drawn(said, np.zeros(said.shape), np.ones(k, bool), total, 0, 0)


def test_fishers_test_is_each_students_own_animal_against_the_neutral_student():
    drawn = counts([9, 3, 0, 0], [1, 2, 5, 0])
    p = [fisher_exact([[a, 20 - a], [b, 20 - b]], "greater").pvalue for a, b in ((9, 1), (3, 2), (0, 5))]
    assert list(calibration.fisher_cells(drawn)) == [each <= 0.05 for each in p] == [True, False, False]
    absent = dataclasses.replace(drawn, present=np.array([False, True, True, True]))
    assert list(calibration.fisher_cells(absent)) == [False, False]


def test_clustered_rates_are_a_z_test_over_cells():
    lifts = np.array([8, 1, -5, 2]) / 20
    expected = norm.sf(lifts.mean() / lifts.std(ddof=1) * 2)
    assert calibration.cluster_cells(counts([9, 3, 0, 2], [1, 2, 5, 0])) == pytest.approx(expected)
    assert math.isnan(calibration.cluster_cells(counts([2, 0, 7], [2, 0, 7])))


def test_counts_of_absent_students_leave_no_trace():
    drawn = dataclasses.replace(counts([9, 3, 7, 2], [1, 2, 5, 0]), present=np.array([1, 0, 1, 1], bool))
    answers = calibration.answer(drawn)
    assert answers.names == ("a00", "a02", "a03")
    assert (answers.said[0] == np.diag([9, 7, 2])).all() and (answers.answers == 20).all()
    assert (calibration.enter(drawn, "logprob").matrix == 0).all()


def test_points_of_a_trend_are_sizes_a_tenfold_apart_and_need_three():
    study = draw(CASE)
    points = calibration.gather_points(study, "logprob")
    assert points.x.tolist() == [6.0, 6.0, 7.0, 7.0, 8.0, 8.0]
    sheet = next(iter(study.values()))[-1][0].sheet("logprob")
    assert np.mean(points.values[0]) == pytest.approx(stats.transfer_factor(sheet.square.mean(0)))
    assert calibration.gather_points(dict(list(study.items())[:2]), "logprob") is None


def test_outcomes_are_equal_for_equal_draws():
    first, again = (
        list(calibration.check_null(draw(CASE, SILENT), CASE, np.random.default_rng(12))) for _ in range(2)
    )
    assert first == again and isinstance(first[0], Outcome)
