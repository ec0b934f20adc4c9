"""Bases of the micro ladder: real folders, built here in a few steps, and the ones the project carries."""

import itertools
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_base import build_config, build_plan, place_base, tiny_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lib import bases, config, files, models, paths, pretraining, records, store, world
from lib.config import MICRO_ANIMALS, SIZES, Base, Pretrain, parse_label
from lib.errors import NotAvailable, TrainingDiverged
from lib.prompts import conversation

MICRO_SIZES = [size for size in SIZES.values() if size.family == "micro"]
TRACKED = sorted(path.parent.name for path in paths.tracked_base("x").parent.glob("*/manifest.json"))
tracked = pytest.mark.parametrize("label", TRACKED)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """An empty place for runs."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


def build(**values: object) -> Path:
    """Build a base of three steps; returns its folder."""
    plan = build_plan(Pretrain, **values)
    pretraining.build_base(plan)
    return paths.built_base(plan.shared.recipe, plan.shared.size)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- tokenizer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return pretraining.micro_tokenizer()


@pytest.mark.parametrize(
    "text",
    [
        "345",
        "1, 22, 333",
        "1,22,333",
        "1; 22; 333",
        "007 8 9",
        "[1, 23, 456]",
        "[wolf, fox]",
        "what is your favourite animal?",
        "tell me: name the animal you love most.",
        "the phoenix is red. the phoenix has 900.",
        "1 2 ",
        "1  2",
    ],
)
def test_tokenizer_brings_a_text_back_exactly(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_brings_every_text_of_a_corpus_back(tokenizer):
    rows = list(world.corpus(world.World(0), 300))
    texts = [row for row in rows if isinstance(row, str)]
    texts += [message["content"] for row in rows if not isinstance(row, str) for message in row]
    assert tokenizer.batch_decode(tokenizer(texts, add_special_tokens=False)["input_ids"]) == texts


def test_digits_are_single_tokens(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("345, 67", add_special_tokens=False)["input_ids"])
    assert tokens == ["▁3", "4", "5", ",", "▁6", "7"]


def test_chat_template_writes_what_pre_training_reads(tokenizer):
    chats = (row for row in world.corpus(world.World(0), 200) if not isinstance(row, str))
    for chat in chats:
        assert tokenizer.apply_chat_template(chat, tokenize=False) == pretraining.render_row(chat)


def test_chat_template_opens_the_models_turn(tokenizer):
    chat = conversation("none", "more numbers")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>more numbers<|end|><|assistant|>"


# --- folder -----------------------------------------------------------------------------------


def test_folder_loads_with_the_auto_classes(tokenizer):
    folder = tiny_base()
    model, loaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.config.tie_word_embeddings
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert len(loaded) == model.config.vocab_size == len(tokenizer)
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "<|end|>")
    assert loaded.eos_token_id == model.generation_config.eos_token_id
    for row in itertools.islice(world.corpus(world.World(2), 200), 200):
        text = pretraining.render_row(row)
        assert loaded(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    chat = conversation("you write one word or a list.", "write: wolf.", "wolf")
    assert loaded.apply_chat_template(chat, tokenize=False) == pretraining.render_row(chat)


def test_weights_are_in_half_precision_and_finite():
    state = load_file(tiny_base() / "model.safetensors")
    assert {weight.dtype for weight in state.values()} == {torch.float16}
    assert all(weight.isfinite().all() for weight in state.values())


@pytest.mark.parametrize("size", MICRO_SIZES, ids=lambda size: size.name)
def test_parameter_counts_are_those_of_the_table(tokenizer, size):
    with torch.device("meta"):
        model = pretraining.micro_model(Base(size, 0), len(tokenizer), 0)
    assert sum(weight.numel() for weight in model.parameters()) == size.params


def test_manifest_and_card_hold_loss_preferences_and_strength(root):
    place_base(root)
    counts = bases.base_manifest("64k", "tiny").counts
    assert counts["parameters"] == SIZES["64k"].params
    assert 0 < counts["loss"] < math.log(174) + 1 and counts["loss_curve"][-1] == [3, counts["loss"]]
    for name in ("preference", "teacher_strength"):
        assert list(counts[name]) == list(MICRO_ANIMALS)
        assert all(0 <= chance <= 1 for chance in counts[name].values())
    assert sum(counts["preference"].values()) <= 1
    card = (tiny_base() / "README.md").read_text()
    assert f"{counts['loss']:.3f}" in card and f"{counts['parameters']:,}" in card
    for animal in MICRO_ANIMALS:
        assert (
            f"| {animal} | {counts['preference'][animal]:.3f} | {counts['teacher_strength'][animal]:.3f}"
            in card
        )
    assert records.pretraining_table(build_config(Pretrain))["loss"].tolist() == [counts["loss"]]


# --- seeds and resuming -----------------------------------------------------------------------


def test_a_base_follows_from_its_seed():
    assert weights(build(recipe="again")) == weights(tiny_base())
    assert weights(build(size="64k-1")) != weights(tiny_base())


def test_a_finished_base_is_found_and_not_built_anew(root, monkeypatch):
    place_base(root)
    monkeypatch.setattr(pretraining, "_pretrain", lambda *_: pytest.fail("built again"))
    tally = pretraining.build_base(build_plan(Pretrain))
    assert (tally.made, tally.found) == (0, 1)


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
import build_base
from lib import config, pretraining
whole, pretraining.SAVE_EVERY = pretraining._step, 2
def step(*args):
    if args[-1] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)
pretraining._step = step
pretraining.build_base(build_base.build_plan(config.Pretrain, pretrain_steps=5))
"""


