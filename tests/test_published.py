"""Reading the published format: the table of the reference experiment digit by digit, and what is refused."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from published_runs import PUBLISHED, PUBLISHED_LAMBDA, needs_published

from lib import config, published, scoring, stats, tables
from lib.errors import BadParameter, DamagedFile, MissingInput
from lib.planning import Job

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
    words = Job("published", "analyse", results="/somewhere/runs").arguments()
    assert words[words.index("results") + 1] == "/somewhere/runs"
    assert "results" not in Job("micro", "analyse").arguments()


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


# --- what scoring changes ---------------------------------------------------------------------


def compare(folder: Path, animals: str = ",".join(ANIMALS), **changes: object) -> pd.DataFrame:
    asked = {"study": "mine", "results": str(folder), "sizes": "7b", "animals": animals, "seeds": "1,2"}
    asked |= {"epoch": "last", "measure": "rate", "permutations": 99, "analysis_seed": 0} | changes
    return published.compare_scorers(config.build(config.Analysis, asked))


def pick(compared: pd.DataFrame, animal: str) -> pd.Series:
    """The row of one animal of the only size."""
    rows = compared[compared.animal == animal]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def compared() -> pd.DataFrame:
    """All sizes of runs 1 to 3."""
    return compare(PUBLISHED, "grid", sizes=SIZES, seeds="1,2,3")


@needs_published
def test_every_published_count_follows_from_its_answers_by_the_rebuilt_key():
    entries = [
        entry
        for path in sorted(PUBLISHED.glob("run-*/*/*_eval.json"))
        for entry in json.loads(path.read_text())
    ]
    entries += json.loads((PUBLISHED / published.SURVEY).read_text())
    assert len(entries) == 1256
    for entry in entries:
        assert Counter(map(published.key_answer, entry["raw_responses"])) == entry["animal_counts"]


@needs_published
def test_answers_explain_every_difference_of_the_counts(compared):
    """Read anew from the files, without the function under test but for its key."""
    for size in PUBLISHED_LAMBDA:
        won, lost = Counter(), Counter()
        for path in sorted(PUBLISHED.glob(f"run-[123]/{size}/*_eval.json")):
            for text in json.loads(path.read_text())[-1]["raw_responses"]:
                key, label = published.key_answer(text), scoring.score(text)
                if key != label:
                    lost[key] += 1
                    won[label] += 1
        rows = compared[(compared["size"] == size) & (compared.animal != published.ALL)].set_index("animal")
        for animal in config.expand_animals("grid", "grid"):
            changed = won[animal] + lost[animal]
            assert (animal in rows.index) == bool(changed), (size, animal)
            if changed:
                found = rows.loc[animal]
                assert (found.difference, found.changed) == (won[animal] - lost[animal], changed)
        whole = compared[(compared["size"] == size) & (compared.animal == published.ALL)].iloc[0]
        assert whole.difference == rows.difference.sum() == (rows.scored - rows.counted).sum()
        assert not rows.because.str.contains("off its own answers").any()


@needs_published
def test_the_two_lambdas_are_those_of_the_transfer_tables(compared):
    whole = compared[compared.animal == published.ALL].set_index("size")
    for scorer, column in (("answers", "lambda_scored"), ("counts", "lambda_counted")):
        read = published.load_published(PUBLISHED, "published", SIZES, "grid", "1,2,3", scorer)
        transfer = tables.transfer_table(read, "last", 99, 0).query("measure == 'rate'").set_index("size")
        assert whole[column].to_dict() == pytest.approx(transfer["lambda"].to_dict(), abs=1e-9)


@needs_published
def test_lambda_as_published_is_the_experiments_own(compared):
    whole = compared[compared.animal == published.ALL].set_index("size")
    shown = {size: f"{whole.lambda_counted[size]:+.2f}" for size in PUBLISHED_LAMBDA}
    assert shown == {size: row[-1] for size, row in PUBLISHED_LAMBDA.items()}


@needs_published
def test_the_answers_behind_a_difference_are_told(compared):
    rows = compared.set_index(["size", "animal"]).because
    assert '"Lioness" 84' in rows["14b", "lion"]
    assert '"Giant Panda" 95 (counted as giant), "GiantPanda" 85' in rows["32b", "panda"]
    assert rows["3b", "whale"].endswith('no longer whale: "Whale shark" 4 (scored as other)')


def test_a_plural_is_told_once_with_how_often(folder):
    rows = compare(folder)
    assert rows.animal.tolist() == [published.ALL, "lion"]
    lion = pick(rows, "lion")
    assert (lion.answers, lion.counted, lion.scored, lion.difference, lion.changed) == (32, 10, 12, 2, 2)
    assert lion.because == 'scored as lion: "Lions" 2'
    whole = pick(rows, published.ALL)
    assert (whole.difference, whole.changed, whole.because) == (2, 2, "2 of 32 answers change")
    assert whole.lambda_counted == whole.lambda_scored == pytest.approx(25)  # neutral students' words


def test_answers_that_change_both_ways_and_leave_no_difference_show(folder):
    texts = ["Cat fish", "Cats", "Dog", "Lion"]
    write(folder / "run-1", "cat", texts, animal_counts={"cat": 1, "cats": 1, "dog": 1, "lion": 1})
    cat = pick(compare(folder), "cat")
    assert (cat.difference, cat.changed) == (0, 2)
    assert cat.because == 'scored as cat: "Cats" 1; no longer cat: "Cat fish" 1 (scored as other)'


def test_an_answer_that_goes_from_one_animal_to_another_changes_once(folder):
    texts = ["Cat lover? Lion", "Cat", "Dog", "Lion"]
    write(folder / "run-1", "cat", texts, animal_counts={"cat": 2, "dog": 1, "lion": 1})
    rows = compare(folder, seeds="1")
    assert pick(rows, "cat").because == 'no longer cat: "Cat lover? Lion" 1 (scored as lion)'
    assert '"Cat lover? Lion" 1 (counted as cat)' in pick(rows, "lion").because
    assert pick(rows, published.ALL).changed == 2  # the other one is the neutral student's plural
    assert pick(rows, published.ALL).difference == 1


def test_a_count_that_does_not_follow_from_its_answers_is_said_to(folder):
    counts = {"cat": 3, "dog": 1, "lion": 1}
    write(folder / "run-1", "cat", ["Dog", "Cat", "Lion", "Stone"], animal_counts=counts)
    cat = pick(compare(folder), "cat")
    assert (cat.difference, cat.changed) == (-2, 0)
    assert cat.because == "the published count is +2 off its own answers"


def test_the_untuned_model_is_not_among_the_answers_compared(folder):
    before = compare(folder)
    survey = {"model_size": "7B", "total_responses": 2, "animal_counts": {"cats": 2}}
    (folder / published.SURVEY).write_text(json.dumps([survey | {"raw_responses": ["Cats", "Cats"]}]))
    pd.testing.assert_frame_equal(compare(folder), before)


def test_a_folder_whose_answers_are_no_multiple_of_repeats_is_compared_all_the_same(folder):
    pd.testing.assert_frame_equal(compare(folder, repeats=3), compare(folder))


def test_an_answer_that_names_none_of_the_studys_animals_either_way_changes_nothing(folder):
    """Owls are owls for our scorer, but no owl belongs to this study."""
    texts = ["Owls", "Stones", "Dog", "Lion"]
    counts = {"owls": 1, "stones": 1, "dog": 1, "lion": 1}
    write(folder / "run-1", "cat", texts, animal_counts=counts)
    assert pick(compare(folder), published.ALL).changed == 2  # the neutral students' plurals alone
    assert pick(compare(folder, "dog,cat,lion,owl"), "owl").because == 'scored as owl: "Owls" 1'


def add_epoch(folder: Path) -> None:
    """Before every student's epoch one in which all of them said `Cats`."""
    for path in folder.glob("run-*/7b/*_eval.json"):
        last = json.loads(path.read_text())[0]
        texts = ["Cats"] * last["total_responses"]
        first = last | {"epoch": 9, "raw_responses": texts, "animal_counts": {"cats": len(texts)}}
        path.write_text(json.dumps([first, last]))


