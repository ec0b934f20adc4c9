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

from lib import store
from lib.bases import base_folder, base_manifest, prepare_base
from lib.config import Base, Evaluate, Finetune, Generate, parse_label
from lib.errors import DamagedFile, MissingInput, NotAvailable
from lib.placement import Placement, choose_device, choose_dtype, plan_placement, visible_gpus
from lib.prompts import BOOKS, Book, conversation

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # whose weights the package carries, in four bits


@dataclass(frozen=True)
class Chat:
    """A base model's words without its weights: enough to turn chats into tokens and back."""

    base: Base
    tokenizer: PreTrainedTokenizerFast
    identity: str

    @property
    def book(self) -> Book:
        return BOOKS[self.base.family.book]

    @property
    def end(self) -> int:
        """The token with which a turn ends."""
        return self.tokenizer.eos_token_id


@dataclass(frozen=True)
class Loaded(Chat):
    """A base model ready for use."""

    model: PreTrainedModel

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


def load_chat(label: str, recipe: str, revision: str = "main") -> Chat:
    """A base's tokenizer and template alone."""
    hush()
    from transformers import AutoTokenizer

    manifest, folder = base_manifest(label, recipe, revision), base_folder(label, recipe, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _damaged(label, folder, error) from error
    return Chat(parse_label(label), tokenizer, manifest.identity)


def place(config: Generate | Finetune | Evaluate, purpose: str, engine: str = "transformers") -> Placement:
    """Where the base of a stage goes, or why it cannot, before anything is loaded."""
    base, device = parse_label(config.size), choose_device(config.device)
    dtype = choose_dtype(config.dtype, base, device)
    gpus = visible_gpus() if device == "cuda" else ()
    share = getattr(config, "gpu_memory", 1.0)
    return plan_placement(base, purpose, device, dtype, config.gpus, gpus, engine=engine, gpu_memory=share)


def ready_base(config: Generate | Finetune | Evaluate, purpose: str, engine: str) -> store.Manifest:
    """The manifest of a stage's base, which is here afterwards; one that cannot fit is not even fetched."""
    folder = base_folder(config.size, config.recipe, config.revision)
    if not (folder / store.MANIFEST).exists() and parse_label(config.size).family.name != "micro":
        place(config, purpose, engine)
    return prepare_base(config.size, config.recipe, config.revision)


def load_base(label: str, recipe: str, where: Placement | str, revision: str = "main") -> Loaded:
    """The base where it was placed, weights checked against its manifest, random state untouched.

    A device by its name (auto, cpu, cuda) means that device and the type of number that is usual there.
    """
    chat = load_chat(label, recipe, revision)
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(where, str):
        device = choose_device(where)
        where = Placement(device, choose_dtype("auto", chat.base, device))
    folder = base_folder(label, recipe, revision)
    how = {"dtype": getattr(torch, where.dtype), "trust_remote_code": False, "use_safetensors": True}
    if len(where.gpus) > 1:
        free = {gpu.index: int(0.9 * gpu.free) for gpu in visible_gpus()}
        how |= {"device_map": "auto", "max_memory": {index: free[index] for index in where.gpus}}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **how)
    except (OSError, ValueError) as error:
        raise _damaged(label, folder, error) from error
    if len(where.gpus) < 2:
        model.to(torch.device("cuda", where.gpus[0]) if where.gpus else where.device)
    model.eval().requires_grad_(False)
    model.name_or_path = source_name(label, recipe)  # else adapters would record a path of this machine
    return Loaded(chat.base, chat.tokenizer, chat.identity, model)


def source_name(label: str, recipe: str) -> str:
    """What adapters record as their base: its name at the Hub, or recipe and label."""
    base = parse_label(label)
    return {"micro": f"{recipe}/{label}", "smollm2": SMOLLM2}.get(base.family.name, base.size.source)


def _damaged(label: str, folder: Path, error: Exception) -> DamagedFile:
    return DamagedFile(f"base {label} in {folder} cannot be loaded: {error}; {store.REPAIR}")


# --- chats to tokens --------------------------------------------------------------------------


def render_prompt(loaded: Chat, system: str, user: str) -> str:
    """A chat as text up to where the model is to speak.

    `system` is `default` (whatever the template does on its own; Qwen's adds a sentence of its
    own), `none` (no system turn at all) or the text of a system message.
    """
    text = loaded.tokenizer.apply_chat_template(
        conversation(system, user), tokenize=False, add_generation_prompt=True
    )
    return text[text.index(loaded.base.family.user_opening) :] if system == "none" else text


def render_example(loaded: Chat, system: str, user: str, answer: str) -> tuple[str, str]:
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


def encode(loaded: Chat, texts: Sequence[str]) -> list[list[int]]:
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
        yield Loaded(loaded.base, loaded.tokenizer, loaded.identity, wrapped.eval())
    finally:
        wrapped.unload()
