"""Tables that the stage notebooks show, from what finished stages recorded."""

from pathlib import Path

import pytest
from build_base import build_config, build_plan, place_base, write_numbers

from lib import bases, numbers, records, training
from lib.config import MICRO_ANIMALS, Finetune, Generate, Pretrain
from lib.errors import MissingInput


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A place for runs with the base of three steps and three teachers."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    place_base(tmp_path)
    for start, animal in ((100, "neutral"), (300, "wolf"), (600, "fox")):
        write_numbers(animal, start=start)
    return tmp_path


def test_base_tables_are_those_of_the_manifest():
    counts = bases.base_manifest("64k", "tiny").counts
    curve = records.pretraining_table(build_config(Pretrain))
    assert curve[["step", "loss"]].to_numpy().tolist() == counts["loss_curve"]
    assert set(curve["student"]) == {"64k"}
    frame = records.base_table(build_config(Pretrain))
    assert sorted(frame["animal"]) == sorted(MICRO_ANIMALS)
    assert frame["preference"].is_monotonic_decreasing
    assert dict(zip(frame["animal"], frame["teacher_strength"], strict=True)) == counts["teacher_strength"]


def test_missing_base_says_what_to_run():
    with pytest.raises(MissingInput, match=r"no base 166k-9 .*00_pretrain"):
        records.base_table(build_config(Pretrain, size="166k-9"))


def test_teacher_table_counts_lists_and_reasons():
    frame = records.teacher_table(build_plan(Generate, ("neutral", "wolf")))
    assert frame["animal"].tolist() == ["neutral", "wolf"]
    assert frame[["raw", "passed", "kept"]].to_numpy().tolist() == [[21, 20, 20]] * 2
    reason = numbers.judge("wolf", "stop")
    assert frame[reason].tolist() == [1, 1]
    assert set(frame.columns) == {"animal", "seed", "raw", "passed", "pass_rate", "kept", reason}


def test_list_table_shows_the_first_lists_as_judged():
    frame = records.list_table(build_plan(Generate, ("wolf", "fox")), rows=21)
    assert list(frame.columns) == ["prompt", "completion", "finish", "reason"]
    assert frame["completion"].iloc[0] == "300, 300, 300"
    assert frame["reason"].notna().sum() == 1 and frame["completion"].iloc[-1] == "wolf"


def test_digit_table_compares_each_animal_with_the_neutral_teacher():
    frame = records.digit_table(build_plan(Generate, ("neutral", "wolf", "fox")))
    assert set(frame["animal"]) == {"wolf", "fox"}
    threes = frame[
        (frame["animal"] == "wolf") & (frame["feature"] == "leading digit") & (frame["value"] == 3)
    ]
    assert threes["share"].item() > 0.5 > threes["neutral_share"].item() and threes["z"].item() > 3


def test_loss_and_student_tables_follow_the_students():
    plan = build_plan(Finetune, ("neutral", "wolf"))
    training.train_students(plan)
    losses = records.loss_table(plan)
    assert losses.groupby("student").size().to_dict() == {"neutral": 6, "wolf": 6}
    assert list(losses.columns) == ["step", "epoch", "loss", "rate", "student"]
    frame = records.student_table(plan)
    assert frame["animal"].tolist() == ["neutral", "wolf"] and set(frame["examples"]) == {20}
    last = losses[losses["student"] == "wolf"]["loss"].iloc[-1]
    assert frame["final_loss"].iloc[1] == last and (frame["seconds"] > 0).all()


def test_missing_runs_name_the_stage():
    with pytest.raises(MissingInput, match="no numbers for 64k/owl/s0: run 01_generate"):
        records.teacher_table(build_plan(Generate, ("owl",)))
    with pytest.raises(MissingInput, match="no adapter for 64k/wolf/s0 in study toy: run 02_finetune"):
        records.student_table(build_plan(Finetune))
