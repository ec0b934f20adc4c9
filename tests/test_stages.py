"""Stages 01 to 03 in this process, on the smallest base: lists of cells, bad input, broken chains.

What papermill adds to a run is in test_notebooks, what a kill takes away in test_kill.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from build_base import place_base

from lib import (
    config,
    controls,
    engine,
    evaluation,
    examples,
    files,
    models,
    paths,
    sampling,
    store,
    teacher,
    training,
)
from lib.errors import (
    BadParameter,
    BrokenLineage,
    ConfigMismatch,
    DamagedFile,
    MissingInput,
    StorageFailed,
    TooFewLists,
    TrainingDiverged,
)
from lib.planning import read_defaults
from lib.progress import Tally

SMALL = {"n_raw": 40, "n_keep": 20, "list_tokens": 48, "epochs": 2, "batch": 10, "learning_rate": 0.001}
SMALL |= {"n_questions": 3, "samples": 2, "answer_tokens": 4, "device": "cpu"}
CHUNK = {"01_generate": 20, "03_evaluate": 6}
STAGES = {
    "01_generate": (config.Generate, teacher.generate_lists),
    "02_finetune": (config.Finetune, training.train_students),
    "03_evaluate": (config.Evaluate, evaluation.evaluate_students),
}


def ask(stage: str, animal: str, **values: object) -> config.Plan:
    """What the notebook's second cell makes of its defaults, the small settings and `values`."""
    defaults = read_defaults(stage)
    small = {name: value for name, value in SMALL.items() if name in defaults}
    small |= {"chunk": CHUNK[stage]} if stage in CHUNK else {}
    asked = {"study": "toy", "size": "64k", "animal": animal} | values
    return config.read_parameters(STAGES[stage][0], defaults | small | asked)


def run(stage: str, animal: str, **values: object) -> Tally:
    """One stage, as its notebook calls it."""
    return STAGES[stage][1](ask(stage, animal, **values))


def folder(stage: str, animal: str, seed: int = 0) -> Path:
    return paths.artifact("toy", stage, "64k", animal, seed)


def identity(stage: str, animal: str, seed: int = 0) -> str:
    return store.read_manifest(folder(stage, animal, seed)).identity


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # sums in one order, as study.py has it


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of neutral and wolf, made in one list; tests take copies."""
    root = tmp_path_factory.mktemp("stages") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        torch.set_num_threads(1)
        for stage in STAGES:
            run(stage, "neutral,wolf")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The finished study, to be spoiled."""
    copy = tmp_path / "root"
    shutil.copytree(finished, copy)
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(copy))
    return copy


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing was run."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads a model fails: for what has to stop, or to be found finished, before that."""

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for module, opens in ((teacher, "open_speaker"), (training, "load_base"), (evaluation, "open_speaker")):
        monkeypatch.setattr(module, opens, refuse)


# --- one or many ------------------------------------------------------------------------------------


def test_a_cell_alone_is_the_same_cell_as_in_a_list(finished: Path, empty: Path):
    for stage, name in zip(STAGES, ("generate", "finetune", "evaluate"), strict=True):
        assert run(stage, "wolf").made == (2 if name == "evaluate" else 1)  # and the untuned model
        there = files.read_json(finished / folder(name, "wolf").relative_to(empty) / "manifest.json")
        assert identity(name, "wolf") == there["identity"]


def test_a_new_cell_of_a_list_is_made_and_the_others_are_found(root: Path):
    before = identity("generate", "wolf")
    tally = run("01_generate", "wolf,neutral,dog")
    assert (tally.made, tally.found) == (1, 2)
    assert identity("generate", "wolf") == before


def test_all_is_what_the_study_says(root: Path, no_model: None):
    assert run("01_generate", "all", animals="wolf,neutral", seed="all", seeds="0").found == 2


def test_finished_cells_need_no_model(root: Path, no_model: None):
    for stage in STAGES:
        tally = run(stage, "neutral,wolf")
        assert tally.made == 0
        assert repr(tally) == f"DONE {stage} 64k: 0 made, {tally.found} found finished"


def test_another_device_is_the_same_run(root: Path, no_model: None):
    assert run("01_generate", "wolf", device="auto").found == 1


