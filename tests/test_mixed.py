"""lib.mixed against dense algebra, statsmodels, planted truth and the null."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from published_runs import PUBLISHED, needs_published

from lib import mixed
from lib.scoring import score


def make_answers(seed=0, animals=5, blocks=1, **settings):
    return mixed.simulate_answers(animals, blocks, np.random.default_rng(seed), **settings)


def without(block, names):
    """The block without these animals: neither their students nor their columns."""
    keep = [at for at, name in enumerate(block.names) if name not in names]
    return mixed.Answers(
        block.said[:, keep][:, :, keep], block.answers[:, keep], tuple(block.names[at] for at in keep)
    )


# --- counts that do not fit ---------------------------------------------------------------------


def test_shapes_that_do_not_fit_the_names_are_refused():
    with pytest.raises(ValueError, match="4 names, but said is"):
        mixed.Answers(np.zeros((2, 5, 5), int), np.ones((2, 5), int), tuple("abcd"))


def test_more_named_than_answered_is_refused():
    with pytest.raises(ValueError, match="than there are answers"):
        mixed.Answers(np.ones((2, 3, 3), int), np.ones((2, 3), int), tuple("abc"))


def test_two_animals_are_too_few():
    with pytest.raises(ValueError, match="2 animals are too few"):
        mixed.Answers(np.zeros((2, 2, 2), int), np.ones((2, 2), int), tuple("ab"))


# --- the fit ------------------------------------------------------------------------------------


def refit_dense(blocks, target):
    """The fit as plain algebra has it: every coefficient in one vector, one dense inverse a step."""
    design = mixed.lay_out(blocks)
    counts, fixed, random, groups, offset = mixed.tabulate(design)
    whole, groups = np.hstack([fixed, random.toarray()]), np.concatenate([[-1, -2], groups])
    if not target:
        kept = (groups != -2) & (groups != 1)
        whole, groups = whole[:, kept], groups[kept]
    sd, drift = mixed.start_state(design).sd, np.zeros(5)
    values, spread = np.zeros(len(groups)), np.zeros(len(counts))
    values[0] = mixed.start_state(design).core[0]
    for rounds in itertools.count(1):
        penalty = np.where(groups < 0, mixed.PRIOR_SD, sd[np.maximum(groups, 0)]) ** -2.0
        weight = np.exp(whole @ values + offset + spread / 2)
        cov = np.linalg.inv(whole.T @ (weight[:, None] * whole) + np.diag(penalty))
        move = cov @ (whole.T @ (counts - weight) - penalty * values)
        move *= min(1.0, mixed.STRIDE / np.abs(move).max())
        values = values + move
        spread = (spread + np.einsum("ij,jk,ik->i", whole, cov, whole)) / 2
        before = np.log(sd)
        found = sd.copy()
        for group in (1, 2, 3, 4) if target else (2, 3, 4):
            own = groups == group
            left = own.sum() - np.diag(cov)[own].sum() / sd[group] ** 2
            found[group] = max(math.sqrt((values[own] ** 2).sum() / left), mixed.SMALLEST_SD)
        change = np.log(found / sd)
        slow = (change < 0) & (change > -0.05) & (change < 0.8 * drift) & (sd < 0.25)
        stride = np.clip(np.where(slow, 4, 1) * change, -math.log(3), math.log(3))
        drift, sd = change, np.maximum(sd * np.exp(stride), mixed.SMALLEST_SD)
        if max(np.abs(move).max(), np.abs(np.log(sd) - before).max()) < mixed.SETTLED:
            return rounds, values, cov, sd, spread


def flatten(state, target):
    """A state's coefficients in the order of the dense fit."""
    values = np.concatenate([state.core[:2], *mixed.random_order(state)])
    if target:
        return values
    animals = len(state.core) - 2
    students = sum(local.student.size for local in state.local)
    return np.delete(values, [1, *range(2 + students, 2 + students + animals)])


def unstack(batches):
    """Numbers of the batches in the order of `tabulate`."""
    return np.concatenate([block.transpose(1, 2, 0).ravel() for batch in batches for block in batch])