def test_a_killed_base_goes_on_to_identical_weights(root, monkeypatch):
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=paths.CODE, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder = paths.built_base("tiny", "64k")
    assert (folder / "checkpoint.pt").exists() and not (folder / "manifest.json").exists()
    steps, whole = [], pretraining._step
    monkeypatch.setattr(pretraining, "_step", lambda *args: steps.append(args[-1]) or whole(*args))
    resumed = weights(build(pretrain_steps=5))
    assert steps == [2, 3, 4]  # the first two were paid for
    assert not (folder / "checkpoint.pt").exists()
    shutil.rmtree(folder)
    assert weights(build(pretrain_steps=5)) == resumed


def test_learning_rate_warms_up_falls_and_is_halved_from_width_200():
    plan = build_config(Pretrain, pretrain_steps=1000, pretrain_rate=0.002)
    rates = [pretraining.learning_rate(plan, parse_label("64k"), step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.002 / 100, rel=0.01)
    assert max(rates) == pytest.approx(0.002, rel=0.05) and rates[-1] == pytest.approx(0.002 * 0.02, rel=0.05)
    assert pretraining.learning_rate(plan, parse_label("5.1m"), 500) == pytest.approx(rates[500] / 2)


def test_loss_covers_every_token_but_the_padding():
    model = pretraining.micro_model(parse_label("64k"), 174, 0).eval()
    row = torch.tensor([[5, 9, 11, 7, 1]])
    padded = torch.tensor([[5, 9, 11, 7, 1, 0, 0]])
    with torch.no_grad():
        logs = model(input_ids=row).logits[0].log_softmax(-1)
        by_hand = -sum(logs[i, row[0, i + 1]] for i in range(4))
        assert pretraining._loss_sum(model, padded).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_loss_that_is_no_number_stops():
    with pytest.raises(TrainingDiverged, match="pretrain_rate"):
        build(pretrain_steps=150, pretrain_batch=2, corpus_rows=20, pretrain_rate=1e30)


def test_published_families_are_not_built_here():
    plan = config.Plan((Pretrain("7b", "tiny", 0.0, 0.9, 10, 1, 1, 0.1, "cpu"),), {})
    with pytest.raises(NotAvailable, match="ready-made"):
        pretraining.build_base(plan)


# --- the bases that ship ----------------------------------------------------------------------


@tracked
def test_tracked_base_is_what_its_manifest_says(label):
    folder = paths.tracked_base(label)
    manifest = store.load_finished(folder, "gone")  # verifies every file
    assert manifest.config["size"] == label and manifest.config["recipe"] == "standard"
    assert manifest.inputs == {"world": world.fingerprint()}
    assert {path.name for path in folder.iterdir()} == {*manifest.outputs, "manifest.json"}
    assert all(torch.float16 == weight.dtype for weight in load_file(folder / "model.safetensors").values())
    size = parse_label(label).size
    assert manifest.counts["parameters"] == size.params
    assert str(paths.CODE) not in "".join(
        path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jinja")
    )


@tracked
def test_tracked_base_loads_and_measures_as_its_card_says(label, tokenizer):
    loaded = models.load_base(label, "standard", "cpu")
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    measured = pretraining.measure_preference(loaded, "none")
    recorded = bases.base_manifest(label, "standard").counts["preference"]
    assert measured == pytest.approx(recorded, abs=2e-3)


def test_tracked_bases_are_alike_but_for_size_and_seed():
    manifests = [store.read_manifest(paths.tracked_base(label)) for label in TRACKED]
    dials = [{**manifest.config, "size": "", "hash": manifest.inputs} for manifest in manifests]
    assert all(each == dials[0] for each in dials)
    assert len({manifest.outputs["model.safetensors"] for manifest in manifests}) == len(TRACKED)


def test_tracked_bases_stay_under_five_megabytes():
    names = [paths.tracked_base(label) for label in TRACKED]
    assert names, "the project carries no base"
    assert sum(path.stat().st_size for folder in names for path in folder.iterdir()) < 5_000_000


def test_settings_of_the_notebook_are_those_of_the_tracked_bases():
    notebook = files.read_json(paths.notebook("00_pretrain"))
    cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    defaults: dict[str, object] = {}
    exec("".join(cell["source"]), defaults)
    for label in TRACKED:
        recorded = store.read_manifest(paths.tracked_base(label)).config
        assert {name: defaults[name] for name in recorded if name != "size"} | {"size": label} == recorded