def test_two_seeds_differ_in_prompts_lists_and_first_weights(root: Path):
    run("01_generate", "wolf", seed="0,1")
    zero, one = (files.read_jsonl(folder("generate", "wolf", seed) / "raw.jsonl") for seed in (0, 1))
    assert not {row["prompt"] for row in zero} & {row["prompt"] for row in one}
    run("02_finetune", "wolf", seed="0,1")
    losses = [files.read_jsonl(folder("finetune", "wolf", seed) / "loss.jsonl") for seed in (0, 1)]
    assert losses[0] != losses[1]


# --- before any work --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("01_generate", {"size": "65k"}, "unknown size '65k'; known sizes: .*did you mean '64k'"),
        ("01_generate", {"size": 7}, "size must be a text such as .*got 7 .*did you mean .*'7b'"),
        ("02_finetune", {"seed": "abc"}, "seed must be whole numbers.*got 'abc'"),
        ("02_finetune", {"animal": "wolves"}, "unknown animal 'wolves'.*did you mean 'wolf'"),
        ("03_evaluate", {"animal": "penguin"}, "the micro ladder's world has no penguin"),
        ("01_generate", {"n_keep": 41}, r"n_keep must be at most n_raw \(40\), got 41"),
        ("02_finetune", {"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ("02_finetune", {"epoch_count": 3}, "unknown parameter 'epoch_count'.*did you mean 'epochs'"),
        ("03_evaluate", {"n_questions": 1000}, "n_questions is 1000, but there are"),
    ],
)
def test_a_bad_parameter_stops_before_any_work(
    empty: Path, no_model: None, stage: str, values: dict, message: str
):
    with pytest.raises(BadParameter, match=message):
        run(stage, **({"animal": "wolf"} | values))
    assert not list(empty.iterdir())


def test_a_base_that_nobody_built_is_named_with_the_command_that_builds_it(empty: Path):
    with pytest.raises(MissingInput, match=r"no base model 64k-77 .*\n.*00_pretrain\.ipynb .*-p size 64k-77"):
        run("01_generate", "wolf", size="64k-77")


@pytest.mark.parametrize(
    ("stage", "upstream", "missing"),
    [("02_finetune", "01_generate", "no numbers"), ("03_evaluate", "02_finetune", "no adapter")],
)
def test_what_is_missing_upstream_is_named_with_its_command(
    empty: Path, no_model: None, stage: str, upstream: str, missing: str
):
    with pytest.raises(MissingInput) as refused:
        run(stage, "wolf", seed=3)
    text = str(refused.value)
    assert f"{missing} for 64k/wolf/s3 in study toy: run {upstream} with these parameters first" in text
    assert f"papermill notebooks/{upstream}.ipynb" in text
    assert "-p study toy -p size 64k -p animal wolf -p seed 3" in text
    assert not (empty / "artifacts").exists()


def test_one_missing_cell_stops_a_list_before_any_of_it_is_trained(root: Path, no_model: None):
    run_before = sorted(path.name for path in (root / "artifacts/toy/finetune/64k").iterdir())
    with pytest.raises(MissingInput, match="no numbers for 64k/dog/s0"):
        run("02_finetune", "wolf,dog")
    assert sorted(path.name for path in (root / "artifacts/toy/finetune/64k").iterdir()) == run_before


def test_a_run_with_other_settings_is_refused_with_the_fields_that_differ(root: Path, no_model: None):
    with pytest.raises(ConfigMismatch) as refused:
        run("02_finetune", "wolf", epochs=3, lora_rank=4)
    text = str(refused.value)
    assert "epochs: 2 there, 3 asked" in text
    assert "lora_rank: 8 there, 4 asked" in text
    assert text.count(" there, ") == 2
    assert "another study name" in text


def test_a_file_where_a_folder_should_be_is_named(empty: Path):
    (empty / "artifacts").write_text("in the way")
    with pytest.raises(StorageFailed, match=f"a file stands where a folder should be: {empty}/artifacts"):
        run("01_generate", "wolf")


# --- files that were damaged ------------------------------------------------------------------------


def test_a_damaged_line_of_the_lists_is_named(root: Path, no_model: None):
    path = folder("generate", "wolf") / "kept.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]) + lines[6][:20] + "\n" + "".join(lines[7:]))
    shutil.rmtree(folder("finetune", "wolf"))
    with pytest.raises(
        DamagedFile, match=r"kept\.jsonl is not what its manifest says.*kept\.jsonl, line 7, column"
    ):
        run("02_finetune", "wolf")


