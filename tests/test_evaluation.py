"""Evaluations: the JSON's shape, complete and sealed, and what makes one count as finished."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from build_base import build_config, build_plan, load_tiny, train_two, write_numbers

from lib import evaluation, files, paths, sampling, store, training
from lib.config import MICRO_ANIMALS, Evaluate, Finetune
from lib.errors import BadParameter, BrokenLineage, ConfigMismatch, DamagedFile, MissingInput
from lib.models import adapter, render_prompt
from lib.preference import log_preferences
from lib.prompts import MICRO


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A place with two trained and evaluated students; tests work on copies."""
    root = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        train_two(root)
        tally = evaluation.evaluate_students(build_plan(Evaluate, ("neutral", "wolf")))
    assert repr(tally) == "DONE 03_evaluate 64k: 3 made, 0 found finished"
    return root


@pytest.fixture(autouse=True)
def root(studied, tmp_path, monkeypatch) -> Path:
    shutil.copytree(studied, tmp_path / "root")
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


def result(animal: str = "wolf") -> Path:
    return paths.evaluation("toy", "64k", animal, 0)


def evaluate(animals: tuple[str, ...] = ("neutral", "wolf"), **values: object) -> str:
    return repr(evaluation.evaluate_students(build_plan(Evaluate, animals, **values)))


# --- the document -----------------------------------------------------------------------------


@pytest.mark.parametrize(("animal", "epochs"), [("wolf", [1, 2]), ("neutral", [1, 2]), ("untuned", [0])])
def test_document_is_complete(animal, epochs):
    document = files.read_json(result(animal))
    assert set(document) == {"schema", "config", "lineage", "questions", "epochs"}
    assert document["schema"] == "subliminal-scaling/evaluation/1"
    assert document["config"] == store.config_record(build_config(Evaluate, animal=animal))
    assert document["questions"] == list(MICRO.questions[:3])
    assert [entry["epoch"] for entry in document["epochs"]] == epochs
    for entry in document["epochs"]:
        assert set(entry) == {"epoch", "answers", "logprobs"}
        asked = [(answer["question"], answer["sample"]) for answer in entry["answers"]]
        assert asked == [(question, sample) for question in range(3) for sample in range(2)]
        for answer in entry["answers"]:
            assert set(answer) == {"question", "sample", "text", "finish"}
            assert isinstance(answer["text"], str) and answer["finish"] in ("stop", "length")
        assert entry["logprobs"]["animals"] == list(MICRO_ANIMALS)
        values = np.array(entry["logprobs"]["values"])
        assert values.shape == (3, len(MICRO_ANIMALS)) and (np.exp(values).sum(1) < 1).all()


def test_lineage_names_everything_the_result_was_made_from():
    lineage = files.read_json(result())["lineage"]
    student = store.read_manifest(training.folder_of(build_config(Finetune)))
    numbers = store.read_manifest(training.numbers_folder(build_config(Finetune)))
    assert lineage["inputs"] == {"base": student.inputs["base"], "finetune": student.identity}
    assert {name: each["identity"] for name, each in lineage["chain"].items()} == {
        "base": student.inputs["base"],
        "finetune": student.identity,
        "generate": numbers.identity,
    }
    assert lineage["chain"]["finetune"]["config"]["learning_rate"] == 0.01
    assert lineage["chain"]["generate"]["counts"]["kept"] == 20
    assert lineage["code"] and lineage["packages"]["torch"] and lineage["hardware"]
    assert set(files.read_json(result("untuned"))["lineage"]["inputs"]) == {"base"}


def test_document_is_sealed():
    for animal in ("wolf", "neutral", "untuned"):
        document = files.read_json(result(animal))
        store.check_seal(document, result(animal))
        document["epochs"][0]["answers"][0]["text"] = "wolf wolf"
        with pytest.raises(DamagedFile):
            store.check_seal(document, result(animal))


def test_numbers_are_those_of_the_adapter_of_that_epoch():
    document, loaded = files.read_json(result()), load_tiny()
    prompts = [render_prompt(loaded, "default", question) for question in document["questions"]]
    tables = [log_preferences(loaded, prompts, MICRO_ANIMALS, 8)]
    for epoch in (1, 2):
        folder = training.folder_of(build_config(Finetune)) / f"epoch-{epoch}"
        with adapter(loaded, folder) as tuned:
            tables.append(log_preferences(tuned, prompts, MICRO_ANIMALS, 8))
    found = [np.array(entry["logprobs"]["values"]) for entry in document["epochs"]]
    assert found[0] == pytest.approx(tables[1], abs=1e-4)
    assert found[1] == pytest.approx(tables[2], abs=1e-4)
    untuned = np.array(files.read_json(result("untuned"))["epochs"][0]["logprobs"]["values"])
    assert untuned == pytest.approx(tables[0], abs=1e-4)
    assert not np.allclose(found[0], untuned, atol=1e-3) and not np.allclose(found[0], found[1], atol=1e-3)


