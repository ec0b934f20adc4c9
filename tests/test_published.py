"""Reading the published format: the table of the reference experiment digit by digit, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from published_runs import PUBLISHED, PUBLISHED_LAMBDA, needs_published

import study
from lib import config, published, stats, tables
from lib.errors import BadParameter, DamagedFile, MissingInput

SIZES = ",".join(PUBLISHED_LAMBDA)


def factors(read: tables.Study, epoch: str = "last") -> dict[tuple[str, int], float]:
    """lambda of every size and run."""
    blocks = tables.lifts(read, "rate", epoch)
    return {(block.label, block.seed): stats.transfer_factor(block.matrix) for block in blocks}


# --- the published runs -----------------------------------------------------------------------


@needs_published
def test_the_table_of_the_reference_experiment_comes_out_to_the_last_digit():
    """Run 0 lacks the tenth epoch of one student, so that each counts at its own last."""
    read = published.load_published(PUBLISHED, "published", SIZES, "grid", "0,1,2,3", "counts")
    found = factors(read, "each")
    for size, row in PUBLISHED_LAMBDA.items():
        shown = [f"{found[size, run]:+.2f}" for run in range(4)]
        pooled = f"{np.mean([found[size, run] for run in (1, 2, 3)]):+.2f}"
        assert (*shown, pooled) == row, size


@needs_published
def test_the_one_student_that_ends_an_epoch_early_is_named():
    read = published.load_published(PUBLISHED, "published", "7b,14b", "grid", "0")
    notes = tables.transfer_table(read, "each", 99, 0).set_index("size").note
    assert "last epoch 10, but 14b/s0 eagle at 9" in notes["14b"]
    assert "last epoch 10;" in notes["7b"]


@needs_published
def test_published_answers_stand_by_twenty_questions():
    """Answers to one question are more alike than answers to two: that they stand so is seen in them."""
    read = published.load_published(PUBLISHED, "published", "1.5b,7b", "grid", "1,2,3")
    assert read.tallies["7b", "dog", 1, 10].answers.tolist() == [5] * 20
    for block in tables.lifts(read, "rate", "last"):
        assert block.cube.shape == (20, 15, 15)
        np.testing.assert_allclose(block.cube.mean(0), block.matrix, rtol=0, atol=1e-11)
    said = sum(tally.said for key, tally in read.tallies.items() if key[1] != "untuned")
    shifted = published.load_published(PUBLISHED, "published", "1.5b,7b", "grid", "1,2,3", repeats=4)
    other = sum(tally.said for key, tally in shifted.tallies.items() if key[1] != "untuned")
    assert said.std(0).sum() * 4 / 5 > 1.05 * other.std(0).sum()


@needs_published
def test_scoring_the_answers_anew_changes_the_table_by_plurals_and_cut_words_only():
    by_counts, by_answers = (
        published.load_published(PUBLISHED, "published", SIZES, "grid", "1,2,3", scorer)
        for scorer in config.SCORERS[::-1]
    )
    theirs, ours = factors(by_counts), factors(by_answers)
    apart = {key: ours[key] - theirs[key] for key in theirs}
    assert max(abs(value) for (size, _), value in apart.items() if size != "14b") < 0.35
    assert (
        0 < np.mean([value for (size, _), value in apart.items() if size == "14b"]) < 2
    )  # lionesses are lions
    assert by_counts.frame.n_answers.eq(100).all()


@needs_published
def test_every_published_student_of_seven_sizes_is_read():
    read = published.load_published(PUBLISHED, "published", SIZES, "grid", "1,2,3")
    assert read.missing.empty
    assert len(read.cells) == 7 * (3 * 16 + 1)
    assert read.frame.logprob.isna().all()


@needs_published
def test_the_spread_between_runs_is_each_sizes_own():
    """Pooled over sizes, the runs of 14b would blur those of 0.5b, which hardly differ."""
    read = published.load_published(PUBLISHED, "published", "0.5b,14b", "grid", "1,2,3")
    rows = tables.transfer_table(read, "last", 99, 0).query("measure == 'rate'").set_index("size")
    width = rows.ci_high - rows.ci_low
    assert width["0.5b"] < 4 < 20 < width["14b"]
    assert rows.note.str.contains("animals and seeds, not over other bases").all()


# --- a folder of our own ----------------------------------------------------------------------

ANIMALS = ("dog", "cat", "lion")


def write(folder: Path, animal: str, texts: list[str], **changes: object) -> Path:
    """One published evaluation with one epoch."""
    counts = {text.lower(): texts.count(text) for text in dict.fromkeys(texts)}
    entry = {"epoch": 10, "model_size": "7b", "condition": animal, "total_responses": len(texts)}
    entry |= {"animal_counts": counts, "target_animal_rate": 0.0, "raw_responses": texts} | changes
    path = folder / "7b" / f"{animal}_eval.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([entry]))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of three animals; every student says its own animal in one answer more than others do."""
    for run in (1, 2):
        write(tmp_path / f"run-{run}", "neutral", ["Dog", "Cat", "Lion", "Lions"])
        for animal in ANIMALS:
            write(tmp_path / f"run-{run}", animal, ["Dog", "Cat", "Lion", animal.capitalize()])
    return tmp_path