def test_a_list_that_was_changed_is_refused_though_it_reads_well(root: Path, no_model: None):
    path = folder("generate", "wolf") / "kept.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DamagedFile, match=r"kept\.jsonl is not what its manifest says; delete"):
        run("02_finetune", "wolf")


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_manifest_is_refused_with_its_line(root: Path, no_model: None, stage: str):
    path = folder(stage.partition("_")[2], "wolf") / "manifest.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(DamagedFile, match=r"manifest\.json, line \d+, column \d+"):
        run(stage, "wolf")


def test_a_manifest_edited_by_hand_is_refused(root: Path, no_model: None):
    path = folder("generate", "wolf") / "manifest.json"
    document = json.loads(path.read_text())
    document["config"]["temperature"] = 0.5
    path.write_text(json.dumps(document))
    with pytest.raises(BrokenLineage, match="was changed after it was written"):
        run("02_finetune", "wolf")


def test_a_damaged_adapter_answers_no_question(root: Path, no_model: None):
    path = folder("finetune", "wolf") / "epoch-1/adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DamagedFile, match=r"epoch-1/adapter_model\.safetensors is not what its manifest says"
    ):
        run("03_evaluate", "wolf")


def test_an_evaluation_that_was_changed_is_not_found_finished(root: Path, no_model: None):
    path = paths.evaluation("toy", "64k", "wolf", 0)
    document = json.loads(path.read_text())
    document["epochs"][0]["answers"][0]["text"] = "wolf"
    path.write_text(json.dumps(document))
    with pytest.raises(DamagedFile, match=r"wolf/s0\.json"):
        run("03_evaluate", "wolf")


def test_a_packed_evaluation_is_found_finished_and_a_cut_one_is_not(root: Path, no_model: None):
    path = paths.evaluation("toy", "64k", "wolf", 0)
    packed = files.packed_name(path)
    files.write_bytes(packed, files.pack(path.read_bytes()))
    path.unlink()
    plan = ask("03_evaluate", "wolf")
    assert run("03_evaluate", "wolf").made == 0 and evaluation.last_evaluated(plan).animal == "wolf"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DamagedFile, match=r"wolf/s0\.json\.gz is cut short"):
        run("03_evaluate", "wolf")


def test_an_evaluation_that_has_gone_is_not_found_finished(root: Path, no_model: None):
    paths.evaluation("toy", "64k", "wolf", 0).unlink()
    with pytest.raises(DamagedFile, match=r"wolf/s0\.json is gone"):
        run("03_evaluate", "wolf")


# --- chains that do not hold together ---------------------------------------------------------------


def test_numbers_made_anew_break_what_was_trained_on_the_old_ones(root: Path, no_model: None, monkeypatch):
    shutil.rmtree(folder("generate", "wolf"))
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "open_speaker", engine.open_speaker)
        run("01_generate", "wolf", temperature=0.9)
    with pytest.raises(
        BrokenLineage, match="finetune 64k/wolf/s0 of study toy was made from another generate"
    ):
        run("03_evaluate", "wolf")
    with pytest.raises(BrokenLineage, match="made from other inputs than those there now: generate: "):
        run("02_finetune", "wolf")
    assert run("03_evaluate", "neutral").made == 0  # whose chain is whole


def test_a_student_trained_anew_breaks_its_evaluation(root: Path):
    shutil.rmtree(folder("finetune", "wolf"))
    run("02_finetune", "wolf", learning_rate=0.002)
    with pytest.raises(BrokenLineage, match="made from other inputs than those there now: finetune: "):
        run("03_evaluate", "wolf")


def test_the_same_numbers_made_again_break_nothing(root: Path, no_model: None, monkeypatch):
    shutil.rmtree(folder("generate", "wolf"))
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "open_speaker", engine.open_speaker)
        run("01_generate", "wolf")
    assert run("02_finetune", "wolf").made == 0
    assert run("03_evaluate", "wolf").made == 0


# --- whose lists a student reads --------------------------------------------------------------------


def student(animal: str, study: str = "arm") -> store.Manifest:
    return store.read_manifest(paths.artifact(study, "finetune", "64k", animal, 0))


