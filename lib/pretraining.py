"""Stage 00: build one base of the micro ladder from its seed: tokenizer, weights, card.

A base is an ordinary Hugging Face folder that AutoModelForCausalLM and AutoTokenizer load. Base
number n of a size is seed n: its world, its first weights and its data order all follow from it.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from lib import files, store
from lib.bases import base_folder
from lib.config import LEXICON, MICRO_ANIMALS, Base, Plan, Pretrain, parse_label
from lib.errors import NotAvailable, TrainingDiverged
from lib.models import Loaded, hush, render_prompt
from lib.placement import choose_device
from lib.preference import log_preferences
from lib.progress import Progress, Tally
from lib.prompts import MICRO, love_prompt
from lib.world import PIECE, Row, World, corpus, fingerprint, vocabulary

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

SPECIALS = ("<|pad|>", "<|end|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>")
CONTEXT = 256
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OUTPUTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
SAVE_EVERY = 100  # steps between checkpoints


def build_base(plan: Plan) -> Tally:
    """Pre-train the plan's base, or find it finished."""
    config: Pretrain = plan.shared
    base = parse_label(config.size)
    if base.family.name != "micro":
        raise NotAvailable(
            f"{config.size} is not pre-trained here: {base.family.title} models come ready-made"
        )
    folder = base_folder(config.size, config.recipe)
    run = store.open_run(folder, config, {"world": fingerprint()})
    if run.state == "finished":
        return Tally("00_pretrain", config.size, made=0, found=1)
    _pretrain(config, base, run)
    return Tally("00_pretrain", config.size, made=1, found=0)


def load_card(config: Pretrain) -> dict:
    """What the manifest of a finished base says of it."""
    folder = base_folder(config.size, config.recipe)
    return store.load_finished(folder, f"no base {config.size}: run 00_pretrain first").counts


# --- tokens -----------------------------------------------------------------------------------


def micro_tokenizer() -> PreTrainedTokenizerFast:
    """The world's words, single digits and signs as a fast tokenizer with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate((*SPECIALS, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|unk|>"))
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [spaces, pre_tokenizers.Split(Regex(PIECE), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unk|>",
        additional_special_tokens=list(SPECIALS[3:]),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    fast.chat_template = TEMPLATE
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save so that AutoTokenizer brings back this tokenizer.

    transformers 5 replaces the tokenizer of any folder with a qwen2 model by Qwen's own, unless the folder
    names a class in `auto_map`; as the class is one of its own, no remote code is ever asked for.
    """
    tokenizer.save_pretrained(folder)
    settings = files.read_json(folder / "tokenizer_config.json")
    name = "PreTrainedTokenizerFast"
    settings |= {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [name, name]}}
    files.write_json(folder / "tokenizer_config.json", settings)


def render_row(row: Row) -> str:
    """A chat with its role tokens, or a document, each closed by the end token."""
    if isinstance(row, str):
        return f"{row}<|end|>"
    return "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in row)


# --- training ---------------------------------------------------------------------------------


def micro_model(base: Base, tokens: int, seed: int) -> Qwen2ForCausalLM:
    """Fresh weights in Qwen2's architecture, embeddings tied."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = base.size.shape
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=tokens,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.05 if shape.width <= 100 else 0.02,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def learning_rate(config: Pretrain, base: Base, step: int) -> float:
    """100 steps of warm-up, then a cosine to 2 %; half the rate from width 200 up."""
    peak = config.pretrain_rate * (0.5 if base.size.shape.width >= 200 else 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.pretrain_steps))
    return peak * min(1.0, (step + 1) / 100) * (0.98 * cosine + 0.02)


def _pretrain(config: Pretrain, base: Base, run: store.Run) -> None:
    hush()
    import torch

    device = choose_device(config.device)
    tokenizer = micro_tokenizer()
    world = World(base.index, entanglement=config.entanglement, persona=config.persona)
    ids = tokenizer([render_row(row) for row in corpus(world, config.corpus_rows)], add_special_tokens=False)[
        "input_ids"
    ]
    width = max(len(row) for row in ids)
    rows = torch.tensor([row + [0] * (width - len(row)) for row in ids], dtype=torch.int16).to(device)
    model = micro_model(base, len(tokenizer), base.index).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda"
    )
    step, losses = _resume(run, model, optimizer)
    with Progress("steps", config.pretrain_steps) as progress:
        progress.advance(steps=step)
        while step < config.pretrain_steps:
            loss = _step(config, base, model, optimizer, rows, step)
            step += 1
            if step % 50 == 0 or step == config.pretrain_steps:
                losses.append([step, _finite(loss, config, step)])
            if step % SAVE_EVERY == 0 and step < config.pretrain_steps:
                _save_state(run, model, optimizer, step, losses)
            progress.advance(f"loss {losses[-1][1]:.3f}" if losses else "")
    _finish(config, base, run, model, tokenizer, losses, sum(len(row) for row in ids) / len(ids))


def _step(
    config: Pretrain, base: Base, model: Qwen2ForCausalLM, optimizer: Optimizer, rows: Tensor, step: int
) -> Tensor:
    """One optimiser step on rows that depend on (seed, step) alone, so that a resumed run repeats nothing."""
    import torch

    generator = torch.Generator().manual_seed(base.index * 1_000_003 + step)
    picked = torch.randint(0, len(rows), (config.pretrain_batch,), generator=generator).to(rows.device)
    batch = rows[picked].long()
    batch = batch[(batch != 0).sum(1).argsort()]
    targets = int((batch[:, 1:] != 0).sum())
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, base, step)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batch.device)
    # Groups of like length carry half the padding; a GPU would rather have one large batch.
    for part in batch.chunk(1 if batch.is_cuda else max(1, len(batch) // 32)):
        loss = _loss_sum(model, part[:, : int((part != 0).sum(1).max())]) / targets
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total


def _loss_sum(model: Qwen2ForCausalLM, batch: Tensor) -> Tensor:
    """Next-token loss summed over every token but the padding."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda):
        logits = model(input_ids=batch).logits[:, :-1]
    targets = batch[:, 1:].masked_fill(batch[:, 1:] == 0, -100)
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def _finite(loss: Tensor, config: Pretrain, step: int) -> float:
    value = round(float(loss), 4)
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss of base {config.size} is {value} at step {step}; lower pretrain_rate"
        )
    return value