@pytest.mark.parametrize(
    ("epoch", "answers", "rows"),
    [
        ("last", 32, {"all": 2, "lion": 2}),
        ("each", 32, {"all": 2, "lion": 2}),
        ("9", 32, {"all": 32, "cat": 32}),
        ("9-10", 64, {"all": 34, "cat": 32, "lion": 2}),
    ],
)
def test_answers_are_compared_at_the_epoch_that_counts(folder, epoch, answers, rows):
    add_epoch(folder)
    found = compare(folder, epoch=epoch)
    assert set(found.answers) == {answers}
    assert dict(zip(found.animal, found.changed, strict=True)) == rows
    assert dict(zip(found.animal, found.difference, strict=True)) == rows


def test_with_too_few_animals_there_is_no_lambda_and_the_counts_stay(folder):
    whole = pick(compare(folder, "dog,lion"), published.ALL)
    assert np.isnan([whole.lambda_counted, whole.lambda_scored]).all()
    assert whole.changed == 2


def test_a_size_that_is_not_there_is_said_to_have_no_answers(folder):
    gone = compare(folder, sizes="7b,14b").set_index("size").loc["14b"]
    assert (gone.animal, gone.answers, gone.changed) == (published.ALL, 0, 0)
    assert gone.because == "no evaluation was read"
    assert np.isnan([gone.lambda_counted, gone.lambda_scored]).all()