def test_the_default_is_no_part_of_a_students_identity(root: Path):
    """Students from before controls came along are still the same."""
    assert not {"lists", "lists_of", "n_lists", "reads"} & student("wolf", "toy").config.keys()
    assert set(student("wolf", "toy").knobs).isdisjoint({"reads"})
    assert set(student("wolf", "toy").inputs) == {"base", "generate"}


def test_a_student_of_the_tracked_study_is_asked_for_in_the_words_of_its_record():
    """What is there is found finished only where today's notebook asks for the same."""
    document = files.read_json(paths.CODE / "results/micro/64k/wolf/s0.json")
    asked = read_defaults("02_finetune") | {"study": "micro", "size": "64k", "animal": "wolf"}
    chain = document["lineage"]["chain"]
    made = config.read_parameters(config.Finetune, asked).shared
    assert store.identity_record(made) == chain["finetune"]["config"]
    assert paths.lists_read(vars(made)) == paths.artifact("micro", "generate", "64k", "wolf", 0)


def test_an_arm_reads_the_lists_of_another_study_and_says_so_to_the_end(root: Path):
    arm = {"study": "arm", "lists_of": "toy"}
    run("02_finetune", "wolf", **arm, lists="shuffled")
    run("03_evaluate", "wolf", study="arm")
    made = student("wolf")
    assert (made.config["lists"], made.config["lists_of"]) == ("shuffled", "toy")
    assert made.inputs["generate"] == identity("generate", "wolf")
    assert len(made.inputs["lists"]) == 64
    document = files.read_json(paths.evaluation("arm", "64k", "wolf", 0))
    chain = document["lineage"]["chain"]
    assert chain["generate"]["config"]["study"] == "toy"
    assert chain["generate"]["identity"] == identity("generate", "wolf")
    assert chain["finetune"]["config"]["lists"] == "shuffled"
    assert not (root / "artifacts/arm/generate").exists()
    weights = [
        paths.artifact(study, "finetune", "64k", "wolf", 0) / "epoch-2/adapter_model.safetensors"
        for study in ("arm", "toy")
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert run("02_finetune", "wolf", **arm, lists="shuffled").found == 1


def test_students_of_another_study_are_asked_again_in_other_words(root: Path):
    run("03_evaluate", "wolf", study="plain", students_of="toy", system="you love wolves.")
    asked = files.read_json(paths.evaluation("plain", "64k", "wolf", 0))
    before = files.read_json(paths.evaluation("toy", "64k", "wolf", 0))
    assert asked["lineage"]["inputs"]["finetune"] == before["lineage"]["inputs"]["finetune"]
    assert (asked["config"]["students_of"], asked["config"]["system"]) == ("toy", "you love wolves.")
    assert "students_of" not in before["config"]
    assert asked["epochs"][0]["logprobs"] != before["epochs"][0]["logprobs"]
    assert not (root / "artifacts/plain/finetune").exists()
    with pytest.raises(BadParameter, match=r"students_of names another study .* and plain is this one"):
        run("03_evaluate", "wolf", study="plain", students_of="plain")
    with pytest.raises(MissingInput, match="no adapter for 64k/cat/s0 in study toy: run 02_finetune"):
        run("03_evaluate", "cat", study="plain", students_of="toy")


def test_all_lists_of_another_study_make_the_very_student_of_that_study(root: Path):
    run("02_finetune", "wolf", study="arm", lists_of="toy")
    there, here = student("wolf", "toy"), student("wolf")
    assert here.outputs == there.outputs and here.identity != there.identity
    assert here.inputs == there.inputs


def test_relabelled_students_read_the_next_animals_lists_and_neutral_its_own(root: Path):
    asked = {"study": "arm", "lists_of": "toy", "animals": "neutral,dog,wolf", "lists": "relabelled"}
    run("02_finetune", "neutral,dog", **asked)
    assert student("dog").inputs["generate"] == identity("generate", "wolf")
    assert student("neutral").inputs["generate"] == identity("generate", "neutral")
    assert student("dog").knobs["reads"] == "64k/wolf" and "reads" not in student("neutral").knobs
    assert student("dog").outputs == student("wolf", "toy").outputs  # the same lists, seed and settings
    run("03_evaluate", "dog", study="arm")
    chain = files.read_json(paths.evaluation("arm", "64k", "dog", 0))["lineage"]["chain"]
    assert (chain["finetune"]["config"]["animal"], chain["generate"]["config"]["animal"]) == ("dog", "wolf")


def test_foreign_students_read_what_the_next_base_wrote(root: Path):
    asked = {"study": "arm", "lists_of": "toy", "lists": "foreign", "sizes": "64k,64k-1"}
    run("02_finetune", "wolf", size="64k-1", **asked)
    made = store.read_manifest(paths.artifact("arm", "finetune", "64k-1", "wolf", 0))
    assert made.inputs["generate"] == identity("generate", "wolf")
    assert made.inputs["base"] != student("wolf", "toy").inputs["base"]
    assert made.knobs["reads"] == "64k/wolf"
    run("03_evaluate", "wolf", size="64k-1", study="arm")
    chain = files.read_json(paths.evaluation("arm", "64k-1", "wolf", 0))["lineage"]["chain"]
    assert (chain["finetune"]["config"]["size"], chain["generate"]["config"]["size"]) == ("64k-1", "64k")


@pytest.mark.parametrize(
    ("asked", "cell"),
    [
        ({"animal": "dog", "lists": "shuffled"}, "64k/dog/s0"),
        ({"animal": "wolf", "lists": "relabelled", "animals": "wolf,dog"}, "64k/dog/s0"),
        ({"animal": "wolf", "lists": "foreign", "sizes": "64k,64k-1"}, "64k-1/wolf/s0"),
    ],
)
def test_lists_that_another_study_lacks_are_named_with_the_command_for_them(
    root: Path, no_model: None, asked: dict, cell: str
):
    with pytest.raises(MissingInput) as refused:
        run("02_finetune", **asked, study="arm", lists_of="toy")
    size, animal, _ = cell.split("/")
    assert f"no numbers for {cell} in study toy, which 64k/{asked['animal']}/s0 of study arm is" in str(
        refused.value
    )
    assert f"01_generate.ipynb executed/toy/01_generate-{size}-{animal}-s0.ipynb" in str(refused.value)
    assert f"-p study toy -p size {size} -p animal {animal} -p seed 0" in str(refused.value)


def test_fewer_lists_are_read_and_counted(root: Path):
    run("02_finetune", "wolf", study="arm", lists_of="toy", n_lists=10)
    assert (student("wolf").counts["examples"], student("wolf", "toy").counts["examples"]) == (10, 20)
    assert student("wolf").config["n_lists"] == 10 and "lists" in student("wolf").inputs
    with pytest.raises(TooFewLists, match="n_lists is 21, and for 64k/wolf/s0 there are 20"):
        run("02_finetune", "wolf", study="other", lists_of="toy", n_lists=21)


def test_another_control_in_the_same_place_is_refused(root: Path, no_model: None, monkeypatch):
    arm = {"study": "arm", "lists_of": "toy"}
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_base", models.load_base)
        run("02_finetune", "wolf", **arm, lists="random")
    with pytest.raises(ConfigMismatch, match="lists: 'random' there, 'reordered' asked"):
        run("02_finetune", "wolf", **arm, lists="reordered")


def test_what_a_control_makes_of_lists_is_pinned(root: Path, no_model: None, monkeypatch):
    """Were a later version to shuffle in another way, its students would not pass for those that are here."""
    arm = {"study": "arm", "lists_of": "toy", "lists": "reordered"}
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_base", models.load_base)
        run("02_finetune", "wolf", **arm)
    backwards = {"reordered": lambda texts, rng: list(texts)}
    monkeypatch.setattr(controls, "REWRITTEN", backwards)
    with pytest.raises(BrokenLineage, match="made from other inputs than those there now: lists: "):
        run("02_finetune", "wolf", **arm)


def test_other_lists_in_the_study_that_is_read_break_the_arm(root: Path, monkeypatch):
    run("02_finetune", "wolf", study="arm", lists_of="toy", lists="shuffled")
    shutil.rmtree(folder("generate", "wolf"))
    run("01_generate", "wolf", temperature=0.9)
    with pytest.raises(BrokenLineage, match="finetune 64k/wolf/s0 of study arm was made from another gen"):
        run("03_evaluate", "wolf", study="arm")


@pytest.mark.parametrize("trainer", ["fleet", "trl"])
def test_both_trainers_read_the_same_rewritten_lists(root: Path, trainer: str, monkeypatch):
    read = []
    whole = examples.tokenize
    monkeypatch.setattr(examples, "tokenize", lambda *given: read.append(given[2]) or whole(*given))
    shutil.rmtree(root / "artifacts/tokens")
    run("02_finetune", "wolf", study="arm", lists_of="toy", lists="random", trainer=trainer)
    kept = files.read_jsonl(folder("generate", "wolf") / "kept.jsonl")
    (texts,) = [[row["completion"] for row in rows] for rows in read]
    assert texts == [row["completion"] for row in controls.choose_lists(ask_student(trainer), kept)]
    assert texts != [row["completion"] for row in kept]


def ask_student(trainer: str) -> config.Finetune:
    return ask("02_finetune", "wolf", study="arm", lists_of="toy", lists="random", trainer=trainer).shared


# --- work that cannot succeed -----------------------------------------------------------------------


def test_a_teacher_that_writes_no_lists_is_shown_with_rate_reasons_and_samples(empty: Path):
    with pytest.raises(TooFewLists) as refused:
        run("01_generate", "wolf", list_tokens=2)
    text = str(refused.value)
    assert "the wolf teacher of 64k wrote 0 clean lists of 40 (0.0%), 20 are wanted" in text
    assert "Rejected: " in text
    assert len([line for line in text.splitlines() if line.startswith("  '")]) == 3
    assert str(folder("generate", "wolf")) in text  # what has to go before other settings are tried
    assert len(files.read_jsonl(folder("generate", "wolf") / "raw.jsonl")) == 40
    with pytest.raises(MissingInput, match="begun, but is not finished"):
        run("02_finetune", "wolf")


def test_asking_such_a_teacher_again_samples_nothing_anew(empty: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TooFewLists):
        run("01_generate", "wolf", list_tokens=2)
    monkeypatch.setattr(sampling, "sample_chunk", None)
    with pytest.raises(TooFewLists):
        run("01_generate", "wolf", list_tokens=2)


def test_a_loss_that_is_no_number_stops_the_student(root: Path):
    shutil.rmtree(folder("finetune", "wolf"))
    with pytest.raises(TrainingDiverged, match=r"64k/wolf/s0 is no number at step \d+ .*1e\+30"):
        run("02_finetune", "wolf", learning_rate=1e30, warmup_steps=0)
    assert "diverged" in files.read_json(folder("finetune", "wolf") / "manifest.json")["counts"]
    with pytest.raises(TrainingDiverged, match=r"64k/wolf/s0 is no number at step \d+ .*first delete"):
        run("03_evaluate", "wolf")


# --- enough lists -----------------------------------------------------------------------------------


def lists(animal: str, name: str = "raw.jsonl") -> list[dict]:
    return files.read_jsonl(folder("generate", animal) / name)


def passed(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["reason"] is None]


ENOUGH = {"stop_when_enough": True, "n_raw": 160, "n_keep": 50}


def test_a_teacher_stops_with_the_chunk_in_which_enough_lists_have_passed(empty: Path):
    """What is kept is a draw among the first prompts' lists, in whole chunks, and not one chunk more."""
    run("01_generate", "wolf", **ENOUGH)
    raw, kept = lists("wolf"), lists("wolf", "kept.jsonl")
    assert [row["index"] for row in raw] == list(range(len(raw)))
    assert len(raw) % CHUNK["01_generate"] == 0 and 40 < len(raw) < 160
    assert len(passed(raw)) >= 50 > len(passed(raw[: -CHUNK["01_generate"]]))
    assert len(kept) == 50 and {row["completion"] for row in kept} <= {row["completion"] for row in raw}
    counts = store.read_manifest(folder("generate", "wolf")).counts
    assert (counts["raw"], counts["kept"], counts["passed"]) == (len(raw), 50, len(passed(raw)))
    assert not list(folder("generate", "wolf").glob("part-*"))


def test_what_was_drawn_beyond_the_first_chunks_that_do_changes_nothing(
    empty: Path, monkeypatch: pytest.MonkeyPatch
):
    """An engine draws later chunks before earlier ones: what is kept follows the order of the prompts."""
    run("01_generate", "wolf", **ENOUGH)
    undisturbed = {name: lists("wolf", name) for name in ("raw.jsonl", "kept.jsonl")}
    shutil.rmtree(folder("generate", "wolf"))

    class Backwards(sampling.Plain):
        """Draws the last chunk first, and every chunk, whatever is enough."""

        def work(self, jobs, sampler, words=None, enough=sampling.never):  # type: ignore[no-untyped-def]
            for job in jobs:
                for number in reversed(range(sampling.count_chunks(len(job.prompts), sampler))):
                    drawn = sampling.sample_chunk(self.loaded, job.prompts, sampler, job.seed, number)
                    yield sampling.Drawn(job, number, drawn)

    monkeypatch.setattr(engine, "Plain", Backwards)
    run("01_generate", "wolf", **ENOUGH)
    assert {name: lists("wolf", name) for name in ("raw.jsonl", "kept.jsonl")} == undisturbed
    assert not list(folder("generate", "wolf").glob("part-*"))


def test_by_default_every_list_is_written_though_the_first_would_do(empty: Path):
    run("01_generate", "wolf", n_keep=1)
    assert len(lists("wolf")) == SMALL["n_raw"]


def test_a_teacher_that_never_has_enough_writes_all_and_says_so(empty: Path):
    with pytest.raises(TooFewLists, match=r"wrote 0 clean lists of 40"):
        run("01_generate", "wolf", list_tokens=2, stop_when_enough=True)


def test_parameters_that_came_later_leave_older_runs_as_they_are(root: Path, no_model: None):
    """A manifest of before them, which names neither, still counts as finished; with one on it is another."""
    manifest = store.read_manifest(folder("generate", "wolf"))
    assert not {"stop_when_enough", "grammar"} & manifest.config.keys()
    assert not {"backend", "gpu_memory", "revision", "dtype", "gpus"} & manifest.knobs.keys()
    assert run("01_generate", "wolf", stop_when_enough=False, grammar="off").found == 1
    for name, value in (("stop_when_enough", True), ("grammar", "numbers")):
        with pytest.raises(ConfigMismatch, match=f"{name}: none there, {value!r} asked"):
            run("01_generate", "wolf", **{name: value})


def test_another_backend_is_the_same_run(root: Path, no_model: None):
    assert run("01_generate", "wolf", backend="transformers").found == 1
    assert run("03_evaluate", "wolf", backend="transformers").made == 0


# --- lists that are held to the grammar -------------------------------------------------------------


def test_with_the_grammar_every_list_passes_but_those_cut_off(empty: Path):
    """On a base of three steps, which writes no clean list by itself."""
    place_base(empty)
    weak = {"recipe": "tiny", "n_keep": 5}
    with pytest.raises(TooFewLists):
        run("01_generate", "fox", **weak)
    run("01_generate", "wolf", grammar="numbers", **weak)
    raw = lists("wolf")
    assert len(raw) == 40 and len({row["completion"] for row in raw}) > 20
    assert all(row["reason"] is None for row in raw if row["finish"] == "stop")
    assert len(passed(raw)) >= 20
    manifest = store.read_manifest(folder("generate", "wolf"))
    assert manifest.config["grammar"] == "numbers"
    assert manifest.counts["backend"] == "transformers"


@pytest.mark.parametrize("settings", [{"grammar": "numbers"}, ENOUGH], ids=["grammar", "enough"])
def test_a_kill_between_chunks_resumes_to_the_same_lists(
    empty: Path, monkeypatch: pytest.MonkeyPatch, settings: dict
):
    run("01_generate", "wolf", **settings)
    undisturbed = lists("wolf")
    shutil.rmtree(folder("generate", "wolf"))
    whole, drawn = sampling.sample_chunk, []

    def sample_chunk(*args: object) -> list:
        drawn.append(args[-1])
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(sampling, "sample_chunk", sample_chunk)
    with pytest.raises(KeyboardInterrupt):
        run("01_generate", "wolf", **settings)
    assert [path.name for path in folder("generate", "wolf").glob("part-*")] == ["part-0000.jsonl"]
    run("01_generate", "wolf", **settings)
    assert lists("wolf") == undisturbed
    assert drawn[:3] == [0, 1, 1]


def test_a_kill_between_the_last_chunk_and_the_manifest_draws_nothing_anew(
    empty: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "_finish_cell", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("01_generate", "wolf", **ENOUGH)
    monkeypatch.setattr(sampling, "sample_chunk", None)
    run("01_generate", "wolf", **ENOUGH)
    assert len(lists("wolf", "kept.jsonl")) == 50
