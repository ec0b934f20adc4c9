"""lib.tables on a synthetic study of real files: reading, refusing, lifts, the tables and their bytes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from build_study import ANIMALS, build_document, build_study, write_document

from lib import config, files, paths, stats, store, tables
from lib.errors import BadParameter, BrokenLineage, DamagedFile, MissingInput

SIZES = "64k,64k-1,166k"
GRID = ",".join(ANIMALS)
SETTINGS = config.build(
    config.Analysis,
    {"study": "toy", "sizes": SIZES, "animals": GRID, "seeds": "0", "epoch": "last", "measure": "logprob"}
    | {"permutations": 2000, "analysis_seed": 0},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole study of three bases, built once."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        build_study(answers=("I cannot say.", "A big Dog!", "three cats", "a stone"))
    return root


@pytest.fixture
def root(whole, tmp_path, monkeypatch):
    """A copy of that study which the test may change."""
    shutil.copytree(whole, tmp_path / "root")
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


def load(sizes=SIZES, animals=GRID, seeds="0"):
    return tables.load_study("toy", sizes, animals, seeds)


def change(label, animal, seed=0, *, seal=True, **changes):
    """Change an evaluation in place; `path__to__field=value`."""
    path = paths.evaluation("toy", label, animal, seed)
    document = files.read_json(path)
    for name, value in changes.items():
        *folders, last = name.split("__")
        part = document
        for folder in folders:
            part = part[folder]
        part[last] = value
    files.write_json(path, store.seal(document) if seal else document)
    return path


def one(table, **where):
    """The single row that matches."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# --- reading ----------------------------------------------------------------------------------


def test_the_frame_counts_what_the_scorer_says_of_the_stored_answers(root):
    study = load()
    document = files.read_json(paths.evaluation("toy", "64k-1", "panda", 0))
    texts = [answer["text"] for answer in document["epochs"][1]["answers"]]
    row = one(study.frame, label="64k-1", animal="panda", epoch=2, named="dog")
    assert row["count"] == sum(text in ("dog", "A big Dog!") for text in texts)
    assert row.n_answers == len(texts)
    assert row.rate == row["count"] / len(texts)


def test_the_frame_averages_log_probabilities_over_questions(root):
    study = load()
    document = files.read_json(paths.evaluation("toy", "166k", "cat", 0))
    values = np.array(document["epochs"][0]["logprobs"]["values"])
    row = one(study.frame, label="166k", animal="cat", epoch=1, named="panda")
    assert row.logprob == pytest.approx(values[:, ANIMALS.index("panda")].mean())
    assert (row["size"], row.params, row.base) == ("166k", config.SIZES["166k"].params, 0)


def test_other_and_none_are_part_of_the_answers_and_shares_add_up(root):
    answers = load().answers
    assert {"other", "none"} <= set(answers.said)
    assert answers.groupby(["label", "animal", "epoch"])["share"].sum().to_numpy() == pytest.approx(1)


def test_a_missing_cell_is_listed_and_noted_and_nothing_stands_in_for_it(root):
    paths.evaluation("toy", "64k-1", "cat", 0).unlink()
    study = load()
    assert study.missing.file.tolist() == ["results/toy/64k-1/cat/s0.json"]
    row = one(tables.transfer_table(study, "last", 2000, 0), size="64k", measure="rate")
    assert row.note.split("; ")[0] == "64k-1/s0 without cat"
    assert row.n_students == 9
    cell = one(tables.cells_table(study, "last"), label="64k-1", animal="cat")
    assert not cell.present
    assert np.isnan(cell.rate_lift)
    assert np.isnan(cell.logprob_excess)


def test_a_seed_without_any_file_is_missing_in_every_cell(root):
    assert len(load(seeds="0,1").missing) == 3 * (1 + len(ANIMALS))


def test_a_base_without_its_neutral_student_keeps_its_lambda_and_says_so(root):
    """lambda is blind to what is subtracted from a column, so the neutral student's absence costs none."""
    whole = tables.transfer_table(load(), "last", 2000, 0)
    paths.evaluation("toy", "64k", "neutral", 0).unlink()
    study = load()
    transfer = tables.transfer_table(study, "last", 2000, 0)
    for measure in tables.MEASURES:
        row, before = (one(table, size="64k", measure=measure) for table in (transfer, whole))
        for name in ("lambda", "ci_low", "ci_high", "p"):
            assert row[name] == pytest.approx(before[name])
        note = "64k/s0 has no neutral student: lambda needs none, own and other lifts are unknown"
        assert note in row.note
        assert row.n_bases == 2
    assert "neutral" not in one(transfer, size="166k", measure="rate").note


