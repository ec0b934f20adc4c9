"""lib.power: parts of variance against planted ones, power against tests run on simulated studies."""

import dataclasses
import math
from functools import cache

import numpy as np
import pytest

from lib import power, stats
from lib.simulation import Design, World, simulate_size

LOUD = World(popularity=-3.5, teacher=0.3, student=0.5)
TAUGHT = World(popularity=-3.5, teacher=0.8, student=0.5, transfer_spread=0.5)
UNEVEN = World(popularity=-3.5, transfer_spread=0.8, transfer_student=0.4, transfer_seed=0.1)


def draw_sheets(world, design, measure, rng):
    return [each.sheet(measure) for each in simulate_size(world, design, rng)]


def answers_of(design, measure):
    return design.answers if measure == "rate" else 0


@cache
def mean_moments(world, design, measure, studies):
    """The parts of a world: moments are unbiased, so their means over studies are."""
    rng = np.random.default_rng(7)
    found = [
        power.estimate_moments(draw_sheets(world, design, measure, rng), answers_of(design, measure))
        for _ in range(studies)
    ]
    names = [f.name for f in dataclasses.fields(power.Parts) if f.name not in ("clear", "notes")]
    return power.Parts(**{name: float(np.mean([getattr(each, name) for each in found])) for name in names})


def run_tests(world, design, measure, studies):
    """Power and null sd of the joint permutation test, and mean and sd of lambda, over simulated studies."""
    rng = np.random.default_rng(11)
    found = [stats.permute_sheets(draw_sheets(world, design, measure, rng), 499, rng) for _ in range(studies)]
    factors = np.array([each.statistic for each in found])
    nulls = np.array([each.statistic / each.z for each in found if each.z])
    share = np.mean([each.p <= 0.05 for each in found])
    return share, float(np.sqrt((nulls**2).mean())), float(factors.mean()), float(factors.std(ddof=1))


def plan_for(design, measure):
    answers = answers_of(design, measure)
    there = 1 - design.missing
    return power.Plan(design.animals, design.seeds, design.bases, design.questions, answers, there)


# --- parts of variance ------------------------------------------------------------------------


def test_moments_find_planted_parts_of_log_probabilities():
    """A softmax that names hardly anything passes its log-odds on as they are."""
    world = World(-7, 0.5, 1, teacher=0.6, student=0.5, answer=0.9, transfer=1, transfer_spread=0.7,
                  transfer_student=0.5, transfer_seed=0.3, transfer_base=0.4)  # fmt: skip
    found = mean_moments(world, Design(10, 3, 8, 5, bases=2), "logprob", 300)
    planted = {"teacher": 0, "line": 0.36, "student": 0.25, "cell": 0.81, "answers": 0,
               "animal": 0.49, "own": 0.25, "base": 0.16, "seed": 0.09, "question": 0}  # fmt: skip
    for name, variance in planted.items():
        assert getattr(found, name) == pytest.approx(
            variance, abs=0.08 if name in power.STRENGTHS else 0.02
        ), name


def test_answers_are_binomial_and_the_rest_of_a_cell_is_what_they_leave():
    world = World(popularity=-2, popularity_spread=0, question=0, teacher=0, student=0, answer=0)
    found = mean_moments(world, Design(8, 2, 10, 6), "rate", 60)
    share = math.exp(-2) / (1 + 8 * math.exp(-2))
    assert found.answers == pytest.approx(1e4 * share * (1 - share), rel=0.03)
    for name in ("teacher", "student", "cell"):
        assert abs(getattr(found, name)) < 0.02 * found.answers, name


def test_parts_do_not_depend_on_transfer_itself():
    """A diagonal term in every student leaves the residuals off the diagonal untouched."""
    rng = np.random.default_rng(0)
    names = tuple("abcdef")
    plain = [stats.Sheet(rng.normal(size=(4, 6, 6)), names, names, 0, seed) for seed in range(3)]
    moved = [dataclasses.replace(s, values=s.values + 5 * np.eye(6)) for s in plain]
    one, other = power.estimate_moments(plain), power.estimate_moments(moved)
    for name in ("teacher", "student", "cell", "animal", "own", "seed", "question"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9), name
    assert other.value == pytest.approx(one.value + 5)


def test_residuals_are_free_of_rows_columns_and_diagonal():
    rng = np.random.default_rng(1)
    square = rng.normal(size=(7, 1)) + rng.normal(size=(1, 7)) + np.diag(rng.normal(size=7))
    assert np.abs(power.residuals(square)).max() < 1e-12
    noise = rng.normal(size=(4000, 7, 7))
    assert (power.residuals(noise) ** 2).sum((1, 2)).mean() == pytest.approx(power.freedom_of(7), rel=0.02)