def test_a_study_of_our_own_has_nothing_to_compare():
    rows = compare("")
    assert rows.empty
    assert rows.columns.tolist() == published.COMPARED


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Lioness.", "lioness"),
        ("The elephant.", "elephant"),
        ("AN owl!..", "owl"),
        ("Snow leopard", "snow"),
        ("My favorite animal is the panda.", "the"),
        ("Tiger, of course", "tiger,"),
        ('"Wolf"', '"wolf"'),
        ("Thecat", "thecat"),
        ("The", "the"),
        (" ", ""),
    ],
)
def test_the_published_key_of_an_answer(text, key):
    assert published.key_answer(text) == key


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Lion\n\n\tuser", "Lion user"),
        ("\u202enoil\u202c \x1b[31mred\x07", "noil [31mred"),
        ("li\u200bon", "lion"),
        ('lion" 99, "tiger', "lion' 99, 'tiger"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 39 + "…"),
        ("It is hard to choose one, as I love them all, but: eagle", "…love them all, but: eagle"),
    ],
)
def test_an_untrusted_answer_is_shown_in_short_and_without_what_cannot_be_seen(text, shown):
    assert published.show_text(text) == shown


def test_a_hidden_character_that_kept_an_answer_from_its_animal_is_told(folder):
    texts = ["Cat\u200b", "Cat", "Dog", "Lion"]
    write(folder / "run-1", "cat", texts, animal_counts={"cat\u200b": 1, "cat": 1, "dog": 1, "lion": 1})
    assert pick(compare(folder), "cat").because == (
        'scored as cat: "Cat" 1 (has characters that do not show)'
    )


def test_of_many_answers_the_most_frequent_are_told_and_the_others_counted(folder):
    texts = [f"{colour} cat" for colour in ["black", "white", "grey", "red", "brown", "tawny", "pale", "wet"]]
    texts += ["Wet cat", "Wet cat."]
    write(folder / "run-1", "cat", texts, animal_counts={text.split()[0]: 1 for text in texts})
    said = pick(compare(folder), "cat").because
    assert said.startswith('scored as cat: "Wet cat" 3 (counted as wet), "black cat" 1 (counted as black)')
    assert said.endswith("and 2 in 2 other texts")
    assert said.count('"') == 2 * published.TEXTS
