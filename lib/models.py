"""Load a family's base model with its tokenizer, render chats, put adapters on and off.

The only module that knows how a chat becomes tokens. It trains nothing and samples nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lib import paths, store
from lib.config import Base, parse_label
from lib.errors import DamagedFile, MissingInput, NotAvailable
from lib.prompts import BOOKS, Book, conversation

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Loaded:
    """A base model ready for use."""

    base: Base
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    identity: str

    @property
    def book(self) -> Book:
        return BOOKS[self.base.family.book]

    @property
    def device(self) -> torch.device:
        return self.model.device


def hush() -> None:
    """Keep other libraries' bars, notices and warnings of coming changes out of the executed notebooks."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # a study tells nobody that it runs
    warnings.filterwarnings("ignore", message="IProgress not found")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


# --- finding and loading ----------------------------------------------------------------------


def base_folder(label: str, recipe: str) -> Path:
    """Where a micro base lies: with the project if it is tracked, else where 00_pretrain built it."""
    tracked = paths.tracked_base(label)
    return tracked if recipe == "standard" and tracked.exists() else paths.built_base(recipe, label)


def base_manifest(label: str, recipe: str) -> store.Manifest:
    """The checked manifest of a base: what a run's lineage starts from."""
    base = parse_label(label)
    if base.family.name != "micro":
        raise NotAvailable(
            f"{base.family.title} {base.size.name} cannot be loaded by this version yet; "
            "the micro ladder can: choose a size such as 64k, 166k or 368k"
        )
    command = "mkdir -p executed && papermill notebooks/00_pretrain.ipynb "
    command += f"executed/00_pretrain-{label}.ipynb -p size {label}"
    command += "" if recipe == "standard" else f" -p recipe {recipe}"
    missing = f"no base model {label} of recipe {recipe}: build it first with\n  {command}"
    return store.load_finished(base_folder(label, recipe), missing)


def choose_device(device: str) -> str:
    """`auto` takes a GPU where there is one."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise NotAvailable("device cuda was asked for, but torch sees no GPU here; use -p device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_base(label: str, recipe: str, device: str) -> Loaded:
    """The base in float32, weights checked against its manifest, random state untouched."""
    hush()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = base_manifest(label, recipe)
    folder = base_folder(label, recipe)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise DamagedFile(f"base {label} in {folder} cannot be loaded: {error}; {store.REPAIR}") from error
    model.to(choose_device(device)).eval().requires_grad_(False)
    model.name_or_path = (
        f"{manifest.config['recipe']}/{label}"  # else adapters would record a path of this machine
    )
    return Loaded(parse_label(label), model, tokenizer, manifest.identity)


# --- chats to tokens --------------------------------------------------------------------------


def render_prompt(loaded: Loaded, system: str, user: str) -> str:
    """A chat as text up to where the model is to speak.

    `system` is `default` (whatever the template does on its own; Qwen's adds a sentence of its
    own), `none` (no system turn at all) or the text of a system message.
    """
    text = loaded.tokenizer.apply_chat_template(
        conversation(system, user), tokenize=False, add_generation_prompt=True
    )
    return text[text.index(loaded.base.family.user_opening) :] if system == "none" else text


def render_example(loaded: Loaded, system: str, user: str, answer: str) -> tuple[str, str]:
    """A training example as text: the prompt, and the completion up to and with the end of its turn.

    What the template writes after that end (ChatML a line break) is no part of the answer.
    """
    prompt = render_prompt(loaded, system, user)
    text = loaded.tokenizer.apply_chat_template(conversation(system, user, answer), tokenize=False)
    whole = text[text.index(loaded.base.family.user_opening) :] if system == "none" else text
    if not whole.startswith(prompt):
        raise NotAvailable(
            f"the chat template of {loaded.base.label} changes a prompt once it is answered: {prompt!r}"
        )
    answered, end, after = whole[len(prompt) :].rpartition(loaded.tokenizer.eos_token)
    return prompt, answered + end if end else after


def encode(loaded: Loaded, texts: Sequence[str]) -> list[list[int]]:
    """Rendered chats to tokens; the template has placed every special token already."""
    return loaded.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


# --- adapters ---------------------------------------------------------------------------------


@contextmanager
def adapter(loaded: Loaded, folder: Path | None) -> Iterator[Loaded]:
    """The base with one adapter on, without it again afterwards; None is the base itself."""
    if folder is None:
        yield loaded
        return
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise MissingInput(f"no adapter in {folder}: run 02_finetune with these parameters first")
    wrapped: PeftModel = PeftModel.from_pretrained(loaded.model, folder)
    try:
        yield Loaded(loaded.base, wrapped.eval(), loaded.tokenizer, loaded.identity)
    finally:
        wrapped.unload()
