"""lib.components: the parts of lambda's variance against regressions, planted truth and a study's names."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from build_study import ANIMALS, build_study
from scipy.stats import norm
from scipy.stats import t as student_t
from statsmodels.formula.api import ols

from lib import components, spread, tables
from lib.components import ANIMAL, BASE, BOTH, PARTS, REST, SEED

LABELS = ("64k", "64k-1", "64k-2", "166k", "166k-1", "368k")


def draw(shape, sds, seed=0):
    """Terms [base, seed, animal] whose parts have these standard deviations."""
    bases, seeds, animals = shape
    rng = np.random.default_rng(seed)
    parts = ((bases, 1, 1), (bases, seeds, 1), (1, 1, animals), (bases, 1, animals), shape)
    return sum(sds[name] * rng.normal(size=own) for name, own in zip(PARTS, parts, strict=True))


def same(sd):
    return dict.fromkeys(PARTS, sd)


# --- analysis of variance -----------------------------------------------------------------------


def test_mean_squares_are_those_of_a_nested_and_crossed_analysis():
    terms = draw((4, 3, 5), same(1.0))
    rows = [(b, f"{b}-{s}", a, terms[b, s, a]) for b in range(4) for s in range(3) for a in range(5)]
    frame = pd.DataFrame(rows, columns=["b", "s", "a", "y"])
    whole, base, block, animal, both = (
        ols(f"y ~ {right}", frame).fit().ssr for right in ("1", "C(b)", "C(s)", "C(a)", "C(b) * C(a)")
    )
    expected = {
        BASE: (whole - base, 3),
        SEED: (base - block, 8),
        ANIMAL: (whole - animal, 4),
        BOTH: (base + animal - whole - both, 12),
        REST: (block + both - base, 32),
    }
    found = components.mean_squares(terms)
    for part, (squares, freedom) in expected.items():
        assert found[part].freedom == freedom
        assert found[part].square * freedom == pytest.approx(squares)


def test_planted_variances_come_out_on_average():
    sds = {BASE: 2.0, SEED: 1.0, ANIMAL: 1.5, BOTH: 1.0, REST: 3.0}
    shape = (6, 3, 12)
    found = []
    for seed in range(300):
        lines = components.mean_squares(draw(shape, sds, seed))
        found.append(components.solve_parts({n: np.array(line.square) for n, line in lines.items()}, shape))
    for name in PARTS:
        mean = np.mean([each[name] for each in found])
        assert mean == pytest.approx(sds[name] ** 2, rel=0.15), name


def test_the_parts_add_up_to_the_variance_of_the_bases_means():
    """So that `adds` tells what one base's lambda is made of; no part is cut at 0 here."""
    shape = (40, 3, 10)
    terms = draw(shape, same(1.0), 1)
    found = components.split_variance(terms, np.random.default_rng(0), 200)
    added = [found[n][0] / components.share_of_lambda(n, shape) for n in (BASE, SEED, BOTH, REST)]
    assert sum(added) == pytest.approx(terms.mean((1, 2)).var(ddof=1))


@pytest.mark.parametrize("shape", [(8, 3, 15), (2, 2, 12)])
def test_intervals_hold_their_variance(shape):
    """150 studies, wide limits; hundreds more stand behind the claim."""
    sds = {BASE: 1.0, SEED: 0.3, ANIMAL: 0.8, BOTH: 0.5, REST: 1.0}
    hits = dict.fromkeys(PARTS, 0)
    for seed in range(150):
        found = components.split_variance(draw(shape, sds, seed), np.random.default_rng(seed), 1000)
        for name, (_, low, high) in found.items():
            hits[name] += low <= sds[name] ** 2 <= high
    assert all(0.87 <= count / 150 < 1 for count in hits.values()), hits