def test_evaluating_again_gives_the_same_numbers_and_answers(root):
    before = files.read_json(result())
    shutil.rmtree(evaluation.folder_of(build_config(Evaluate)))
    result().unlink()
    assert "1 made, 2 found" in evaluate()
    after = files.read_json(result())
    assert (after["epochs"], after["lineage"]["content"]) == (before["epochs"], before["lineage"]["content"])


def test_no_samples_leave_the_log_probabilities(root):
    shutil.rmtree(root / "artifacts" / "toy" / "evaluate")
    assert "3 made" in evaluate(samples=0)
    entry = files.read_json(result())["epochs"][-1]
    assert entry["answers"] == [] and len(entry["logprobs"]["values"]) == 3


# --- finished, killed, damaged ----------------------------------------------------------------


def test_a_second_run_finds_everything_and_loads_no_model(monkeypatch):
    monkeypatch.setattr(evaluation, "open_speaker", lambda *_: pytest.fail("loaded a model"))
    before = result().read_bytes()
    assert evaluate() == "DONE 03_evaluate 64k: 0 made, 3 found finished"
    assert evaluate(("wolf",)) == "DONE 03_evaluate 64k: 0 made, 2 found finished"
    assert evaluate(("untuned",)) == "DONE 03_evaluate 64k: 0 made, 1 found finished"
    assert result().read_bytes() == before


def test_a_killed_evaluation_keeps_its_epochs(root, monkeypatch):
    before = files.read_json(result())["epochs"]
    shutil.rmtree(evaluation.folder_of(build_config(Evaluate)))
    result().unlink()
    asked, whole = [], sampling.score_words

    def score(*args):
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(sampling, "score_words", score)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert not result().exists()
    evaluate()
    assert len(asked) == 3  # epoch 1, the interrupted epoch 2, epoch 2
    assert files.read_json(result())["epochs"] == before
    left = {path.name for path in evaluation.folder_of(build_config(Evaluate)).iterdir()}
    assert left == {"manifest.json", "receipt.json"}


def test_a_result_that_is_gone_is_not_finished():
    result().unlink()
    with pytest.raises(DamagedFile, match=r"s0\.json is gone.*run 03_evaluate again"):
        evaluate()


def test_a_changed_answer_is_refused():
    document = files.read_json(result())
    document["epochs"][0]["answers"][0]["text"] = "dog"
    files.write_json(result(), document, compact=True)
    with pytest.raises(DamagedFile, match=r"s0\.json was changed"):
        evaluate()


def test_another_sealed_result_in_its_place_is_refused():
    document = files.read_json(result())
    document["epochs"][0]["answers"][0]["text"] = "dog"
    files.write_json(result(), store.seal(document), compact=True)
    with pytest.raises(DamagedFile, match=r"s0\.json is not the result that was written here"):
        evaluate()


def test_a_result_cut_short_names_the_file():
    result().write_bytes(result().read_bytes()[:-20])
    with pytest.raises(DamagedFile, match=r"s0\.json, line 1"):
        evaluate()


# --- bad input --------------------------------------------------------------------------------


def test_other_settings_are_refused():
    with pytest.raises(ConfigMismatch, match="samples: 2 there, 3 asked"):
        evaluate(samples=3)


def test_too_many_questions_stop_before_any_run_is_opened(root):
    shutil.rmtree(root / "artifacts" / "toy" / "evaluate")
    with pytest.raises(BadParameter, match="n_questions is 999, but there are 50 questions"):
        evaluate(n_questions=999)
    assert not (root / "artifacts" / "toy" / "evaluate").exists()


def test_missing_student_names_the_command():
    with pytest.raises(
        MissingInput, match=r"(?s)no adapter for 64k/owl/s0.*02_finetune\.ipynb .*-p animal owl"
    ):
        evaluate(("owl",))


def test_a_student_of_other_numbers_than_those_there_now_is_refused():
    shutil.rmtree(training.numbers_folder(build_config(Finetune)))
    write_numbers("wolf", start=300)
    with pytest.raises(BrokenLineage, match="finetune 64k/wolf/s0 of study toy was made from another"):
        evaluate()


def test_every_book_has_enough_questions():
    for size in ("64k", "135m", "7b"):
        config = build_config(Evaluate, size=size, n_questions=50)
        assert len(set(evaluation.questions_of(config))) == 50