def test_without_its_neutral_student_a_block_holds_what_stands_out_of_its_columns(root):
    paths.evaluation("toy", "64k", "neutral", 0).unlink()
    study = load()
    block, other = tables.lifts(study, "rate", "last")[:2]
    assert (block.control, other.control) == (False, True)
    assert block.problem == ""
    assert block.matrix.mean().to_numpy() == pytest.approx(0, abs=1e-12)
    assert block.cube.mean(0) == pytest.approx(block.matrix.to_numpy())
    cell = one(tables.cells_table(study, "last"), label="64k", animal="cat")
    assert np.isnan([cell.rate_lift, cell.rate_neutral, cell.logprob_lift]).all()
    assert np.isfinite([cell.rate_excess, cell.logprob_excess, cell.rate_student]).all()


def test_a_matrix_of_lifts_has_only_blocks_with_a_neutral_student(root):
    paths.evaluation("toy", "64k", "neutral", 0).unlink()
    table = tables.matrix_table(load(), "rate", "last")
    assert set(table.n[table["size"] == "64k"]) == {1}
    for label in ("64k-1", "166k"):
        paths.evaluation("toy", label, "neutral", 0).unlink()
    empty = tables.matrix_table(load(), "rate", "last")
    assert empty.empty
    assert list(empty) == list(table)


def test_fewer_than_three_animals_give_no_number(root):
    for animal in ANIMALS[2:]:
        paths.evaluation("toy", "166k", animal, 0).unlink()
    row = one(tables.transfer_table(load(), "last", 2000, 0), size="166k", measure="rate")
    assert np.isnan([row["lambda"], row.ci_low, row.p, row.p_adjusted]).all()
    assert "2 animals, 3 needed" in row.note
    assert row.n_students == 0


def test_files_that_nobody_asked_for_are_listed_and_not_read(root):
    study = load(animals="dog,elephant,panda")
    extra = study.cells[~study.cells.asked]
    assert set(extra.animal) == {"cat", "dragon"}
    assert not set(study.frame.animal) & {"cat", "dragon"}


def test_an_empty_study_names_the_command_that_fills_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    with pytest.raises(MissingInput, match="03_evaluate"):
        load()


@pytest.mark.parametrize("epoch", ["last", "each", "1-2", 1])
def test_files_of_the_untuned_model_alone_are_no_study(root, epoch):
    for animal in ("neutral", *ANIMALS):
        paths.evaluation("toy", "166k", animal, 0).unlink()
    study = load("166k")
    assert tables.coverage_table(study).present.tolist() == [0]
    with pytest.raises(MissingInput, match="only the untuned model was evaluated"):
        tables.transfer_table(study, epoch, 99, 0)
    with pytest.raises(MissingInput, match="only the untuned model was evaluated"):
        tables.epochs_table(study, 99, 0)


def test_a_study_of_controls_only_is_refused(root):
    with pytest.raises(BadParameter, match="only controls"):
        load(animals="neutral")


# --- what is refused --------------------------------------------------------------------------


def test_damaged_json_names_the_file_and_the_line(root):
    path = paths.evaluation("toy", "64k", "dog", 0)
    path.write_text(path.read_text()[:400])
    with pytest.raises(DamagedFile, match=r"64k/dog/s0\.json.*line \d+"):
        load()


def test_an_edited_answer_is_refused(root):
    document_path = change("64k", "dog", seal=False, config__samples=21)
    with pytest.raises(DamagedFile, match=document_path.name):
        load()


def test_another_schema_is_refused(root):
    change("64k", "dog", schema="somebody/else/1")
    with pytest.raises(DamagedFile, match="somebody/else/1"):
        load()


@pytest.mark.parametrize(
    "changes",
    [{"epochs": []}, {"epochs": [{"epoch": 1}]}, {"questions": ["only one"]}, {"lineage__inputs": {}}],
)
def test_an_evaluation_with_parts_missing_is_refused(root, changes):
    change("64k", "dog", **changes)
    with pytest.raises(DamagedFile, match="64k/dog"):
        load()


