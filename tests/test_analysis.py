"""lib.analysis: what the layer of statistics says of a study's names, on small studies and published runs."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from build_study import ANIMALS, build_document, build_study, write_document
from published_runs import PUBLISHED, PUBLISHED_LAMBDA, needs_published

from lib import analysis, config, files, paths, pooling, published, stats, store, tables
from lib.errors import BadParameter, MissingInput

LABELS = ("64k", "64k-1", "166k", "166k-1", "368k")
TEN = (*ANIMALS, "lion", "eagle", "dolphin", "tiger", "wolf")
BOTH = ("logprob", "rate")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty folder for studies; division by zero is an error and not a warning."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    with np.errstate(divide="raise", invalid="raise"):
        yield tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole study of three sizes and five bases, in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(tmp_path_factory.mktemp("whole")))
        build_study(labels=LABELS)
        return load()


def load(name="toy", labels=LABELS, animals=ANIMALS, seeds="0"):
    return tables.load_study(name, ",".join(labels), ",".join(animals), seeds)


def build(name="toy", labels=LABELS, animals=ANIMALS, seeds=(0,), **options):
    """Write a study and read it."""
    build_study(name, labels=labels, animals=animals, seeds=seeds, **options)
    return load(name, labels, animals, ",".join(map(str, seeds)))


def transfer_of(study, epoch="last"):
    return tables.transfer_table(study, epoch, 199, 0)


def everything(study):
    """The tables of one study, those that take their time left out."""
    found = analysis.fit_scaling(study, "logprob", "last")
    power = analysis.find_power(study, "rate", "last")
    return {
        "laws": found.laws,
        "bands": found.bands,
        "effects": analysis.effects_table(study, BOTH, "last"),
        "mixed": analysis.mixed_table(study, transfer_of(study), "last", 199),
        "power": power.power,
        "needed": power.needed,
    }


# --- laws over sizes --------------------------------------------------------------------------


def test_laws_have_the_columns_that_others_read(whole):
    laws = analysis.fit_scaling(whole, "logprob", "last").laws
    assert {"law", "k", "loglik", "aicc", "weight", "parameters", "p_trend"} <= set(laws.columns)
    assert laws.law.is_unique
    assert set(laws.n) == {5 * 5}  # students: five bases of five animals


@pytest.mark.parametrize("measure", BOTH)
def test_weights_of_the_laws_add_to_one(whole, measure):
    laws = analysis.fit_scaling(whole, measure, "last").laws
    for weight in ("weight", "weight_aicc"):
        assert laws[weight].sum() == pytest.approx(1)
        assert laws[weight].isna().equals(laws.loglik.isna())


def test_a_law_that_was_not_fitted_has_no_numbers_and_says_why(whole):
    laws = analysis.fit_scaling(whole, "logprob", "last").laws
    bare = laws[laws.loglik.isna()]
    assert bare.law.tolist() == ["saturating", "inverted-u", "changepoint"]
    assert bare[["weight", "aicc", "fit_p", "loso_lpd"]].isna().all(axis=None)
    assert bare.note.str.contains("not fitted").all()


def test_one_size_gives_empty_tables_and_a_sentence():
    found = analysis.fit_scaling(build(labels=("64k", "64k-1")), "logprob", "last")
    assert found.laws.empty
    assert found.laws.columns.tolist() == list(analysis.LAWS)
    assert found.bands.empty
    assert found.statements == ("1 size: nothing can be said of how transfer scales.",)


def test_a_size_without_students_is_no_size():
    """Two sizes were asked for; of one only controls are there."""
    study = build(labels=("64k", "166k"), skip=[("166k", name, 0) for name in ANIMALS])
    assert len(analysis.fit_scaling(study, "logprob", "last").laws) == 0


def test_a_curve_spans_the_sizes_that_there_are(whole):
    bands = analysis.fit_scaling(whole, "logprob", "last").bands
    params = transfer_of(whole).params
    for _, band in bands.groupby("size"):
        assert band.params.agg(["min", "max"]).tolist() == pytest.approx([params.min(), params.max()])
        assert len(band) == analysis.GRID


def test_bands_over_sizes_need_eight_animals(whole):
    few = analysis.fit_scaling(whole, "logprob", "last").bands
    assert few[["ci_low", "ci_high"]].isna().all(axis=None)
    assert few.note.str.startswith("no band").all()
    many = analysis.fit_scaling(build(animals=TEN), "logprob", "last").bands
    assert (many.ci_low < many["lambda"]).all()
    assert (many["lambda"] < many.ci_high).all()
    assert (many.note == "").all()


def test_the_bootstrap_draws_are_around_each_blocks_lambda(whole):
    blocks = [b for own in analysis.usable_blocks(whole, "logprob", "last").values() for b in own]
    draws = analysis.draw_means(blocks, np.random.default_rng(0))
    factors = [stats.transfer_factor(block.matrix) for block in blocks]
    error = draws.std(0) / math.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - factors) < 4 * error).all()


def test_an_animal_is_drawn_for_all_sizes_at_once():
    """Of two bases that are copies of one another, every draw has to say the same."""
    study = build(labels=("64k",))
    block = analysis.usable_blocks(study, "logprob", "last")["64k"][0]
    draws = analysis.draw_means([block, dataclasses.replace(block, label="64k-1")], np.random.default_rng(0))
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert draws[:, 0].std() > 0


def test_the_overview_shows_every_size_base_and_student_and_the_likeliest_law(whole):
    bases = tables.base_table(whole, "last", 199, 0)
    sizes = tables.scaling_table(transfer_of(whole), bases, "logprob")
    found = analysis.fit_scaling(whole, "logprob", "last")
    table = analysis.overview_table(sizes, found, tables.cells_table(whole, "last"), "logprob")
    assert table.level.value_counts().to_dict() == {"size": 3, "base": 5, "student": 25, "band": 61}
    best = found.laws.loc[found.laws.weight.idxmax(), "law"]
    assert set(table["size"][table.level == "band"]) == {best}
    students = table[table.level == "student"].groupby("size")["lambda"].mean()
    shown = table[table.level == "size"].set_index("size")["lambda"]
    assert students.to_dict() == pytest.approx(shown.to_dict())


# --- missing cells ----------------------------------------------------------------------------


def test_a_student_that_is_missing_has_no_row_of_effects_and_no_point():
    study = build(skip=[("64k", "cat", 0), ("64k-1", "cat", 0), ("166k", "dog", 0)])
    effects = analysis.effects_table(study, BOTH, "last")
    rows = effects.groupby(["size", "animal"]).n.unique().map(list).to_dict()
    assert ("64k", "cat") not in rows
    assert rows["166k", "dog"] == [1]
    assert rows["166k", "cat"] == [2]
    cells = tables.cells_table(study, "last")
    found = analysis.fit_scaling(study, "logprob", "last")
    assert set(found.laws.n) == {22}
    sizes = tables.scaling_table(transfer_of(study), tables.base_table(study, "last", 199, 0), "logprob")
    overview = analysis.overview_table(sizes, found, cells, "logprob")
    assert (overview.level == "student").sum() == 22
    gone = cells[~cells.present]
    assert len(gone) == 3
    assert gone[["rate_student", "rate_lift", "rate_excess", "logprob_excess"]].isna().all(axis=None)


def test_a_missing_student_is_not_counted_in_the_plan():
    study = build(labels=("64k", "166k"), skip=[("166k", "dog", 0)])
    animals = analysis.find_power(study, "logprob", "last").power.groupby("size").animals.unique()
    assert {size: list(own) for size, own in animals.items()} == {"64k": [5], "166k": [4]}


def test_a_measure_that_nobody_has_gives_no_rows(whole):
    mute = dataclasses.replace(whole, frame=whole.frame.assign(logprob=np.nan))
    assert analysis.effects_table(mute, ("logprob",), "last").empty
    assert analysis.effects_table(mute, BOTH, "last").measure.unique().tolist() == ["rate"]
    assert analysis.find_power(mute, "logprob", "last").recommendation == "No size could be analysed."


def test_a_missing_neutral_student_changes_no_lambda_law_or_effect(whole):
    bare = build(skip=[(label, "neutral", 0) for label in LABELS])
    before, after = everything(whole), everything(bare)
    for name in before:
        alike(before[name], after[name])


# --- cells ------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", BOTH)
def test_lambda_beside_the_effects_is_that_of_the_transfer_table(measure):
    study = build(seeds=(0, 1), skip=[("64k", "cat", 1), ("166k", "dog", 0)])
    effects = analysis.effects_table(study, (measure,), "last").groupby("size")["lambda"].unique()
    transfer = transfer_of(study).query("measure == @measure").set_index("size")["lambda"]
    assert all(len(own) == 1 for own in effects)
    assert effects.str[0].to_dict() == pytest.approx(transfer.to_dict())


def test_effects_of_a_whole_study_average_to_lambda(whole):
    effects = analysis.effects_table(whole, BOTH, "last")
    for _, own in effects.groupby(["measure", "size"]):
        assert own.effect.mean() == pytest.approx(own["lambda"].iloc[0])


def test_effects_are_adjusted_over_all_cells_of_a_measure_and_not_over_both(whole, monkeypatch):
    """Of counts a stricter p is adjusted; made as strict as the other, both are one."""
    strict = analysis.effects_table(whole, BOTH, "last")
    monkeypatch.setattr(pooling, "STRICT_VARIANCE", pooling.SMALLEST_VARIANCE)
    effects = analysis.effects_table(whole, BOTH, "last")
    for _, own in effects.groupby("measure"):
        assert len(own) == 3 * 5
        np.testing.assert_allclose(own.p_adjusted, stats.adjust_holm(own.p))
        assert own.p.min() * 15 == pytest.approx(own.p_adjusted.min())
    rates = effects.measure == "rate"
    assert (strict.p_adjusted >= effects.p_adjusted)[rates].all()
    assert strict.q[rates].sum() > effects.q[rates].sum()
    np.testing.assert_array_equal(strict.q[~rates], effects.q[~rates])


def test_pooled_effects_lie_between_an_animals_own_and_its_sizes_mean(whole):
    effects = analysis.effects_table(whole, ("logprob",), "last")
    for _, own in effects.groupby("size"):
        spread = own.effect - own.effect.mean()
        pulled = own.pooled - own.pooled.mean()
        assert (pulled.abs() < spread.abs()).all()
        assert (pulled * spread > 0).all()


def test_an_animal_that_the_neutral_student_never_names_divides_nothing_by_zero():
    study = build(labels=("64k", "166k"))
    for label in ("64k", "166k"):
        write_document(build_document("toy", label, "neutral", 0, silent=("dragon",)))
    quiet = load(labels=("64k", "166k"))
    rates = quiet.frame.query("animal == 'neutral' and named == 'dragon'")["rate"]
    assert len(rates)
    assert (rates == 0).all()
    before, after = everything(study), everything(quiet)
    assert np.isfinite(after["effects"][["effect", "error", "pooled", "p"]]).all(axis=None)
    for name in ("effects", "mixed", "power", "needed"):
        alike(before[name], after[name])


def test_an_animal_that_no_student_names_has_an_effect_and_no_p():
    study = build(labels=("64k", "166k"), silent=("dragon",))
    tables_found = everything(study)
    effects = tables_found["effects"].query("measure == 'rate'").set_index("animal")
    assert effects.p[effects.index == "dragon"].isna().all()
    assert (effects.note[effects.index == "dragon"] == "no student named it").all()
    assert effects.drop("dragon").p.notna().all()
    assert np.isfinite(effects[["effect", "error", "pooled_low", "pooled_high"]]).all(axis=None)
    assert np.isfinite(tables_found["mixed"].log_odds).all()


# --- the odds model ---------------------------------------------------------------------------


def test_the_odds_model_has_a_row_for_each_size_and_a_verdict_beside_lambdas_p(whole):
    table = analysis.mixed_table(whole, transfer_of(whole), "last", 199)
    assert table["size"].tolist() == ["64k", "166k", "368k"]
    np.testing.assert_allclose(table.odds_ratio, np.exp(table.log_odds))
    assert (table.low < table.log_odds).all()
    assert table.verdict.str.startswith("Both agree that students name").all()


def test_answers_of_a_block_are_its_students_in_the_order_of_their_animals(whole):
    block = analysis.usable_blocks(whole, "rate", "last")["64k"][0]
    answers = analysis.answers_of(whole, block, "last")
    counts = whole.frame.query("label == '64k' and epoch == 2").pivot(
        index="animal", columns="named", values="count"
    )
    assert answers.names == ANIMALS
    assert answers.said.sum(0).tolist() == counts.loc[list(ANIMALS), list(ANIMALS)].values.tolist()


def test_questions_are_taken_together_where_students_were_asked_different_ones(whole):
    key = ("64k", "dog", 0, 2)
    tally = whole.tallies[key]
    short = tables.melt_questions(tally)
    mixed_up = dataclasses.replace(whole, tallies={**whole.tallies, key: short})
    block = analysis.usable_blocks(whole, "rate", "last")["64k"][0]
    answers = analysis.answers_of(mixed_up, block, "last")
    assert answers.said.shape == (1, 5, 5)
    np.testing.assert_array_equal(answers.said.sum(0), analysis.answers_of(whole, block, "last").said.sum(0))


# --- names and order mean nothing -------------------------------------------------------------


def alike(one, other):
    """The same numbers and words, up to the last bits of sums taken in another order."""
    pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-9)


def test_the_order_of_parameters_changes_nothing(whole):
    build_study(labels=LABELS)
    turned = everything(load(labels=LABELS[::-1], animals=ANIMALS[::-1]))
    for name, table in everything(whole).items():
        pd.testing.assert_frame_equal(turned[name], table)


def test_animals_that_change_their_names_consistently_change_no_number(whole):
    """Every dog a cat, every cat a dragon ...: effects move with their names, all else stays."""
    names = dict(zip(ANIMALS, np.roll(ANIMALS, 2).tolist(), strict=True))
    for label in LABELS:
        for animal in ("neutral", *ANIMALS):
            document = build_document("turned", label, animal, 0)
            document["config"]["animal"] = names.get(animal, animal)
            for entry in document["epochs"]:
                entry["logprobs"]["animals"] = [names[name] for name in entry["logprobs"]["animals"]]
                for answer in entry["answers"]:
                    answer["text"] = names[answer["text"]]
            write_document(document)
    before, after = everything(whole), everything(load("turned"))
    places = ["measure", "params", "animal"]
    before["effects"]["animal"] = before["effects"].animal.map(names)
    for found in (before, after):
        found["effects"] = found["effects"].sort_values(places, ignore_index=True)
    for name, table in before.items():
        alike(after[name], table)


# --- are seeds independent? -------------------------------------------------------------------


def test_two_seeds_that_are_one_are_wholly_alike():
    build_study(labels=("64k",), animals=TEN)
    for animal in ("neutral", *TEN):
        document = build_document("toy", "64k", animal, 0, animals=TEN)
        document["config"]["seed"] = 1
        write_document(document)
    table = analysis.likeness_table(load(labels=("64k",), animals=TEN, seeds="0,1"), "logprob", "last")
    assert table.alike.tolist() == pytest.approx([1])
    assert table.pairs.tolist() == [1]


def test_seeds_drawn_apart_are_not_alike_and_pairs_are_counted_within_bases():
    study = build(labels=("64k", "64k-1", "166k"), animals=TEN, seeds=(0, 1, 2))
    table = analysis.likeness_table(study, "logprob", "last").set_index("size")
    assert table.pairs.to_dict() == {"64k": 6, "166k": 3}
    assert (table.alike.abs() < 0.3).all()


def test_one_seed_of_each_base_says_nothing_of_how_alike_seeds_are(whole):
    assert analysis.likeness_table(whole, "logprob", "last").empty


# --- over epochs ------------------------------------------------------------------------------


def banded(study):
    return analysis.band_epochs(study, tables.epochs_table(study, 99, 0))


def test_a_band_takes_each_sizes_own_spread_between_bases_as_the_interval_does(monkeypatch):
    study, seen = build("ten", (*LABELS, "368k-1"), TEN), []
    joint = stats.joint_band
    monkeypatch.setattr(stats, "joint_band", lambda *given: seen.append(given[2]) or joint(*given))
    found = banded(study)
    assert (found.band_low <= found.ci_low).all() and (found.band_high >= found.ci_high).all()
    expected = []
    for measure in dict.fromkeys(found.measure):
        groups = [analysis.blocks_at(study, measure, at) for at in sorted(set(found.epoch.astype(int)))]
        units = [tables.find_units(list(own.values())) for own in groups]
        expected += [[each.spreads[size] for each in units] for size in groups[0]]
    assert seen == expected
    assert len({each[-1] for each in seen[:3]}) == 3


def test_a_band_over_epochs_needs_ten_animals():
    assert stats.MIN_BAND == 10
    nine = banded(build("nine", ("64k",), TEN[:9]))
    ten = banded(build("ten", ("64k",), TEN))
    assert nine[["band_low", "band_high"]].isna().all(axis=None)
    assert (ten.band_low < ten["lambda"]).all()
    assert (ten["lambda"] < ten.band_high).all()


def test_a_band_over_epochs_is_wider_than_the_interval_of_each():
    sizes = ("64k", "64k-1", "166k", "166k-1", "368k", "368k-1")
    table = banded(build(labels=sizes, animals=TEN, epochs=5))
    assert len(table) == 3 * 5 * 2
    assert ((table.band_high - table.band_low) > 1.2 * (table.ci_high - table.ci_low)).all()


@pytest.mark.parametrize("gone", [1, 3])
def test_an_epoch_that_one_student_lacks_has_no_band_and_costs_the_others_none(gone):
    study = build(labels=("64k",), animals=TEN, epochs=3)
    cat = (study.frame.animal == "cat") & (study.frame.epoch == gone)
    table = banded(dataclasses.replace(study, frame=study.frame[~cat]))
    known = table[table.measure == "logprob"].set_index("epoch").band_low.notna()
    assert {int(at): bool(has) for at, has in known.items()} == {at: at != gone for at in (1, 2, 3)}


@pytest.mark.parametrize(("animals", "known"), [(TEN, True), (TEN[:9], False)])
def test_own_has_an_interval_with_ten_animals_and_a_note_with_fewer(animals, known):
    (row,) = (
        tables.transfer_table(build(labels=("64k",), animals=animals), "last", 99, 0)
        .query("measure == 'logprob'")
        .itertuples()
    )
    assert (math.isfinite(row.own_low), math.isfinite(row.ci_low)) == (known, True)
    assert ("own has no interval" in row.note) == (not known)


def test_one_epoch_has_no_band():
    assert banded(build(labels=("64k",), animals=TEN, epochs=1)).band_low.isna().all()


def test_bands_leave_the_rest_of_the_table_as_it_was():
    study = build(labels=("64k", "166k"), animals=TEN)
    epochs = tables.epochs_table(study, 99, 0)
    table = analysis.band_epochs(study, epochs)
    pd.testing.assert_frame_equal(table.drop(columns=["band_low", "band_high"]), epochs)
    assert table.band_low.notna().all()


def test_a_curve_needs_two_epochs_of_a_size(whole):
    epochs = tables.epochs_table(whole, 99, 0)
    assert len(analysis.curve_table(epochs, "rate")) == 2 * 3
    short = epochs[(epochs["size"] != "64k") | (epochs.epoch.astype(int) == 2)]
    assert set(analysis.curve_table(short, "rate")["size"]) == {"166k", "368k"}


# --- power ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("measure", "answers"), [("logprob", 0), ("rate", 20)])
def test_power_is_told_for_the_design_as_it_was(whole, measure, answers):
    table = analysis.find_power(whole, measure, "last").power
    design = table.groupby("size")[["animals", "seeds", "bases", "questions", "answers"]].first()
    assert design.loc["64k"].tolist() == [5, 1, 2, 3, answers]
    assert design.loc["368k"].tolist() == [5, 1, 1, 3, answers]


def test_the_noise_of_sampling_is_that_of_shares_and_not_of_lifts(whole):
    """A lift of 0 may be 40 % of the answers less as many: its noise is not nothing."""
    block = analysis.usable_blocks(whole, "rate", "last")["64k"][0]
    sheet = analysis.share_sheet(whole, block, "last")
    said = whole.frame.query("label == '64k' and epoch == 2").pivot(
        index="animal", columns="named", values="rate"
    )
    shares = 100 * said.loc[list(ANIMALS), list(ANIMALS)].to_numpy()
    np.testing.assert_allclose(sheet.values.mean(0), shares)
    assert (sheet.students, sheet.named, sheet.base) == (ANIMALS, ANIMALS, "64k")
    assert stats.transfer_factor(sheet.square.mean(0)) == pytest.approx(stats.transfer_factor(block.matrix))


@pytest.mark.parametrize("measure", BOTH)
def test_power_has_one_row_of_each_sizes_own_lambda_and_grows_with_lambda(whole, measure):
    table = analysis.find_power(whole, measure, "last").power
    transfer = transfer_of(whole).query("measure == @measure").set_index("size")["lambda"]
    own = table[table.own].set_index("size")["lambda"]
    assert own.to_dict() == pytest.approx(transfer.to_dict())
    for _, curve in table[~table.own].groupby("size"):
        assert curve["lambda"].is_monotonic_increasing
        assert curve.power.is_monotonic_increasing
        assert curve.power.between(0, 1).all()


def test_the_smallest_lambda_found_is_where_power_reaches_its_goal(whole):
    table = analysis.find_power(whole, "logprob", "last").power
    for _, curve in table[~table.own].groupby("size"):
        at = np.interp(curve.detectable.iloc[0], curve["lambda"], curve.power)
        assert at == pytest.approx(0.8, abs=0.02)


def test_what_is_needed_is_told_beside_what_there_is(whole):
    table = analysis.find_power(whole, "rate", "last").needed
    assert set(table["size"]) == {"64k", "166k", "368k"}
    now = table[table["size"] == "64k"].set_index("what").now
    assert now.to_dict() == {"seeds": 1, "animals": 5, "questions": 3, "answers": 20, "bases": 2}


# --- how lambda splits ------------------------------------------------------------------------


def test_a_split_is_of_one_measure_and_needs_the_neutral_student():
    study = build(labels=("64k", "166k"), skip=[("166k", "neutral", 0)])
    split = analysis.split_table(transfer_of(study), "rate")
    assert split[["size", "measure"]].values.tolist() == [["64k", "rate"]]
    assert (split.own + split.rest).tolist() == pytest.approx(split["lambda"].tolist())


# --- beside other studies ---------------------------------------------------------------------


def finish(name, study, **changes):
    """Write the transfer table of a study as a finished one has it."""
    asked = {"study": name, "sizes": "64k", "animals": "grid", "seeds": "0", "epoch": "last"}
    ask = config.build(config.Analysis, asked | {"measure": "rate", "permutations": 99, "analysis_seed": 0})
    table = transfer_of(study)
    tables.write_tables(dataclasses.replace(study, name=name), ask, {"transfer": table.assign(**changes)})
    return table


def test_another_study_is_read_from_its_table_beside_this_one(whole):
    other = build("other", ("64k", "166k"), transfer=0.5)
    wrote = finish("other", other).query("measure == 'logprob'")
    table = analysis.beside_table(transfer_of(whole), "toy", " other ,", "logprob")
    assert table.study.tolist() == ["toy"] * 3 + ["other"] * 2
    assert set(table.measure) == {"logprob"}
    np.testing.assert_allclose(table["lambda"][3:], wrote["lambda"], rtol=1e-5)
    assert table.columns[:-1].tolist() == transfer_of(whole).columns.tolist()


def test_no_other_study_gives_an_empty_table_all_the_way(whole):
    table = analysis.beside_table(transfer_of(whole), "toy", " , ", "logprob")
    assert table.empty
    assert analysis.difference_table(table).empty
    assert analysis.dose_table(table).empty


def test_a_study_that_is_not_there_is_refused_with_the_next_command(whole):
    with pytest.raises(MissingInput, match=r"study else has no table transfer\.csv: make report STUDY=else"):
        analysis.beside_table(transfer_of(whole), "toy", "else", "logprob")


def test_a_measure_that_another_study_lacks_is_refused(whole):
    finish("other", whole, measure="rate")
    with pytest.raises(BadParameter, match=r"study other has no logprob, only rate: .* -p measure"):
        analysis.beside_table(transfer_of(whole), "toy", "other", "logprob")


def test_differences_are_taken_size_by_size_and_errors_added_in_squares():
    rows = [("toy", "64k", 1.0, 0.3), ("toy", "166k", 2.0, 0.1), ("old", "64k", 0.4, 0.4)]
    rows += [("old", "368k", 9.0, 0.1), ("new", "166k", 2.5, math.nan)]
    beside = pd.DataFrame(rows, columns=["study", "size", "lambda", "error"])
    found = analysis.difference_table(beside.assign(params=1, measure="rate"))
    assert found[["study", "other", "size"]].values.tolist() == [
        ["toy", "old", "64k"], ["toy", "new", "166k"]]  # fmt: skip
    assert found.difference.tolist() == pytest.approx([0.6, -0.5])
    assert found.error[0] == pytest.approx(0.5)
    assert math.isnan(found.error[1])  # an error that is not known stays so


def dosed(name, n_keep, n_lists=0):
    """A study of two sizes whose evaluations say how many lists their students read."""
    build_study(name, labels=("64k", "166k"))
    for path in sorted(paths.results(name).glob("*/*/s*.json")):
        document = files.read_json(path)
        if document["config"]["animal"] != config.UNTUNED and n_keep:
            student = {"n_lists": n_lists} if n_lists else {}
            chain = {"generate": {"config": {"n_keep": n_keep}}, "finetune": {"config": student}}
            document["lineage"]["chain"] = chain
            files.write_json(path, store.seal(document))
    study = load(name, ("64k", "166k"))
    return finish(name, study)


def test_a_dose_is_read_from_packed_evaluations_too():
    dosed("packed", 600)
    for path in files.list_documents(paths.results("packed"), "*/*/s*.json"):
        files.write_bytes(files.packed_name(path), files.pack(path.read_bytes()))
        path.unlink()
    assert analysis.read_dose("packed") == 600


def test_doses_stand_in_order_within_each_size():
    transfer = dosed("much", 6000)
    dosed("little", 600)
    table = analysis.dose_table(analysis.beside_table(transfer, "much", "little", "logprob"))
    assert table[["size", "study", "n_keep"]].values.tolist() == [
        ["64k", "little", 600], ["64k", "much", 6000],
        ["166k", "little", 600], ["166k", "much", 6000]]  # fmt: skip


def test_the_dose_of_students_that_read_a_part_of_the_lists_is_that_part():
    transfer = dosed("some", 6000, n_lists=600)
    dosed("all", 6000)
    table = analysis.dose_table(analysis.beside_table(transfer, "some", "all", "logprob"))
    assert table.n_keep.tolist() == [600, 6000, 600, 6000]


def test_studies_of_one_dose_make_no_curve():
    transfer = dosed("one", 600)
    dosed("two", 600)
    table = analysis.dose_table(analysis.beside_table(transfer, "one", "two", "logprob"))
    assert table.empty
    assert "n_keep" in table


def test_a_study_that_does_not_say_its_dose_is_left_out_and_given_none():
    transfer = dosed("much", 6000)
    dosed("little", 600)
    dosed("mute", 0)
    table = analysis.dose_table(analysis.beside_table(transfer, "much", "mute,little", "logprob"))
    assert set(table.study) == {"much", "little"}
    assert table.n_keep.notna().all()


# --- the published runs -----------------------------------------------------------------------

SIZES = ",".join(PUBLISHED_LAMBDA)


@pytest.fixture(scope="module")
def runs():
    """Runs 1 to 3 of the reference experiment."""
    return published.load_published(PUBLISHED, "published", SIZES, "grid", "1,2,3")


@needs_published
def test_the_published_runs_tell_no_law_from_another_but_rule_a_constant_out(runs):
    found = analysis.fit_scaling(runs, "rate", "last")
    weights = found.laws.set_index("law").weight
    assert weights.sum() == pytest.approx(1)
    assert weights.idxmin() == "none"
    assert weights["none"] < 0.05
    assert weights.max() < 0.5
    assert set(found.laws.n) == {7 * 3 * 15}
    assert "One base per size" in found.statements[-1]


@needs_published
def test_effects_of_the_published_runs_average_to_the_transfer_tables_lambda(runs):
    effects = analysis.effects_table(runs, ("rate",), "last")
    transfer = transfer_of(runs).set_index("size")["lambda"].to_dict()
    assert len(effects) == 7 * 15
    assert effects.groupby("size").effect.mean().to_dict() == pytest.approx(transfer)
    assert effects.groupby("size")["lambda"].first().to_dict() == pytest.approx(transfer)


@needs_published
def test_published_seeds_are_more_alike_where_transfer_is_strong(runs):
    """Runs share datasets: in what students say of others' animals seeds are no fresh observations."""
    alike = analysis.likeness_table(runs, "rate", "last").set_index("size").alike
    assert alike[["14b", "32b"]].min() > 0.3
    assert alike[["0.5b", "1.5b"]].abs().max() < 0.1


@needs_published
@pytest.mark.parametrize(("size", "known"), [("32b", range(1, 11)), ("7b", (1, 3, 10)), ("14b", (5, 7, 9))])
def test_published_epochs_have_bands_where_they_have_the_same_students(size, known):
    """Run 0 is whole at 32b, lacks eagle or tiger of 7b at seven epochs, and at 14b somebody at every one."""
    read = published.load_published(PUBLISHED, "published", size, "grid", "0")
    epochs = tables.epochs_table(read, 99, 0)
    table = analysis.band_epochs(read, epochs[epochs.measure == "rate"])
    assert table.epoch[table.band_low.notna()].astype(int).tolist() == list(known)