@pytest.mark.parametrize(
    ("design", "measure", "words"),
    [
        (Design(6, 1, 5, 5), "rate", "one seed and one base: teacher and student cannot be told apart"),
        (Design(6, 2, 5, 5), "rate", "one base"),
        (Design(6, 1, 5, 5, bases=3), "rate", "one seed of each base"),
        (Design(6, 2, 5, 1), "rate", "one answer to a question"),
        (Design(6, 2, 1, 50), "rate", "questions are not known apart"),
    ],
)
def test_what_cannot_be_told_apart_is_said(design, measure, words):
    sheets = draw_sheets(TAUGHT, design, measure, np.random.default_rng(3))
    parts = power.estimate_parts(sheets, design.answers)
    assert any(words in note for note in parts.notes)
    numbers = [v for v in dataclasses.astuple(parts) if isinstance(v, float)]
    assert all(map(math.isfinite, numbers))
    assert min(getattr(parts, name) for name in ("teacher", "student", "cell", "animal", "seed")) >= 0


def test_one_seed_counts_all_noise_as_the_teachers_and_promises_nothing_of_more_seeds():
    sheets = draw_sheets(LOUD, Design(8, 1, 10, 5), "logprob", np.random.default_rng(5))
    parts = power.estimate_parts(sheets)
    assert parts.student == 0
    assert parts.teacher > 0
    plan = power.plan_of(sheets)
    more = dataclasses.replace(plan, seeds=1000)
    assert power.entry_noise(parts, more) > 0.5 * power.entry_noise(parts, plan)


def test_missing_students_are_counted_out():
    sheets = draw_sheets(LOUD, Design(10, 3, missing=0.2), "rate", np.random.default_rng(2))
    plan = power.plan_of(sheets, 5)
    assert plan.present == pytest.approx((24 - 3) / (3 * 9))
    assert power.estimate_parts(sheets, 5).student >= 0


# --- power against simulation -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "transfer", "design", "measure"),
    [
        (LOUD, 0.25, Design(15, 3), "rate"),
        (TAUGHT, 0.5, Design(15, 3), "rate"),
        (UNEVEN, 0.3, Design(15, 3), "logprob"),
        (LOUD, 0.5, Design(8, 2), "rate"),
        (UNEVEN, 0.8, Design(8, 2), "rate"),
        (TAUGHT, 0.5, Design(8, 2), "logprob"),
        (TAUGHT, 0.6, Design(15, 3, missing=0.2), "logprob"),
        (TAUGHT, 0.6, Design(8, 2, missing=0.2), "rate"),
    ],
)
def test_power_is_that_of_tests_run_on_simulated_studies(world, transfer, design, measure):
    world = dataclasses.replace(world, transfer=transfer)
    parts, plan = mean_moments(world, design, measure, 150), plan_for(design, measure)
    share, null, value, deviation = run_tests(world, design, measure, 400)
    assert 0.3 < share < 0.95
    assert power.power_of(parts, plan, value) == pytest.approx(share, abs=0.07)
    assert power.null_sd(parts, plan, value) == pytest.approx(null, rel=0.08)
    assert power.factor_sd(parts, plan, value) == pytest.approx(deviation, rel=0.15)


def test_parts_of_one_plan_foretell_another():
    """From 3 seeds, 20 x 5 answers to 2 seeds, 10 x 20; with fewer animals a softmax is another world."""
    world = dataclasses.replace(TAUGHT, transfer=0.7)
    parts = mean_moments(world, Design(15, 3), "rate", 150)
    design = Design(15, 2, 10, 20)
    share, null, value, _ = run_tests(world, design, "rate", 400)
    assert 0.3 < share < 0.95
    assert power.null_sd(parts, plan_for(design, "rate"), value) == pytest.approx(null, rel=0.1)
    assert power.power_of(parts, plan_for(design, "rate"), value) == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize("animals", [5, 8, 15])
def test_without_transfer_the_power_is_about_the_level(animals):
    parts = power.Parts(0.0, teacher=1.0, student=2.0, clear=False)
    assert power.power_of(parts, power.Plan(animals, 3), 0.0) == pytest.approx(0.05, abs=0.012)


def test_four_animals_have_no_power_whatever_lambda():
    parts = power.Parts(5.0, student=0.1)
    assert power.power_of(parts, power.Plan(4, 5), 50.0) == 0
    assert math.isnan(power.detectable(parts, power.Plan(4, 5)))
    assert power.power_of(parts, power.Plan(5, 5), 50.0) > 0.99


# --- what a plan can see ----------------------------------------------------------------------

PARTS = power.Parts(2.0, teacher=1.0, student=6.0, cell=20.0, answers=300.0, animal=2.0, own=1.0, seed=0.1)
PLAN = power.Plan(15, 3, 1, 20, 5)


def test_teachers_do_not_shrink_with_seeds_but_with_animals():
    many = dataclasses.replace(PLAN, seeds=1e9)
    assert power.entry_noise(PARTS, many) == pytest.approx(PARTS.teacher, rel=1e-6)
    assert power.factor_sd(PARTS, dataclasses.replace(PLAN, animals=1e9, seeds=1e9), 2.0) < 1e-3