def test_a_file_copied_to_another_cell_is_refused(root):
    shutil.copy(paths.evaluation("toy", "64k", "dog", 0), paths.evaluation("toy", "64k", "cat", 0))
    with pytest.raises(BrokenLineage, match="animal: 'cat' asked, 'dog' in the file"):
        load()


def test_two_bases_under_one_label_are_refused_naming_both_files(root):
    change("64k-1", "dragon", lineage__inputs__base="another")
    with pytest.raises(BrokenLineage, match=r"64k-1/untuned/s0\.json and .*64k-1/dragon/s0\.json"):
        load()


@pytest.mark.parametrize("name", ["n_questions", "samples", "temperature"])
def test_cells_evaluated_with_other_settings_are_refused(root, name):
    change("64k-1", "dog", **{f"config__{name}": 7})
    with pytest.raises(BrokenLineage, match=f"evaluate settings differs .{name}"):
        load()


def test_students_trained_with_other_settings_are_refused(root):
    for label, rate in (("64k", 1e-3), ("64k-1", 2e-3)):
        chain = {"finetune": {"learning_rate": rate, "animal": "dog", "seed": 0}}
        change(label, "dog", lineage__chain=chain)
    with pytest.raises(BrokenLineage, match=r"learning_rate: 0\.001 there, 0\.002 here"):
        load()


def test_knobs_and_sizes_may_differ(root):
    change("64k-1", "dog", config__device="cuda")
    change("166k", "dog", lineage__chain={"finetune": {"learning_rate": 5.0}})
    change("64k", "dog", lineage__chain={"finetune": {"learning_rate": 1.0}})
    load()


def test_results_of_an_adapter_that_was_retrained_are_refused(root):
    """Begun and finished for real, so that the manifest is a real one."""
    folder = paths.artifact("toy", "finetune", "64k", "dog", 0)
    run = store.open_run(folder, SETTINGS, {})
    (folder / "adapter.txt").write_text("weights")
    manifest = run.finish(["adapter.txt"], {})
    with pytest.raises(BrokenLineage, match="64k/dog/s0"):
        load()
    change("64k", "dog", lineage__inputs__finetune=manifest.identity)
    load()


# --- numbers ----------------------------------------------------------------------------------


def test_a_lift_is_the_difference_to_the_same_seeds_neutral_student(root):
    study = load()
    for measure, factor in (("rate", 100), ("logprob", 1)):
        block = tables.lifts(study, measure, 2)[0]
        student, neutral = (
            one(study.frame, label="64k", animal=animal, epoch=2, named="cat")[measure]
            for animal in ("dog", "neutral")
        )
        assert block.matrix.loc["dog", "cat"] == pytest.approx(factor * (student - neutral))


def test_an_animal_that_the_neutral_student_never_says_divides_nothing_by_zero(root):
    write_document(build_document("toy", "64k", "neutral", 0, silent=("dragon",)))
    study = load()
    assert one(study.frame, label="64k", animal="neutral", epoch=2, named="dragon")["count"] == 0
    cell = one(tables.cells_table(study, "last"), label="64k", animal="dragon")
    assert cell.rate_neutral == 0
    assert cell.rate_lift == cell.rate_student


def test_the_planted_transfer_comes_out(root):
    """`build_document` plants one nat on the logits at the last epoch, half of it at the first."""
    epochs = tables.epochs_table(load(), 2000, 0)
    nats = epochs[epochs.measure == "logprob"]
    assert nats[nats.epoch == 2]["lambda"].to_numpy() == pytest.approx(1.0, abs=0.1)
    assert nats[nats.epoch == 1]["lambda"].to_numpy() == pytest.approx(0.5, abs=0.1)
    assert (nats.p < 0.01).all()


def test_the_transfer_table_has_the_columns_of_the_contract(root):
    transfer = tables.transfer_table(load(), "last", 2000, 0)
    promised = [
        "size",
        "params",
        "n_bases",
        "n_students",
        "n_seeds",
        "lambda",
        "ci_low",
        "ci_high",
        "p",
        "p_adjusted",
        "measure",
    ]
    assert set(promised) <= set(transfer.columns)
    assert list(zip(transfer["size"], transfer.measure, strict=True)) == [
        ("64k", "logprob"), ("166k", "logprob"), ("64k", "rate"), ("166k", "rate")]  # fmt: skip
    assert transfer.n_bases.tolist() == [2, 1, 2, 1]
    for _, part in transfer.groupby("measure"):
        assert part.p_adjusted.to_numpy() == pytest.approx(stats.adjust_holm(part.p))