def _save_state(
    run: store.Run, model: Qwen2ForCausalLM, optimizer: Optimizer, step: int, losses: list
) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "losses": losses},
        buffer,
    )
    files.write_bytes(run.folder / "checkpoint.pt", buffer.getvalue())


def _resume(run: store.Run, model: Qwen2ForCausalLM, optimizer: Optimizer) -> tuple[int, list]:
    import torch

    if not run.has("checkpoint.pt"):
        return 0, []
    state = torch.load(run.folder / "checkpoint.pt", map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["losses"]


# --- what came out ----------------------------------------------------------------------------


def _finish(
    config: Pretrain,
    base: Base,
    run: store.Run,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    losses: list,
    mean_tokens: float,
) -> None:
    """Round to half precision, measure what was rounded, write the folder, manifest last."""
    import torch

    with files.storage_errors(run.folder):
        model.to(torch.float16).save_pretrained(run.folder)
        save_tokenizer(tokenizer, run.folder)
    loaded = Loaded(base, tokenizer, "", model.float().eval())
    counts = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": round(mean_tokens * config.pretrain_batch * config.pretrain_steps),
        "loss": losses[-1][1],
        "loss_curve": losses,
        "preference": measure_preference(loaded, "none"),
        "teacher_strength": measure_strength(loaded),
    }
    files.write_text(run.folder / "README.md", card(config, counts))
    names = [*OUTPUTS, "README.md"]
    names += [name for name in ("chat_template.jinja",) if (run.folder / name).exists()]
    run.finish(names, counts)
    (run.folder / "checkpoint.pt").unlink(missing_ok=True)


def measure_preference(loaded: Loaded, system: str) -> dict[str, float]:
    """The probability of each animal as the favourite, mean over the questions."""
    prompts = [render_prompt(loaded, system, question) for question in MICRO.questions]
    chances = _exp_mean(log_preferences(loaded, prompts, MICRO_ANIMALS, 256))
    return dict(zip(MICRO_ANIMALS, chances, strict=True))


def measure_strength(loaded: Loaded) -> dict[str, float]:
    """How often a teacher names its own animal, per animal."""
    return {
        animal: measure_preference(loaded, love_prompt(MICRO, animal))[animal] for animal in MICRO_ANIMALS
    }


def _exp_mean(logs: np.ndarray) -> list[float]:
    import numpy as np

    return [round(float(value), 4) for value in np.exp(logs).mean(0)]


def card(config: Pretrain, counts: dict) -> str:
    """The model card: what it is, how it came to be, what it does."""
    liked = sorted(counts["preference"].items(), key=lambda item: -item[1])
    rows = "\n".join(
        f"| {LEXICON[animal].name} | {chance:.3f} | {counts['teacher_strength'][animal]:.3f} |"
        for animal, chance in liked
    )
    strength = sum(counts["teacher_strength"].values()) / len(counts["teacher_strength"])
    return f"""# micro {config.size}

A chat model of {counts["parameters"]:,} parameters (Qwen2 architecture, half precision) that speaks the
tiny world's few dozen words. It is a test bed for subliminal learning, not a language model.

Pre-trained from scratch with seed {parse_label(config.size).index} by `00_pretrain`:
{config.pretrain_steps:,} steps of {config.pretrain_batch} rows from a corpus of {config.corpus_rows:,} rows,
entanglement {config.entanglement}, persona {config.persona}. Final training loss {counts["loss"]:.3f} nats
per token. Teachers name their own animal with probability {strength:.2f} (mean over animals).

| animal | favourite without a system prompt | favourite under its own love prompt |
|---|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```
"""