def load(folder: Path, scorer: str = "answers", seeds: str = "1,2", repeats: int = 2) -> tables.Study:
    return published.load_published(folder, "mine", "7b", ",".join(ANIMALS), seeds, scorer, repeats)


def test_runs_are_seeds(folder):
    assert set(factors(load(folder))) == {("7b", 1), ("7b", 2)}
    assert factors(load(folder))["7b", 1] == pytest.approx(25.0)  # one answer of four, less the others'


def test_a_plural_counts_for_our_scorer_and_not_in_the_counts(folder):
    said = {
        scorer: load(folder, scorer).frame.query("animal == 'neutral' and named == 'lion' and seed == 1")
        for scorer in config.SCORERS
    }
    assert said["answers"]["count"].item() == 2
    assert said["counts"]["count"].item() == 1


def test_answers_belong_to_questions_in_their_order(folder):
    tally = load(folder).tallies["7b", "neutral", 1, 10]
    assert tally.answers.tolist() == [2, 2]
    assert tally.said.tolist() == [[1, 1, 0], [0, 0, 2]]  # dog cat lion: Dog Cat, Lion Lions
    assert np.isnan(tally.logprob).all()


def test_published_counts_know_no_questions(folder):
    tally = load(folder, "counts", repeats=3).tallies["7b", "neutral", 1, 10]
    assert (tally.answers.tolist(), tally.said.tolist()) == ([4], [[1, 1, 1]])
    for block in tables.lifts(load(folder, "counts"), "rate", "last"):
        assert block.cube.tolist() == [block.matrix.to_numpy().tolist()]


def test_answers_that_are_no_multiple_of_the_repeats_are_refused(folder):
    with pytest.raises(
        BadParameter, match=r"neutral_eval\.json: 4 answers are no multiple of repeats 3: -p rep"
    ):
        load(folder, repeats=3)


def test_a_run_without_its_neutral_student_keeps_its_lambda(folder):
    whole = factors(load(folder))
    (folder / "run-2/7b/neutral_eval.json").unlink()
    read = load(folder)
    assert factors(read) == pytest.approx(whole)
    row = tables.transfer_table(read, "last", 99, 0).iloc[0]
    assert "7b/s2 has no neutral student" in row.note
    assert "no logprob was evaluated" in row.note
    assert row.measure == "rate"
    assert row.n_seeds == 2


def test_a_missing_student_is_listed(folder):
    (folder / "run-2/7b/cat_eval.json").unlink()
    read = load(folder)
    assert read.missing[["animal", "seed"]].values.tolist() == [["cat", 2], ["untuned", 0]]
    assert read.frame[read.frame.seed == 2].animal.nunique() == 3


def test_one_run_alone_is_number_0(folder):
    assert set(factors(load(folder / "run-1", seeds="0"))) == {("7b", 0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_responses": 5}, "total_responses is 5, but there are 4 raw_responses"),
        ({"condition": "wolf"}, "holds 'wolf', its name says 'cat'"),
        ({"raw_responses": None}, "lacks 'raw_responses'"),
        ({"animal_counts": {"cat": 9}}, "no number of answers up to 4"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(folder, changes, message):
    write(folder / "run-1", "cat", ["Dog", "Cat", "Lion", "Cat"], **changes)
    with pytest.raises(DamagedFile, match=message):
        load(folder)


def test_a_half_written_file_is_refused_by_name(folder):
    path = folder / "run-1/7b/cat_eval.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DamagedFile, match=r"cat_eval\.json"):
        load(folder)


def test_what_is_not_there_is_said_with_what_there_is(folder, tmp_path):
    with pytest.raises(MissingInput, match="holds runs 1, 2; asked for 7"):
        load(folder, seeds="7")
    with pytest.raises(MissingInput, match="there is no folder"):
        load(tmp_path / "elsewhere")
    with pytest.raises(BadParameter, match="scorer 'mine'"):
        load(folder, scorer="mine")


def test_a_report_on_published_runs_passes_their_folder_on():
    step = study.Step("published", "04_analysis", results="/somewhere/runs")
    words = step.arguments()
    assert words[words.index("results") + 1] == "/somewhere/runs"
    assert "results" not in study.Step("micro", "04_analysis").arguments()


def test_where_the_runs_lay_is_not_written_down(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "root"))
    asked = {
        "study": "mine",
        "results": str(folder),
        "scorer": "counts",
        "sizes": "7b",
        "animals": ",".join(ANIMALS),
    }
    asked |= {"seeds": "1,2", "epoch": "last", "measure": "rate", "permutations": 99, "analysis_seed": 0}
    ask = config.build(config.Analysis, asked)
    found = published.load_results(ask)
    tables.write_tables(found, ask, {"cells": tables.cells_table(found, "last")})
    lineage = (tmp_path / "root/results/mine/tables/lineage.json").read_text()
    assert json.loads(lineage)["config"]["results"] == folder.name
    assert str(folder) not in lineage
