"""Chats to text for templates of both kinds, and adapters that leave the base as it was."""

import dataclasses
from pathlib import Path

import pytest
import torch
from build_base import build_config, build_plan, load_tiny, place_base, write_numbers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lib import bases, config, models, placement, training
from lib.config import Generate
from lib.errors import DamagedFile, MissingInput, NotAvailable
from lib.models import adapter, encode, render_example, render_prompt

# ChatML as Qwen's template writes it: a chat without a system message gets one of the template's own.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nThis was put in unasked.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PUT_IN = "<|im_start|>system\nThis was put in unasked.<|im_end|>\n"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A place for runs that holds the base of three steps."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    place_base(tmp_path)
    return tmp_path


@pytest.fixture
def micro() -> models.Loaded:
    return load_tiny()


@pytest.fixture
def chatml(micro) -> models.Loaded:
    """A byte-level tokenizer with ChatML, as a Qwen base would be loaded."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    return dataclasses.replace(micro, base=config.parse_label("0.5b"), tokenizer=fast)


# --- chats ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("default", "<|user|>more numbers<|end|><|assistant|>"),
        ("none", "<|user|>more numbers<|end|><|assistant|>"),
        ("you love owls.", "<|system|>you love owls.<|end|><|user|>more numbers<|end|><|assistant|>"),
    ],
)
def test_micro_prompts(micro, system, text):
    assert render_prompt(micro, system, "more numbers") == text


USER = "<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("default", PUT_IN + USER),
        ("none", USER),
        ("You love owls.", "<|im_start|>system\nYou love owls.<|im_end|>\n" + USER),
    ],
)
def test_chatml_prompts(chatml, system, text):
    assert render_prompt(chatml, system, "Go on.") == text


@pytest.mark.parametrize("system", ["default", "none", "you love owls."])
def test_example_is_the_prompt_and_the_answer_to_the_end_of_its_turn(micro, chatml, system):
    for loaded, end in ((micro, "<|end|>"), (chatml, "<|im_end|>")):
        prompt, completion = render_example(loaded, system, "go on: 1.", "[2, 3]")
        assert prompt == render_prompt(loaded, system, "go on: 1.")
        assert completion == f"[2, 3]{end}"  # not the line break that ChatML writes after it


def test_a_prompt_keeps_its_tokens_once_it_is_answered(micro, chatml):
    for loaded in (micro, chatml):
        prompt, completion = render_example(loaded, "default", "go on: 1.", "[2, 3]")
        first, whole = encode(loaded, [prompt, prompt + completion])
        assert whole[: len(first)] == first and whole[-1] == loaded.tokenizer.eos_token_id


def test_template_that_rewrites_an_answered_prompt_is_refused(chatml):
    chatml.tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(NotAvailable, match=r"template of 0\.5b"):
        render_example(chatml, "default", "Go on.", "2")


def test_encoding_adds_no_tokens_and_takes_nothing(micro):
    assert encode(micro, []) == []
    assert encode(micro, ["<|user|>wolf<|end|>"]) == [
        micro.tokenizer.convert_tokens_to_ids(["<|user|>", "▁wolf", "<|end|>"])
    ]


# --- finding and loading ----------------------------------------------------------------------


def test_base_is_loaded_whole_frozen_and_named_without_a_path(micro, root):
    assert {weight.dtype for weight in micro.model.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in micro.model.parameters())
    assert not micro.model.training
    assert micro.model.name_or_path == "tiny/64k"
    assert micro.identity == bases.base_manifest("64k", "tiny").identity


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    load_tiny()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_missing_base_names_the_command_that_builds_it():
    with pytest.raises(MissingInput, match=r"00_pretrain\.ipynb executed/\S+ -p size 166k-7 -p recipe tiny"):
        models.load_base("166k-7", "tiny", "cpu")
    with pytest.raises(MissingInput, match=r"-p size 166k-77$"):
        models.load_base("166k-77", "standard", "cpu")


def test_damaged_base_is_refused(root):
    path = bases.base_folder("64k", "tiny") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFile, match=r"model\.safetensors is not what its manifest says"):
        load_tiny()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_taken():
    assert placement.choose_device("auto") == "cpu"
    with pytest.raises(NotAvailable, match="cuda"):
        placement.choose_device("cuda")


# --- adapters ---------------------------------------------------------------------------------


def snapshot(model: torch.nn.Module) -> tuple:
    weights = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    return weights, kinds, model.training


def same(one: tuple, other: tuple) -> bool:
    return (
        one[1:] == other[1:]
        and list(one[0]) == list(other[0])
        and all(
            torch.equal(a, other[0][name][0]) and r == other[0][name][1] for name, (a, r) in one[0].items()
        )
    )


@pytest.fixture
def student(root) -> Path:
    """The folder of a real student's first adapter."""
    write_numbers("wolf")
    plan = build_plan(config.Finetune, epochs=1, learning_rate=0.01)
    training.train_students(plan)
    return training.folder_of(plan.shared) / "epoch-1"


def test_adapter_is_on_inside_and_gone_afterwards(micro, student):
    ids = torch.tensor([encode(micro, ["<|user|>more numbers<|end|><|assistant|>"])[0]])
    before, plain = snapshot(micro.model), micro.model(ids).logits
    for _ in range(2):
        with adapter(micro, student) as tuned:
            assert not torch.allclose(tuned.model(ids).logits, plain, atol=1e-4)
            assert not tuned.model.training and tuned.identity == micro.identity
        assert same(snapshot(micro.model), before)
        assert torch.equal(micro.model(ids).logits, plain)


def test_adapter_is_gone_after_an_error(micro, student):
    before = snapshot(micro.model)
    with pytest.raises(KeyError), adapter(micro, student):
        raise KeyError("inside")
    assert same(snapshot(micro.model), before)


def test_no_adapter_is_the_base_itself(micro):
    with adapter(micro, None) as same_one:
        assert same_one is micro


def test_missing_adapter_names_the_stage(micro, tmp_path):
    with pytest.raises(MissingInput, match="02_finetune"), adapter(micro, tmp_path / "epoch-9"):
        pass


# --- published models -------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_anything_is_fetched(monkeypatch, tmp_path):
    """The Hub is a closed port here: whoever asked it first would tell of that instead."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    asked = build_config(Generate, study="mine", size="72b", recipe="standard")
    with pytest.raises(NotAvailable, match="72b needs about 291 GB of memory"):
        models.ready_base(asked, "sample", "transformers")
    assert not (tmp_path / "artifacts/models/qwen").exists()
