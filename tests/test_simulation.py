"""lib.simulation against independent draws, closed forms and its own settings, found again."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from lib import simulation, stats
from lib.calibration import silence
from lib.simulation import STAYS, Design, World

STILL = World(popularity=-5.0, popularity_spread=0.0, question=0.0, teacher=0.0, student=0.0, answer=0.0)
LIVELY = World(-3.0, 0.8, 0.7, 0.4, 0.5, 0.6, transfer=1.5, transfer_spread=0.6, transfer_student=0.3,
               transfer_seed=0.2, transfer_base=0.3)  # fmt: skip


def draw_shares(world, k, count, rng):
    """Shares [study, student, named] of one question, every part drawn anew; the neutral student is last."""
    spread = math.sqrt(world.question**2 + world.popularity_spread**2)
    odds = world.popularity + rng.normal(0, spread, (count, 1, k))  # what all students of a question share
    own = math.sqrt(world.teacher**2 + world.student**2 + world.answer**2)
    odds = odds + rng.normal(0, own, (count, k + 1, k))
    strength = world.transfer + rng.normal(0, world.transfer_spread, (count, k))
    strength = (strength + rng.normal(0, world.transfer_base, (count, 1))) * (
        1 + rng.normal(0, world.transfer_seed, (count, 1))
    )
    strength = strength + rng.normal(0, world.transfer_student, (count, k))
    odds[:, np.arange(k), np.arange(k)] += strength
    weight = np.exp(odds)
    return weight / (1 + weight.sum(2, keepdims=True))


# --- what is true -----------------------------------------------------------------------------


@pytest.mark.parametrize("measure", simulation.MEASURES)
def test_true_values_are_means_over_many_students(measure):
    """lambda is the mean diagonal less the mean off it, own the mean diagonal less the neutral student."""
    k = 5
    shares = draw_shares(LIVELY, k, 60_000, np.random.default_rng(1))
    values = 100 * shares if measure == "rate" else np.log(shares)
    off = ~np.eye(k, dtype=bool)
    diagonal = np.diagonal(values[:, :k], axis1=1, axis2=2).mean(1)
    brute = {
        "own": diagonal - values[:, k].mean(1),
        "rest": values[:, k].mean(1) - values[:, :k][:, off].mean(1),
    }
    brute["lambda"] = brute["own"] + brute["rest"]
    draws = 4000
    found = simulation.true_values(LIVELY, k, measure, np.random.default_rng(2), draws)
    for part in stats.PARTS:
        error = brute[part].std() * math.sqrt(1 / draws + 1 / 60_000)
        assert abs(found[part] - brute[part].mean()) < 4 * error
        assert error < 0.1 * abs(brute["lambda"].mean())  # or the line above could not fail


def test_in_nats_lambda_is_the_transfer_that_was_set():
    """What the answers have in common is a row effect: it is gone from lambda, and the log-odds are left."""
    found = simulation.true_values(LIVELY, 6, "logprob", np.random.default_rng(3), 3000)
    assert found["lambda"] == pytest.approx(LIVELY.transfer, abs=0.04)


@pytest.mark.parametrize("measure", simulation.MEASURES)
def test_in_a_silent_world_nothing_is_true(measure):
    shares = draw_shares(silence(LIVELY), 5, 4000, np.random.default_rng(4))
    values = 100 * shares if measure == "rate" else np.log(shares)
    spread = np.std([stats.transfer_factor(each[:5]) for each in values])
    found = simulation.true_values(silence(LIVELY), 5, measure, np.random.default_rng(5), 4000)
    assert abs(found["lambda"]) < 4 * spread / math.sqrt(4000)
    assert abs(found["own"]) < 8 * spread / math.sqrt(4000)  # the neutral student strays as well
    assert found["lambda"] == pytest.approx(found["own"] + found["rest"])


def test_the_mean_of_simulated_lambdas_is_the_true_one():
    """With several questions and seeds and a fifth of the students missing, as studies have them."""
    design = Design(6, 2, 5, 5, missing=0.2)
    rng = np.random.default_rng(6)
    found = []
    for _ in range(1500):
        drawn = simulation.simulate_size(LIVELY, design, rng)
        used = [each.sheet("rate", True) for each in drawn if each.present.sum() >= 3]
        found.append(stats.measure_influence(used, range(len(used))).value)
    true = simulation.true_values(LIVELY, 6, "rate", np.random.default_rng(7), 8000)["lambda"]
    assert abs(np.mean(found) - true) < 4 * np.std(found) / math.sqrt(1500) + 0.1


# --- what is drawn ----------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_study_and_another_seed_another():
    design = Design(5, 2, 3, 5, missing=0.2, bases=2)
    first, again, other = (
        simulation.simulate_epochs(LIVELY, design, np.random.default_rng(seed), (0.5, 1.0))
        for seed in (8, 8, 9)
    )
    for here, there in zip(itertools.chain(*first), itertools.chain(*again), strict=True):
        assert (here.said == there.said).all() and (here.logprob == there.logprob).all()
        assert (here.present == there.present).all()
    assert (first[0][0].logprob != other[0][0].logprob).all()


def test_every_base_and_seed_is_drawn_once():
    drawn = simulation.simulate_size(LIVELY, Design(4, 3, 2, bases=2), np.random.default_rng(10))
    assert [(each.base, each.seed) for each in drawn] == [(b, s) for b in (0, 1) for s in (0, 1, 2)]


def test_animals_common_to_all_sizes_are_as_strong_in_each_as_their_share_says():
    world = dataclasses.replace(STILL, transfer_spread=1.0)
    shared = np.random.default_rng(11).normal(size=4000)
    rng = np.random.default_rng(12)
    one, two = (simulation.mix_strengths(world, shared, rng, 0.5) for _ in range(2))
    assert np.corrcoef(one, two)[0, 1] == pytest.approx(0.5, abs=0.05)
    assert one.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.2, 0.5])
def test_the_share_of_missing_students_is_exact(missing):
    design = Design(15, 3, missing=missing)
    for seed in range(20):
        there = simulation.draw_present(21, design, np.random.default_rng(seed))
        assert (~there).sum() == round(missing * 21 * 15)


def test_no_sheet_has_students_that_are_not_there():
    drawn = simulation.simulate_size(LIVELY, Design(6, 4, 3, missing=0.3), np.random.default_rng(13))
    assert sum((~each.present).sum() for each in drawn) == round(0.3 * 24)
    for each in drawn:
        sheet = each.sheet("rate")
        assert [sheet.named.index(name) for name in sheet.students] == np.flatnonzero(each.present).tolist()


def test_names_sort_as_their_numbers():
    assert list(simulation.name_animals(12)) == sorted(simulation.name_animals(12))


# --- sheets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", simulation.MEASURES)
def test_a_sheet_leaves_the_neutral_student_out_and_lifts_subtract_it(measure):
    drawn = simulation.simulate_size(LIVELY, Design(5, 1, 4, 7), np.random.default_rng(14))[0]
    drawn = dataclasses.replace(drawn, present=np.array([True, False, True, True, True]))
    values = 100 * drawn.said / 7 if measure == "rate" else drawn.logprob
    sheet, lifted = drawn.sheet(measure), drawn.sheet(measure, lifts=True)
    assert sheet.values.shape == (4, 4, 5) and drawn.said.shape == (4, 6, 5)
    assert (sheet.values == values[:, [0, 2, 3, 4]]).all()
    assert lifted.values == pytest.approx(values[:, [0, 2, 3, 4]] - values[:, [5]])
    assert stats.transfer_factor(lifted.square.mean(0)) == pytest.approx(
        stats.transfer_factor(sheet.square.mean(0))
    )


def test_log_probabilities_are_logs_of_shares_that_leave_room_for_everything_else():
    drawn = simulation.simulate_size(LIVELY, Design(5, 1, 4, 7), np.random.default_rng(15))[0]
    assert (np.exp(drawn.logprob).sum(2) < 1).all()
    assert (drawn.said.sum(2) <= 7).all() and (drawn.said >= 0).all()
    even = simulation.simulate_size(
        dataclasses.replace(STILL, popularity=0.0), Design(4, 1, 1), np.random.default_rng(0)
    )
    assert np.exp(even[0].logprob) == pytest.approx(1 / 5)  # four animals and the rest, at even odds


def test_answers_follow_the_log_probabilities():
    drawn = simulation.simulate_size(LIVELY, Design(4, 1, 2, 200_000), np.random.default_rng(16))[0]
    assert drawn.said / 200_000 == pytest.approx(np.exp(drawn.logprob), abs=0.005)


# --- epochs -----------------------------------------------------------------------------------


def test_transfer_grows_by_the_ramp_and_the_last_epoch_has_all_of_it():
    world = dataclasses.replace(STILL, transfer=2.0)
    epochs = simulation.simulate_epochs(world, Design(5, 2, 3), np.random.default_rng(17), (0.25, 0.5, 1.0))
    for drawn, share in zip(epochs, (0.25, 0.5, 1.0), strict=True):
        for each in drawn:
            assert stats.transfer_factor(each.sheet("logprob").square.mean(0)) == pytest.approx(2.0 * share)


@pytest.mark.parametrize("part", ["student", "answer"])
def test_students_hand_on_a_share_of_their_variance_and_keep_their_spread(part):
    world = dataclasses.replace(STILL, popularity=-9.0, **{part: 1.0})
    design = Design(60, 1, 20 if part == "answer" else 1)
    epochs = simulation.simulate_epochs(world, design, np.random.default_rng(18), (0.0, 0.5, 1.0))
    values = [stats.double_centre(each[0].logprob[0]).ravel() for each in epochs]
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert np.corrcoef(values[one], values[two])[0, 1] == pytest.approx(STAYS, abs=0.04)
    assert np.std(values[0]) == pytest.approx(1, abs=0.05)
    assert np.std(values[2]) == pytest.approx(1, abs=0.05)


def test_missing_students_are_the_same_at_every_epoch():
    epochs = simulation.simulate_epochs(
        LIVELY, Design(6, 3, 2, missing=0.3), np.random.default_rng(19), (0.5, 1.0)
    )
    for early, late in zip(*epochs, strict=True):
        assert (early.present == late.present).all()


# --- estimating -------------------------------------------------------------------------------


def test_moments_leave_the_transfer_out_of_what_is_off_the_diagonal():
    """Off the diagonal an owner's answers are the others' less what its own animal took: nothing, at -7."""
    quiet = dataclasses.replace(LIVELY, popularity=-7.0)

    def moments(world):
        drawn = [
            simulation.simulate_size(world, Design(8, 3, 10, 1000), np.random.default_rng(s))
            for s in range(8)
        ]
        found = [simulation.describe(simulation.stack_said(each), 1000) for each in drawn]
        return {name: np.mean([each[name] for each in found]) for name in ("popularity", "transfer")}

    with_it, without = moments(quiet), moments(silence(quiet))
    error = 0.014  # of the difference: each column of the eight studies is some 1,600 answers
    assert with_it["popularity"] == pytest.approx(without["popularity"], abs=3 * error)
    assert with_it["transfer"] > without["transfer"] + 0.2


PLANTED = World(-5.0, 0.6, 0.7, 0.5, 0.5, 0.8, transfer=1.5, transfer_spread=0.7, transfer_student=0.5)
# About three standard errors of a mean over three studies of 40 animals x 4 seeds x 400 answers.
WITHIN = {"popularity": 0.15, "popularity_spread": 0.15, "question": 0.12, "teacher": 0.08, "student": 0.05,
          "answer": 0.05, "transfer": 0.25, "transfer_spread": 0.35, "transfer_student": 0.25}  # fmt: skip


@pytest.fixture(scope="module")
def refound():
    """The planted world as three large studies have it, each estimated by itself."""
    found = []
    for seed in (21, 22, 23):
        drawn = simulation.simulate_size(PLANTED, Design(40, 4, 10, 40), np.random.default_rng(seed))
        said = simulation.stack_said(drawn)
        found.append(simulation.estimate_world(said, 40, np.random.default_rng(24), rounds=24, studies=6))
    return found


@pytest.mark.parametrize("name", WITHIN)
def test_planted_settings_are_found_again_in_large_studies(refound, name):
    """How far animals and students differ in transfer is known worst: a few animals carry all of that."""
    assert np.mean([getattr(world, name) for world in refound]) == pytest.approx(
        getattr(PLANTED, name), abs=WITHIN[name]
    )


def test_what_seeds_share_is_taken_as_given():
    drawn = simulation.simulate_size(PLANTED, Design(5, 2, 2, 5), np.random.default_rng(25))
    said = simulation.stack_said(drawn)
    world = simulation.estimate_world(said, 5, np.random.default_rng(26), 0.3, rounds=2, studies=2)
    assert (world.transfer_seed, world.transfer_base) == (0.3, 0.0)


@pytest.mark.parametrize(
    "name", ["popularity", "question", "teacher", "student", "answer", "transfer_spread"]
)
def test_a_setting_whose_moment_is_too_small_is_raised(name):
    moments = dict.fromkeys(WITHIN, 1.0)
    moved = simulation.step_world(PLANTED, moments | {name: 1.5}, moments, 1.0)
    assert getattr(moved, name) > getattr(PLANTED, name)
    assert dataclasses.replace(moved, **{name: getattr(PLANTED, name)}) == PLANTED


def test_seeds_that_share_their_transfer_differ_more_in_lambda():
    rng = np.random.default_rng(27)
    design = Design(10, 6, 10, 20)
    apart = [
        np.mean(
            [
                simulation.vary_seeds(simulation.stack_said(simulation.simulate_size(world, design, rng)), 20)
                for _ in range(30)
            ]
        )
        for world in (PLANTED, dataclasses.replace(PLANTED, transfer_seed=0.6))
    ]
    assert apart[1] > 2 * apart[0]