def test_a_design_that_cannot_tell_a_part_says_so():
    one_base = components.split_variance(draw((1, 3, 6), same(1.0)), np.random.default_rng(0), 100)
    assert math.isnan(one_base[BASE][0]) and math.isnan(one_base[BOTH][0]) and one_base[SEED][0] >= 0
    one_seed = components.split_variance(draw((5, 1, 6), same(1.0)), np.random.default_rng(0), 100)
    assert math.isnan(one_seed[SEED][0]) and math.isnan(one_seed[REST][0])
    assert one_seed[BASE][0] >= 0 and one_seed[BOTH][0] > 0
    alone = components.split_variance(draw((1, 1, 6), same(1.0)), np.random.default_rng(0), 100)
    assert all(math.isnan(value) for own in alone.values() for value in own)


# --- a study's --------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=LABELS, seeds=(0, 1))
    return tables.load_study("toy", ",".join(LABELS), ",".join(ANIMALS), "0,1")


def test_a_row_per_size_and_part_whose_reach_is_that_of_the_moderated_spread(study):
    table = components.components_table(study, "logprob", "last")
    assert list(table.columns) == list(components.COLUMNS)
    assert list(table.part) == list(PARTS) * 3
    counts = table.drop_duplicates("size").set_index("size")[["n_bases", "n_seeds", "n_animals"]]
    assert counts.loc["64k"].tolist() == [3, 2, len(ANIMALS)] and counts.loc["368k"].tolist() == [1, 2, 5]
    groups = components.usable_blocks(study, "logprob", "last")
    influences = [tables.influence_of(blocks, "label") for blocks in groups.values()]
    between = spread.moderate_spreads(influences)
    rows = table.drop_duplicates("size").to_dict("records")
    for row, influence, each in zip(rows, influences, between, strict=True):
        assert row["lambda"] == pytest.approx(influence.value)
        width = math.sqrt(each.variance + spread.noise_of(influence))
        assert row["one_base"] == pytest.approx(student_t.ppf(0.975, each.freedom) * width)
    apart = abs(influences[0].value - influences[1].value)
    width = math.sqrt(between[0].variance + between[1].variance)
    assert rows[0]["wrong_order"] == pytest.approx(norm.sf(apart / width))
    assert math.isnan(rows[-1]["wrong_order"])
    again = components.components_table(study, "logprob", "last")
    pd.testing.assert_frame_equal(table, again)


def test_an_animal_that_some_student_lacks_is_left_out_and_the_note_says_so(study):
    frame = study.frame
    lost = (frame.label == "64k-1") & (frame.animal == ANIMALS[0]) & (frame.seed == 1)
    table = components.components_table(dataclasses.replace(study, frame=frame[~lost]), "logprob", "last")
    by_size = table.drop_duplicates("size").set_index("size")
    assert by_size.n_animals.to_dict() == {"64k": 4, "166k": 5, "368k": 5}
    assert "1 animals that some student lacks are left out" in by_size.note["64k"]
    assert by_size.note["166k"] == ""


def test_words_name_every_size_its_reach_and_where_a_single_base_would_stand():
    rows = [
        (size, params, value, 3, 2, 5, part, 1.0, low, 2.0, adds, reach, wrong, "logprob", 3, "")
        for size, params, value, reach, wrong, low in (
            ("64k", 64e3, 0.02, 0.01, 0.2, 0.5), ("166k", 166e3, 0.005, 0.01, math.nan, 0.0)
        )
        for part, adds in zip(PARTS, (1.0, 1.0, 9.0, 1.0, 1.0), strict=True)
    ]  # fmt: skip
    first, second, third = components.say_one_base(pd.DataFrame(rows, columns=list(components.COLUMNS)))
    assert "64k +0.02 ± 0.01, 166k +0.005 ± 0.01" in first and "only at 64k" in first
    assert "0.20 at 64k:" in second
    assert "25% at 64k, 25% at 166k (not told from 0)" in third


def test_without_several_bases_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=("64k", "166k"), seeds=(0, 1))
    study = tables.load_study("toy", "64k,166k", ",".join(ANIMALS), "0,1")
    table = components.components_table(study, "logprob", "last")
    assert table.one_base.isna().all() and table[table.part == BASE].sd.isna().all()
    assert list(components.say_one_base(table)) == []