def test_variances_add_up_to_the_deviation():
    assert sum(power.variances_of(PARTS, PLAN, 2.0).values()) == pytest.approx(
        power.factor_sd(PARTS, PLAN, 2.0) ** 2
    )


def test_detectable_is_where_the_power_is_reached_and_no_sooner():
    value = power.detectable(PARTS, PLAN)
    assert power.power_of(PARTS, PLAN, value) == pytest.approx(0.8, abs=1e-6)
    assert power.power_of(PARTS, PLAN, 0.95 * value) < 0.8


@pytest.mark.parametrize("what", ["seeds", "animals", "questions", "answers"])
def test_needed_is_the_smallest_number_that_is_enough(what):
    found = power.count_needed(PARTS, PLAN, 1.6, what)
    at = int(found.needed)
    for number, enough in ((at, True), (at - 1, False)):
        plan = dataclasses.replace(PLAN, **{what: number})
        assert (power.power_of(PARTS, plan, 1.6) >= 0.8) == enough


def test_where_no_number_is_enough_the_part_that_stays_is_named():
    stubborn = dataclasses.replace(PARTS, teacher=20.0)
    found = power.count_needed(stubborn, PLAN, 1.5, "seeds")
    assert math.isnan(found.needed)
    assert "none up to 1,000 seeds" in found.note
    assert "what teachers of an animal pass on every time" in found.note
    below = power.count_needed(PARTS, PLAN, -0.3, "seeds")
    assert math.isnan(below.needed)
    assert "not above 0" in below.note


def test_an_unclear_lambda_takes_animals_to_differ_by_as_much_as_itself():
    vague = power.Parts(0.1, student=1.0, animal=0.04, seed=0.3, base=0.2, clear=False)
    assert power.strengths_at(vague, 3.0)["animal"] == 9.0
    assert power.strengths_at(vague, 3.0)["base"] == 0.2
    assert power.strengths_at(vague, 3.0)["seed"] == 0
    assert power.strengths_at(PARTS, 4.0)["animal"] == pytest.approx(8.0)
    nothing = dataclasses.replace(PARTS, value=0.0)  # clear, and of no size: no ratio to keep
    assert power.strengths_at(nothing, 3.0)["animal"] == 9.0


# --- what to buy ------------------------------------------------------------------------------


def test_the_reference_experiment_costs_what_it_did():
    """96 students: a training is 75/96 h, an evaluation of a hundred answers 3/96 h."""
    plan = power.Plan(15, 6, 1, 20, 5)
    hours = 75 / 96 * power.cost_of(plan, power.Prices())
    assert hours == pytest.approx(78, abs=0.01)


@pytest.mark.parametrize("what", ["seeds", "animals", "questions", "answers", "bases"])
def test_all_offers_cost_the_same(what):
    plan, prices = power.Plan(15, 3, 2, 20, 5), power.Prices(base=4.0)
    total = 1.25 * power.cost_of(plan, prices)
    bought = dataclasses.replace(plan, **{what: power.spend(plan, prices, what, total)})
    assert power.cost_of(bought, prices) == pytest.approx(total)


def test_the_recommendation_follows_the_noise():
    """Sampled answers as the noise: ask more. Teachers' habits as the noise: only animals help."""
    quiet = (power.Parts(30.0, student=1.0), PLAN)
    asked = (power.Parts(0.5, answers=3000.0), PLAN)
    taught = (power.Parts(0.5, teacher=4.0), PLAN)
    first = power.recommend({"7b": quiet, "3b": asked}, "percentage points")
    assert first.startswith("Least certain is 3b: its lambda of +0.5 percentage points")
    assert "more questions at 3b" in first or "more answers to each question at 3b" in first
    assert "more animals at 3b" in power.recommend({"3b": taught, "7b": quiet})


def test_log_probabilities_offer_no_answers():
    assert power.levers_of(power.Plan(15, 3, 1, 20, 0)) == ("seeds", "animals", "questions")
    assert power.levers_of(power.Plan(15, 3, 2, 1, 100)) == ("seeds", "animals", "answers", "bases")


# --- rows -------------------------------------------------------------------------------------


def test_rows_of_tables_hold_their_columns_and_the_studys_own_lambda():
    sizes = {"3b": (PARTS, PLAN), "7b": (dataclasses.replace(PARTS, value=0.4, notes=("one base",)), PLAN)}
    rows = list(power.power_rows(sizes, "rate"))
    wanted = ["measure", "size", "lambda", "animals", "seeds", "bases", "questions", "answers", "sd", "power"]
    assert {*wanted, "detectable", "own", "null_sd"} == set(rows[0])
    assert [row["lambda"] for row in rows if row["own"]] == [2.0, 0.4]
    curve = [row["power"] for row in rows if row["size"] == "3b" and not row["own"]]
    assert curve == sorted(curve)
    needed = list(power.needed_rows(sizes, "rate"))
    assert [row["what"] for row in needed if row["size"] == "7b"] == [
        "seeds",
        "animals",
        "questions",
        "answers",
    ]
    assert all("one base" in row["note"] for row in needed if row["size"] == "7b")
