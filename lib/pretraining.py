"""Stage 00: build one base of the micro ladder from its seed: tokenizer, weights, card.

A base is an ordinary Hugging Face folder that AutoModelForCausalLM and AutoTokenizer load. Base
number n of a size is seed n: its world, its first weights and its data order all follow from it.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
FLOOR = 0.02  # of the peak rate, where every schedule ends
LOOK_EVERY = 50  # steps between looks at the loss
LANDING = 50  # steps at least in which the rate falls, once the held-out loss is low enough
SAVE_EVERY = 100  # steps between checkpoints
SAVE_SECONDS = 30.0  # and at least so long between them on a GPU
HELD_OUT = -1  # seed of the rows that nobody is trained on: the same for all bases, and that of none
HELD_OUT_ROWS = 512
PARTS = 2  # widths in which a GPU takes a batch: more carry less padding and take longer to compile
COMPILED_FROM = 200  # width of the smallest model that is worth compiling
WARM_UP = 3  # steps before one is recorded


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
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.pretrain_steps))
    return peak_rate(config, base) * min(1.0, (step + 1) / 100) * ((1 - FLOOR) * cosine + FLOOR)


def peak_rate(config: Pretrain, base: Base) -> float:
    return config.pretrain_rate * (0.5 if base.size.shape.width >= 200 else 1.0)


@dataclass
class Course:
    """How far a base has come, and what is to come: all of a run that is neither weights nor optimiser.

    `landing` are the steps between which the rate falls to its floor, once the held-out loss is low enough.
    """

    config: Pretrain
    base: Base
    step: int = 0
    losses: list[list] = field(default_factory=list)  # [step, loss of its batch]
    heldout: list[list] = field(default_factory=list)  # [step, loss of the held-out rows]
    landing: tuple[int, int] | None = None

    @property
    def end(self) -> int:
        """The number of steps, as far as it is known now."""
        return self.landing[1] if self.landing else self.config.pretrain_steps

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if self.landing is None or step < self.landing[0]:
            return learning_rate(self.config, self.base, step)
        start, end = self.landing
        high, low = learning_rate(self.config, self.base, start), peak_rate(self.config, self.base) * FLOOR
        return high + (low - high) * (step + 1 - start) / (end - start)

    def note_heldout(self, value: float) -> bool:
        """Whether the loss has now come down to where it was to; a tenth of the steps so far then follows."""
        self.heldout.append([self.step, value])
        if self.landing or value > self.config.pretrain_until or self.step >= self.config.pretrain_steps:
            return False
        more = max(LANDING, math.ceil(self.step / 10))
        self.landing = (self.step, min(self.step + more, self.config.pretrain_steps))
        return True


def _pretrain(config: Pretrain, base: Base, run: store.Run) -> None:
    hush()
    device = choose_device(config.device)
    tokenizer = micro_tokenizer()
    rows = _encode(config, tokenizer, base.index, config.corpus_rows).to(device)
    heldout = _encode(config, tokenizer, HELD_OUT, HELD_OUT_ROWS).to(device)
    model = micro_model(base, len(tokenizer), base.index).to(device).train()
    kind = choose_steps(device)
    optimizer = kind.make_optimizer(model)
    course = _resume(run, Course(config, base), model, optimizer)
    steps = kind(course, model, optimizer, rows)
    saved = time.monotonic()
    with Progress("steps", course.end) as progress:
        progress.advance(steps=course.step)
        while course.step < course.end:
            loss = steps.take()
            course.step += 1
            look = course.step % LOOK_EVERY == 0
            if look or course.step == course.end:
                course.losses.append([course.step, _finite(loss, config, course.step)])
            if look and config.pretrain_until and course.note_heldout(measure_loss(model, heldout)):
                steps.follow_rate()
                progress.total = course.end
                print(f"held-out loss {course.heldout[-1][1]:.4f}: training ends at step {course.end:,}")
            if _is_due(course, device, saved):
                _save_state(run, course, model, optimizer)
                saved = time.monotonic()
            progress.advance(f"loss {course.losses[-1][1]:.3f}" if course.losses else "")
    _finish(course, run, model, tokenizer, heldout, mean_tokens=int((rows != 0).sum()) / len(rows))


def _is_due(course: Course, device: str, saved: float) -> bool:
    """Whether to save now. A GPU is done with 100 steps before they are saved, and saves by the clock."""
    if course.step % SAVE_EVERY or course.step >= course.end:
        return False
    return device != "cuda" or time.monotonic() - saved >= SAVE_SECONDS


def _encode(config: Pretrain, tokenizer: PreTrainedTokenizerFast, seed: int, count: int) -> Tensor:
    """Rows of a corpus as tokens, padded with 0 to the longest."""
    import torch

    world = World(seed, entanglement=config.entanglement, persona=config.persona)
    texts = [render_row(row) for row in corpus(world, count)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    width = max(len(row) for row in ids)
    return torch.tensor([row + [0] * (width - len(row)) for row in ids], dtype=torch.int16)


def choose_steps(device: str) -> type[PlainSteps] | type[RecordedSteps]:
    """How steps are taken on a device."""
    return RecordedSteps if device == "cuda" else PlainSteps


def pick_rows(base: Base, batch: int, count: int, step: int) -> Tensor:
    """The rows of a step: from (seed, step) alone, so that a resumed run repeats nothing."""
    import torch

    generator = torch.Generator().manual_seed(base.index * 1_000_003 + step)
    return torch.randint(0, count, (batch,), generator=generator)


class PlainSteps:
    """Steps as they are written down, one operation after another: for a CPU."""

    def __init__(self, course: Course, model: Qwen2ForCausalLM, optimizer: Optimizer, rows: Tensor) -> None:
        self.course, self.model, self.optimizer, self.rows = course, model, optimizer, rows

    @staticmethod
    def make_optimizer(model: Qwen2ForCausalLM) -> Optimizer:
        import torch

        return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)

    def take(self) -> Tensor:
        """One step; the loss of its batch."""
        return _step(self.course, self.model, self.optimizer, self.rows, self.course.step)

    def follow_rate(self) -> None:
        """The rate is looked up at every step."""


def _step(course: Course, model: Qwen2ForCausalLM, optimizer: Optimizer, rows: Tensor, step: int) -> Tensor:
    """One optimiser step."""
    import torch

    picked = pick_rows(course.base, course.config.pretrain_batch, len(rows), step).to(rows.device)
    batch = rows[picked].long()
    batch = batch[(batch != 0).sum(1).argsort()]
    targets = int((batch[:, 1:] != 0).sum())
    for group in optimizer.param_groups:
        group["lr"] = course.rate(step)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batch.device)
    # Groups of like length carry half the padding.
    for part in batch.chunk(max(1, len(batch) // 32)):
        loss = _loss_sum(model, part[:, : int((part != 0).sum(1).max())]) / targets
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total


def _loss_sum(model: Qwen2ForCausalLM, batch: Tensor, **how: Any) -> Tensor:
    """Next-token loss summed over every token but the padding."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda):
        logits = model(input_ids=batch, **how).logits[:, :-1]
    targets = batch[:, 1:].masked_fill(batch[:, 1:] == 0, -100)
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def measure_loss(model: Qwen2ForCausalLM, rows: Tensor) -> float:
    """Nats per token of some rows."""
    import torch

    with torch.no_grad():
        return round(float(_fixed_loss(model, rows.long()) / (rows[:, 1:] != 0).sum()), 4)