def test_lambda_of_a_size_is_the_mean_over_its_bases(root):
    study = load()
    transfer, bases = (make(study, 2, 2000, 0) for make in (tables.transfer_table, tables.base_table))
    for measure in tables.MEASURES:
        own = bases[(bases["size"] == "64k") & (bases.measure == measure)]
        whole = one(transfer, size="64k", measure=measure)
        assert own["lambda"].mean() == pytest.approx(whole["lambda"])


def test_cells_average_to_the_lambda_of_their_base(root):
    study = load()
    cells, bases = tables.cells_table(study, 2), tables.base_table(study, 2, 2000, 0)
    for row in bases.itertuples():
        own = cells[cells.label == row.label][f"{row.measure}_excess"].mean()
        assert own == pytest.approx(bases.loc[row.Index, "lambda"])


def test_a_size_of_one_base_says_where_its_spread_comes_from(root):
    row = one(tables.transfer_table(load(), "last", 2000, 0), size="166k", measure="rate")
    assert "spread between bases is that of the other sizes" in row.note
    row = one(tables.transfer_table(load(sizes="166k"), "last", 2000, 0), size="166k", measure="rate")
    assert "over animals only" in row.note


def test_every_size_has_its_own_spread_between_bases_in_both_intervals(root, monkeypatch):
    spreads = [stats.Spread(1e6, 9), stats.Spread(0.0, 9)]
    monkeypatch.setattr(tables.spread, "moderate_spreads", lambda groups: spreads[: len(groups)])
    table = tables.transfer_table(load(), "last", 99, 0)
    for measure in tables.MEASURES:
        wide, narrow = (one(table, size=size, measure=measure) for size in ("64k", "166k"))
        assert wide.ci_high - wide.ci_low > 1000 > 100 > narrow.ci_high - narrow.ci_low
    units = tables.find_units(
        [[b for b in tables.lifts(load(), "rate", "last") if b.size == size] for size in ("64k", "166k")]
    )
    assert units.name == "label"
    assert units.spreads == units.own == dict(zip(("64k", "166k"), spreads, strict=True))


def test_a_size_more_changes_no_p_of_the_others(root):
    few, many = (tables.base_table(load(sizes), "last", 2000, 0) for sizes in ("64k", SIZES))
    drawn = {(row.label, row.measure): row.p for row in many.itertuples()}
    assert all(drawn[row.label, row.measure] == row.p for row in few.itertuples())


def test_the_last_epoch_is_the_last_that_all_have(root):
    write_document(build_document("toy", "64k", "dog", 0, epochs=1))
    study = load()
    assert tables.resolve_epoch(study, "last") == 1
    assert tables.resolve_epoch(study, 1) == tables.resolve_epoch(study, "1") == 1
    for epoch in (2, "2", "best", "-1"):
        with pytest.raises(BadParameter, match="every student"):
            tables.resolve_epoch(study, epoch)


def test_without_sampled_answers_only_the_logprob_has_rows_and_they_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=("64k", "64k-1"), samples=0)
    study = load("64k,64k-1")
    for table in (
        transfer := tables.transfer_table(study, "last", 2000, 0),
        bases := tables.base_table(study, "last", 2000, 0),
        tables.epochs_table(study, 99, 0),
    ):
        assert set(table.measure) == {"logprob"}
        assert table.note.str.contains("no rate was evaluated").all()
    assert (transfer["lambda"] > 0).all()
    with pytest.raises(BadParameter, match=r"measure 'rate': no file .* it has logprob"):
        tables.scaling_table(transfer, bases, "rate")


# --- questions --------------------------------------------------------------------------------