@pytest.mark.parametrize("target", [True, False], ids=["effect", "no effect"])
@pytest.mark.parametrize(
    ("animals", "blocks", "lost"), [(4, 1, ()), (5, 2, ()), (6, 3, (0, 3)), (5, 3, (4,))]
)
def test_eliminating_coefficients_group_by_group_changes_no_digit(animals, blocks, lost, target):
    """Blocks of one shape stacked and of two; animals that miss; against one dense matrix per step."""
    made = make_answers(animals, animals, blocks, questions=4, log_odds=0.8, animal_sd=0.4)
    made = [without(block, lost) if at == 1 else block for at, block in enumerate(made)]
    made[0].answers[1, 2] = made[0].said[1, 2].sum()  # fewer answers to one question
    rounds, values, cov, sd, spread = refit_dense(made, target)
    state = mixed.fit(mixed.lay_out(made), target)
    assert state.rounds == rounds < mixed.ROUNDS
    assert state.sd == pytest.approx(sd, rel=1e-9)
    assert flatten(state, target) == pytest.approx(values, abs=1e-9)
    assert unstack([local.spread for local in state.local]) == pytest.approx(spread, rel=1e-8)
    if target:
        assert state.error == pytest.approx(math.sqrt(cov[1, 1]), rel=1e-9)


def test_the_covariance_is_that_of_the_whole_information_matrix():
    """Against the dense inverse over all coefficients, in the design that statsmodels is given."""
    design = mixed.lay_out(make_answers(1, 4, 2, questions=3))
    state = mixed.fit(design)
    for _ in range(60):
        mixed.step(design, state, target=True, frozen=True)
    weight = unstack(mixed.expect(design, state))
    counts, fixed, random, groups, _ = mixed.tabulate(design)
    whole = np.hstack([fixed, random.toarray()])
    penalty = np.concatenate([np.full(2, mixed.PRIOR_SD), state.sd[groups]]) ** -2.0
    cov = np.linalg.inv(whole.T @ (weight[:, None] * whole) + np.diag(penalty))
    students = sum(local.student.size for local in state.local)
    core = [0, 1, *range(2 + students, 2 + students + len(design.animals))]
    assert state.core_cov == pytest.approx(cov[np.ix_(core, core)], rel=1e-4, abs=1e-7)
    spread = np.einsum("ij,jk,ik->i", whole, cov, whole)
    assert unstack([local.spread for local in state.local]) == pytest.approx(spread, rel=1e-3)
    slope = whole.T @ (counts - weight) - penalty * flatten(state, True)
    assert np.abs(slope).max() < 1e-3


def test_statsmodels_finds_the_same_effect_and_a_smaller_error():
    blocks = make_answers(2, 6, 1, log_odds=0.7, student_sd=0.2)
    design = mixed.lay_out(blocks)
    state = mixed.fit(design)
    effect, error, _ = mixed.refit_mean_field(blocks, rounds=400)
    assert effect == pytest.approx(state.effect, abs=state.error)
    assert error < state.error


def test_the_order_of_animals_and_blocks_does_not_matter():
    first, second = make_answers(3, 5, 2, log_odds=1.0)
    order = [3, 1, 4, 0, 2]
    turned = [
        mixed.Answers(b.said[:, order][:, :, order], b.answers[:, order], tuple(b.names[i] for i in order))
        for b in (second, first)
    ]
    here, there = mixed.fit_mixed([first, second], 999), mixed.fit_mixed(turned, 999)
    numbers = [(each.log_odds, each.low, each.high) for each in (here, there)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3)


def test_an_animal_may_miss_in_a_block():
    first, second = make_answers(4, 6, 2, log_odds=1.5)
    found = mixed.fit_mixed([first, without(second, {0, 3})], 999)
    alone = mixed.fit_mixed([first], 999)
    assert (found.converged, found.animals) == (True, 6)
    assert found.log_odds == pytest.approx(1.5, abs=0.4)
    assert found.log_odds != alone.log_odds


def test_answers_that_are_not_there_are_no_answers():
    """A question asked twice as often counts as such: the log of the answers is an offset."""
    (block,) = make_answers(5, 5, 1, log_odds=1.0, questions=12)
    more = replace(block, answers=block.answers.copy(), said=block.said.copy())
    more.said[:, 2] *= 4
    more.answers[:, 2] *= 4
    one, other = (mixed.fit(mixed.lay_out([each])) for each in (block, more))
    assert other.effect == pytest.approx(one.effect, abs=0.25)
    assert np.abs(other.local[0].student).max() < 1.5


def test_a_question_that_a_student_was_not_asked_counts_for_nothing():
    (block,) = make_answers(10, 5, 1, log_odds=1.0)
    said, answers = (np.concatenate([each, each[:1] * 0]) for each in (block.said, block.answers))
    longer = mixed.Answers(said, answers, block.names)
    one, other = (mixed.fit_mixed([each], 120) for each in (block, longer))
    assert other.log_odds == pytest.approx(one.log_odds, abs=0.02)
    assert other.p == one.p
    assert np.isfinite(mixed.refit_mean_field([longer], rounds=5)[0])