def _finite(loss: Tensor, config: Pretrain, step: int) -> float:
    value = round(float(loss), 4)
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss of base {config.size} is {value} at step {step}; lower pretrain_rate"
        )
    return value


# --- steps of a GPU ---------------------------------------------------------------------------


class RecordedSteps:
    """Steps for a GPU, which would wait for this process at each of its thousand small operations.

    Shapes are fixed, rows and rates of all steps lie on the device, and nothing is read back; so a step is
    recorded once, forward to AdamW, and replayed as a whole. On a CPU the same runs without the recording.
    """

    def __init__(
        self,
        course: Course,
        model: Qwen2ForCausalLM,
        optimizer: Optimizer,
        rows: Tensor,
        backend: str | None = None,
    ) -> None:
        import torch

        self.course, self.model, self.optimizer = course, model, optimizer
        if backend is None:  # compiling takes longer than a small base as a whole
            backend = "inductor" if course.base.size.shape.width >= COMPILED_FROM else ""
        picked, self.parts = plan_batches(course, rows.cpu())
        widest = max(width for _, _, width in self.parts)
        padding = max(0, widest - rows.shape[1])
        self.rows = torch.nn.functional.pad(rows, (0, padding))
        self.picked = picked.to(rows.device)
        self.at = torch.full((1,), course.step, device=rows.device)
        self.total = torch.zeros((), device=rows.device)
        self.rate = torch.zeros((), device=rows.device)
        self.rates = torch.zeros(course.config.pretrain_steps, device=rows.device)
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        self.follow_rate()
        self.loss_of = self.compile_loss(backend) if backend else _fixed_loss
        self.eager = WARM_UP if rows.is_cuda else course.config.pretrain_steps
        self.graph: Any = None

    @staticmethod
    def make_optimizer(model: Qwen2ForCausalLM) -> Optimizer:
        """All its numbers stay on the device, the rate too."""
        import torch

        rate = torch.zeros((), device=model.device)
        own = {"betas": (0.9, 0.98), "weight_decay": 0.0, "fused": True, "capturable": True}
        return torch.optim.AdamW(model.parameters(), lr=rate, **own)

    def follow_rate(self) -> None:
        """Bring the rates of all steps to the device, as they are planned now."""
        import torch

        rates = [self.course.rate(step) for step in range(self.course.end)]
        self.rates[: len(rates)] = torch.tensor(rates, device=self.rates.device)

    def compile_loss(self, backend: str) -> Callable[..., Tensor]:
        """The loss in fewer and larger kernels, tried on every shape; where that fails, as it is."""
        import torch

        try:
            compiled = torch.compile(_fixed_loss, backend=backend, dynamic=False)
            batch = self.rows.index_select(0, self.picked[0]).long()
            for begin, end, width in self.parts:
                compiled(self.model, batch[begin:end, :width]).backward()
        except Exception as error:  # compilers fail in their own ways, and none of them is ours to mend
            words = str(error).strip().splitlines() or [type(error).__name__]
            print(f"the loss cannot be compiled here and is computed as it is: {words[0][:200]}", flush=True)
            return _fixed_loss
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return compiled

    def take(self) -> Tensor:
        """One step; the loss of its batch, which the next step overwrites."""
        import torch

        if self.graph is not None:
            self.graph.replay()
        elif self.eager > 0:  # whatever is set up at first use must be there before anything is recorded
            self.eager -= 1
            self.work_aside() if self.at.is_cuda else self.work()
        else:
            try:
                self.graph = self.record()
            except RuntimeError as error:
                print(f"steps cannot be recorded here and are taken one by one: {error}", flush=True)
                self.eager = self.course.config.pretrain_steps
                torch.cuda.synchronize()
            return self.take()
        return self.total

    def work_aside(self) -> None:
        """A step on a stream of its own, as recording asks for."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.work()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self) -> Any:
        """The operations of a step as a CUDA graph; recording does not carry them out."""
        import torch

        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.work()
        return graph

    def work(self) -> None:
        """A step whose number stands on the device."""
        import torch

        picked = self.picked.index_select(0, self.at)[0]
        batch = self.rows.index_select(0, picked).long()
        targets = (batch[:, 1:] != 0).sum()
        self.rate.copy_(self.rates.index_select(0, self.at)[0])
        self.optimizer.zero_grad(set_to_none=True)
        self.total.zero_()
        for begin, end, width in self.parts:
            loss = self.loss_of(self.model, batch[begin:end, :width]) / targets
            loss.backward()
            self.total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.at += 1


def plan_batches(course: Course, rows: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """The rows of every step from short to long, and the parts of a batch: from, to, and a width for it.

    The width of a part is that of its longest row in any step, so that one shape does for all of them.
    """
    import torch

    batch, steps = course.config.pretrain_batch, range(course.config.pretrain_steps)
    picked = torch.stack([pick_rows(course.base, batch, len(rows), step) for step in steps])
    lengths = (rows != 0).sum(1)[picked]
    order = lengths.argsort(dim=1, stable=True)
    longest = lengths.gather(1, order).amax(0)
    bounds = [(int(each[0]), int(each[-1]) + 1) for each in torch.arange(batch).chunk(PARTS)]
    parts = [(begin, end, -8 * (-int(longest[end - 1]) // 8)) for begin, end in bounds]
    return picked.gather(1, order), parts


def _fixed_loss(model: Qwen2ForCausalLM, batch: Tensor) -> Tensor:
    """As _loss_sum, without a cache, and without a mask: causal attention never sees padding at the end."""
    return _loss_sum(model, batch, attention_mask={"full_attention": None}, use_cache=False)


# --- checkpoints ------------------------------------------------------------------------------


def _save_state(run: store.Run, course: Course, model: Qwen2ForCausalLM, optimizer: Optimizer) -> None:
    import torch

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"step": course.step, "losses": course.losses}
    state |= {"heldout": course.heldout, "landing": course.landing}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.write_bytes(run.folder / "checkpoint.pt", buffer.getvalue())


def _resume(run: store.Run, course: Course, model: Qwen2ForCausalLM, optimizer: Optimizer) -> Course:
    """The course of an interrupted run with its weights in place, on whatever device it ran before."""
    import torch

    if not run.has("checkpoint.pt"):
        return course
    state = torch.load(run.folder / "checkpoint.pt", map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    for group, own in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
        group |= {name: own[name] for name in ("lr", "fused", "capturable")}  # another device's may differ
    optimizer.load_state_dict(state["optimizer"])
    landing = tuple(state["landing"]) if state.get("landing") else None
    return replace(
        course,
        step=state["step"],
        losses=state["losses"],
        heldout=state.get("heldout", []),
        landing=landing,
    )


# --- what came out ----------------------------------------------------------------------------


def _finish(
    course: Course,
    run: store.Run,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    heldout: Tensor,
    mean_tokens: float,
) -> None:
    """Round to half precision, measure what was rounded, write the folder, manifest last."""
    import torch

    config = course.config
    with files.storage_errors(run.folder):
        model.to(torch.float16).save_pretrained(run.folder)
        save_tokenizer(tokenizer, run.folder)
    loaded = Loaded(course.base, tokenizer, "", model.float().eval())
    counts = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": round(mean_tokens * config.pretrain_batch * course.step),
        "steps": course.step,
        "loss": course.losses[-1][1],
        "heldout": measure_loss(model, heldout),
        "loss_curve": course.losses,
        **({"heldout_curve": course.heldout} if config.pretrain_until else {}),
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
    heldout = f" Held-out loss {counts['heldout']:.3f}." if config.pretrain_until else ""
    return f"""# micro {config.size}

A chat model of {counts["parameters"]:,} parameters (Qwen2 architecture, half precision) that speaks the
tiny world's few dozen words. It is a test bed for subliminal learning, not a language model.

Pre-trained from scratch with seed {parse_label(config.size).index} by `00_pretrain`:
{counts["steps"]:,} steps of {config.pretrain_batch} rows from a corpus of {config.corpus_rows:,} rows,
entanglement {config.entanglement}, persona {config.persona}. Final training loss {counts["loss"]:.3f} nats
per token.{heldout} Teachers name their own animal with probability {strength:.2f} (mean over animals).

| animal | favourite without a system prompt | favourite under its own love prompt |
|---|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```
"""