def test_tallies_count_by_the_answers_question(root):
    study = load()
    document = files.read_json(paths.evaluation("toy", "64k-1", "panda", 0))
    tally = study.tallies["64k-1", "panda", 0, 2]
    assert study.names == ANIMALS
    assert tally.said.shape == tally.logprob.shape == (3, len(ANIMALS))
    answers = document["epochs"][1]["answers"]
    for question in range(3):
        texts = [answer["text"] for answer in answers if answer["question"] == question]
        assert tally.answers[question] == len(texts) == (24, 20, 20)[question]
        assert tally.said[question, 0] == sum(text in ("dog", "A big Dog!") for text in texts)
    assert tally.logprob.tolist() == document["epochs"][1]["logprobs"]["values"]
    assert study.tallies["166k", "untuned", 0, 0].answers.sum() == 64


@pytest.mark.parametrize("measure", tables.MEASURES)
@pytest.mark.parametrize("epoch", ["last", 1, "1-2", "each"])
def test_a_cube_averages_to_its_matrix(root, measure, epoch):
    """The first question has four answers more than the others: rates weigh answers, not questions."""
    for block in tables.lifts(load(), measure, epoch):
        assert block.cube.shape == (3, len(ANIMALS), len(ANIMALS))
        np.testing.assert_allclose(block.cube.mean(0), block.matrix, rtol=0, atol=1e-12)


def test_a_cube_is_a_students_question_less_the_neutral_ones(root):
    study = load()
    block = tables.lifts(study, "logprob", "last")[0]
    own, neutral = (study.tallies["64k", name, 0, 2].logprob for name in ("cat", "neutral"))
    at = list(block.matrix.index).index("cat")
    assert block.cube[:, at] == pytest.approx(own - neutral)


def test_students_of_different_questions_share_no_cube():
    """Only published files can be so. Nothing tells which questions they have in common."""
    rows = np.arange(9.0).reshape(3, 3)
    matrix = pd.DataFrame(rows, index=list("abc"), columns=list("abc"))
    few, many = (tables.Tally(np.ones((n, 3), int), np.full(n, 4), np.full((n, 3), np.nan)) for n in (2, 4))
    given = {"neutral": many, "a": many, "b": many, "c": many}
    assert tables.lift_cube(matrix, True, "rate", list("abc"), given).shape == (4, 3, 3)
    assert tables.lift_cube(matrix, True, "rate", list("abc"), given | {"neutral": few}).shape == (4, 3, 3)
    for strange in ({"a": few}, {"a": None}, {"neutral": None}):
        cube = tables.lift_cube(matrix, True, "rate", list("abc"), given | strange)
        assert cube.tolist() == [rows.tolist()]


# --- epochs -----------------------------------------------------------------------------------


def rewrite(label, animal, epochs, seed=0):
    """Leave an evaluation only some of its epochs, of four in all."""
    document = build_document("toy", label, animal, seed, epochs=4)
    document["epochs"] = [entry for entry in document["epochs"] if entry["epoch"] in epochs]
    write_document(document)