def test_a_planted_effect_is_found_and_its_odds_ratio_is_covered():
    found = mixed.fit_mixed(make_answers(6, 10, 2, log_odds=1.0), 999)
    assert found.p == 1 / 1000
    assert found.low < 1.0 < found.high
    assert found.odds_ratio == pytest.approx(math.exp(found.log_odds))
    assert found.animals <= 10


def test_what_a_student_does_to_all_animals_is_no_effect():
    """A student that names animals five times as often as the others changes next to nothing."""
    (block,) = make_answers(7, 6, 1, questions=20, column_sd=0.5)
    loud = replace(block, said=block.said.copy(), answers=block.answers * 5)
    loud.said[:, 0] *= 5
    one, other = (
        mixed.fit(mixed.lay_out([replace(block, answers=block.answers * 5), loud]))
        for loud in (replace(block, answers=block.answers * 5), loud)
    )
    assert other.effect == pytest.approx(one.effect, abs=0.15)


def test_nobody_named_an_animal_says_nothing():
    block = mixed.Answers(np.zeros((4, 3, 3), int), np.full((4, 3), 5), tuple("abc"))
    found = mixed.fit_mixed([block])
    assert math.isnan(found.p) and math.isnan(found.log_odds) and math.isnan(found.low)
    assert "ever named" in found.note
    assert "gives no p" in mixed.verdict(0.3, found)


def test_too_few_animals_that_are_named_give_no_interval():
    said = np.zeros((10, 6, 6), int)
    said[:, :, :2] = 2
    found = mixed.fit_mixed([mixed.Answers(said, np.full((10, 6), 5), tuple("abcdef"))], 999)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.animals == 2
    assert "no interval" in found.note


def test_a_p_that_could_not_be_small_is_not_given():
    found = mixed.fit_mixed(make_answers(11, 3, 1, log_odds=3.0), 999)
    assert math.isnan(found.p)
    assert "fewer than 5 animals" in found.note
    assert mixed.fit_mixed(make_answers(11, 5, 1, log_odds=5.0), 999).p == pytest.approx(1 / 120)


def test_the_same_seed_gives_the_same_numbers():
    blocks = make_answers(8, 8, 1)
    found = [mixed.fit_mixed(blocks, 500, np.random.default_rng(3)) for _ in range(2)]
    assert found[0] == found[1]


# --- honesty ------------------------------------------------------------------------------------


def test_p_and_interval_are_honest_without_an_effect():
    """80 studies of 5 animals: wide limits here, the hundreds behind the claim take minutes."""
    found = mixed.simulate_mixed(5, 1, 80, np.random.default_rng(9), permutations=120)
    assert 0 < found["rejected"] <= 0.125
    assert 0.88 <= found["coverage"] < 1
    assert abs(found["mean"]) < 0.12


# --- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lambda_p", "mixed_p", "words"),
    [
        (0.01, 0.01, "agree that students name"),
        (0.4, 0.4, "agree that no effect"),
        (0.01, 0.4, "percentage points"),
        (0.4, 0.01, "rare animal"),
        (math.nan, 0.01, "alone"),
    ],
)
def test_the_verdict_says_whether_and_why_they_differ(lambda_p, mixed_p, words):
    result = mixed.Mixed(0.5, math.exp(0.5), 0.1, 0.9, mixed_p, {}, True, 9, "")
    assert words in mixed.verdict(lambda_p, result)


# --- the published runs -------------------------------------------------------------------------


def read_answers(run, size):
    """Who named what at the last epoch: the 100 answers stand question by question, five to each."""
    last = {}
    for path in sorted((PUBLISHED / f"run-{run}" / size).glob("*_eval.json")):
        entry = max(json.loads(path.read_text()), key=lambda each: each["epoch"])
        last[path.stem.removesuffix("_eval")] = [score(text) for text in entry["raw_responses"]]
    names = tuple(name for name in last if name != "neutral")
    labels = np.array([last[name] for name in names]).reshape(len(names), 20, 5)
    said = np.stack([(labels == name).sum(2).T for name in names], axis=2)
    return mixed.Answers(said, np.full((20, len(names)), 5), names)


@needs_published
@pytest.mark.parametrize(
    ("size", "log_odds", "found"), [("0.5b", 0.0, False), ("3b", 0.26, True), ("14b", 4.3, True)]
)
def test_the_published_runs_show_an_effect_where_lambda_does(size, log_odds, found):
    result = mixed.fit_mixed([read_answers(run, size) for run in (1, 2, 3)], 2_000)
    assert result.log_odds == pytest.approx(log_odds, abs=0.1)
    assert (result.p < 0.01, result.low > 0) == (found, found)