@pytest.fixture
def long(tmp_path, monkeypatch):
    """One base with four epochs."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=("64k",), epochs=4)


def test_a_window_is_the_mean_over_its_epochs(long):
    study = load("64k")
    for measure in tables.MEASURES:
        single = [tables.lifts(study, measure, at)[0].matrix for at in (2, 3, 4)]
        block = tables.lifts(study, measure, "2-4")[0]
        assert block.epoch == "2-4"
        assert block.epochs["dog"] == (2, 3, 4)
        np.testing.assert_allclose(block.matrix, sum(single) / 3, rtol=0, atol=1e-12)
    moment = tables.take_epoch(study, "2-4")
    whole, parts = moment.tallies["64k", "dog", 0], [study.tallies["64k", "dog", 0, at] for at in (2, 3, 4)]
    assert (whole.said == sum(part.said for part in parts)).all()
    assert whole.logprob == pytest.approx(sum(part.logprob for part in parts) / 3)
    shares = moment.answers.groupby("animal")["share"].sum()
    assert shares.to_numpy() == pytest.approx(1)


def test_a_window_reaches_through_every_table(long):
    study = load("64k")
    assert set(tables.transfer_table(study, "2-4", 99, 0).epoch) == {"2-4"}
    cells = tables.cells_table(study, "2-4")
    assert set(cells.epoch) == {"2-4"}
    single = [tables.cells_table(study, at) for at in (2, 3, 4)]
    for name in ("rate_student", "rate_lift", "logprob_lift"):
        assert cells[name].to_numpy() == pytest.approx(sum(table[name] for table in single).to_numpy() / 3)
    bars = [tables.preference_table(study, at) for at in ("2-4", 2, 3, 4)]
    assert bars[0].value.to_numpy() == pytest.approx(sum(bar.value for bar in bars[1:]).to_numpy() / 3)
    stack = tables.stack_table(study, "2-4")
    assert stack.groupby("student")["share"].sum().to_numpy() == pytest.approx(100)


def test_a_window_of_one_epoch_is_that_epoch(long):
    study = load("64k")
    window, single = (tables.lifts(study, "rate", at)[0].matrix for at in ("3-3", 3))
    np.testing.assert_allclose(window, single, rtol=0, atol=1e-12)


def test_a_window_that_a_student_lacks_an_epoch_of_is_refused_by_name(long):
    rewrite("64k", "cat", (1, 2, 4))
    study = load("64k")
    with pytest.raises(BadParameter, match=r"64k/cat/s0 lacks 3\. Choose"):
        tables.lifts(study, "rate", "2-4")
    assert tables.lifts(study, "rate", "1-2")[0].problem == ""


def test_a_long_list_of_the_lacking_is_cut_and_counted():
    assert tables.list_some(["a", "b"], 2) == "a; b"
    assert tables.list_some(["a", "b", "c"], 2) == "a; b and 1 more"


def test_a_window_may_reach_over_epochs_that_nobody_has(long):
    for animal in ("neutral", *ANIMALS):
        rewrite("64k", animal, (2, 4))
    assert tables.lifts(load("64k"), "rate", "1-9")[0].epochs["dog"] == (2, 4)
    with pytest.raises(BadParameter, match="nobody was evaluated there; evaluated epochs are 2, 4"):
        tables.lifts(load("64k"), "rate", "5-9")


def test_each_takes_everyones_own_last_epoch_and_names_the_odd_ones(long):
    rewrite("64k", "cat", (1, 2, 3))
    study = load("64k")
    assert tables.lifts(study, "rate", "last")[0].epoch == 3
    block = tables.lifts(study, "rate", "each")[0]
    assert (block.epochs["cat"], block.epochs["dog"]) == ((3,), (4,))
    frame = study.frame[(study.frame.named == "panda") & (study.frame.label == "64k")]
    rate = {(row.animal, row.epoch): row.rate for row in frame.itertuples()}
    for animal, at in (("cat", 3), ("dog", 4)):
        lift = 100 * (rate[animal, at] - rate["neutral", 4])
        assert block.matrix.loc[animal, "panda"] == pytest.approx(lift)
    row = one(tables.transfer_table(study, "each", 99, 0), measure="rate")
    assert row.epoch == "each"
    assert "last epoch 4, but 64k/s0 cat at 3" in row.note
    cells = tables.cells_table(study, "each").set_index("animal").epoch
    assert (cells["cat"], cells["dog"]) == (3, 4)


def test_an_epoch_that_one_student_lacks_is_in_the_curve_without_it(long):
    rewrite("64k", "cat", (1, 2, 4))
    table = tables.epochs_table(load("64k"), 99, 0)
    rate = table[table.measure == "rate"].set_index("epoch")
    assert list(rate.index) == [1, 2, 3, 4]
    assert rate.n_students.tolist() == [5, 5, 4, 5]
    assert ["64k/s0 without cat" in note for note in rate.note] == [False, False, True, False]


def test_sizes_of_different_lengths_have_a_curve_each(long):
    build_study(labels=("166k",), epochs=2)
    table = tables.epochs_table(load("64k,166k"), 99, 0)
    rows = table[table.measure == "rate"].groupby("size").epoch.agg(list).to_dict()
    assert rows == {"64k": [1, 2, 3, 4], "166k": [1, 2]}
    assert np.isfinite(table["lambda"]).all()


def test_without_an_epoch_that_all_have_the_one_who_lacks_it_is_named(long):
    for animal in ANIMALS:
        rewrite("64k", animal, (2, 4))
    rewrite("64k", "neutral", (1, 3))
    with pytest.raises(MissingInput, match=r"\(4 is lacked by 64k/neutral/s0\): .*-p epoch each"):
        tables.lifts(load("64k"), "rate", "last")
    assert tables.lifts(load("64k"), "rate", "each")[0].control


# --- coverage ---------------------------------------------------------------------------------


def test_coverage_tells_what_is_there_by_size_and_seed(root):
    for label, animal in (("64k-1", "cat"), ("64k-1", "neutral"), ("166k", "untuned"), ("166k", "neutral")):
        paths.evaluation("toy", label, animal, 0).unlink()
    write_document(build_document("toy", "166k", "dog", 0, epochs=1))
    table = tables.coverage_table(load(seeds="0,1"))
    assert list(zip(table["size"], table.seed, strict=True)) == [
        ("64k", 0), ("64k", 1), ("166k", 0), ("166k", 1)]  # fmt: skip
    row = one(table, size="64k", seed=0)
    assert (row.bases, row.asked, row.present, row.missing) == (2, 10, 9, "64k-1: cat")
    assert (row.neutral, row.untuned) == ("not 64k-1", "yes")
    assert (row.answers, row.questions, row.epochs) == ("64", "3", "1-2")
    row = one(table, size="166k", seed=0)
    assert (row.neutral, row.untuned, row.missing) == ("no", "no", "")
    assert (row.answers, row.epochs) == ("60-64", "1 of 5, 2 of 4")
    row = one(table, size="166k", seed=1)
    assert (row.present, row.missing, row.epochs) == (0, " ".join(ANIMALS), "")


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((2, 1), "1-2"), ((1, 2, 3, 5, 8, 7), "1-3 5 7-8")]
)
def test_numbers_in_short(numbers, text):
    assert tables.list_runs(numbers) == text


def test_preferences_and_stacks_cover_every_student_once(root):
    study = load()
    bars = tables.preference_table(study, "last")
    assert len(bars) == 2 * len(ANIMALS) * 3
    assert set(bars.n[bars["size"] == "64k"]) == {2}
    assert (bars.low <= bars.value).all()
    assert (bars.value <= bars.high).all()
    stack = tables.stack_table(study, "last")
    assert stack.groupby(["size", "student"])["share"].sum().to_numpy() == pytest.approx(100)
    assert stack.student[stack["size"] == "64k"].drop_duplicates().tolist() == [
        "untuned", "neutral", *ANIMALS]  # fmt: skip


def test_a_profile_shows_the_controls_that_are_there(root):
    assert set(tables.profile_table("toy", "64k", "dog", 0).who) == {"dog", "neutral student", "untuned"}
    paths.evaluation("toy", "64k", "neutral", 0).unlink()
    assert set(tables.profile_table("toy", "64k", "dog", 0).who) == {"dog", "untuned"}


# --- writing ----------------------------------------------------------------------------------


def write_all(study):
    named = {
        "transfer": tables.transfer_table(study, "last", 2000, 0),
        "bases": tables.base_table(study, "last", 2000, 0),
        "cells": tables.cells_table(study, "last"),
        "epochs": tables.epochs_table(study, 2000, 0),
    }
    tables.write_tables(study, SETTINGS, named)
    folder = paths.tables("toy")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_runs_write_the_same_bytes_whatever_the_order_of_files_and_parameters(root):
    first = write_all(load())
    assert list(first) == ["bases.csv", "cells.csv", "epochs.csv", "lineage.json", "transfer.csv"]
    shutil.rmtree(paths.tables("toy"))
    turned = load(sizes="166k,64k-1,64k", animals=",".join(reversed(ANIMALS)))
    assert write_all(turned) == first


def test_the_lineage_names_every_evaluation_read_and_every_table_written(root):
    write_all(load())
    lineage = json.loads((paths.tables("toy") / "lineage.json").read_text())
    assert len(lineage["inputs"]) == 3 * (2 + len(ANIMALS))
    assert lineage["inputs"]["results/toy/64k/dog/s0.json"] == files.read_json(
        paths.evaluation("toy", "64k", "dog", 0))["lineage"]["content"]  # fmt: skip
    assert lineage["outputs"]["transfer.csv"] == files.hash_file(paths.tables("toy") / "transfer.csv")


def test_numbers_are_written_with_six_figures():
    table = pd.DataFrame({"x": [1 / 3, 1e-12], "n": [1, 2]})
    assert tables.format_table(table) == "x,n\n0.333333,1\n1e-12,2\n"
