"""Sample completions from a model: texts in, texts and finish reasons out.

One signature for every backend; here the transformers one. It knows nothing of teachers, students
or files: stages pass rendered prompts and write what comes back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.models import Loaded, encode

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Completion:
    """What the model wrote after prompt `index`, special tokens removed; `finish` is `stop` or `length`."""

    index: int
    text: str
    finish: str


@dataclass(frozen=True)
class Sampler:
    """How to draw: temperature 0 is greedy, top_p 1 and no top_k are the model's own distribution."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    chunk: int


def count_chunks(total: int, sampler: Sampler) -> int:
    """How many chunks `sample_chunk` is to be called for."""
    return -(-total // sampler.chunk)


def sample_chunk(loaded: Loaded, prompts: Sequence[str], sampler: Sampler, number: int) -> list[Completion]:
    """Chunk `number` of all prompts, a batch of similar length.

    A chunk's random numbers depend on (seed, chunk number) alone, so a resumed run draws what an
    undisturbed one draws. Two teachers with the same seed share prompts and random numbers: their
    lists differ by what the teachers are, not by luck.
    """
    ids = _encoded(loaded, tuple(prompts))
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    mine = order[number * sampler.chunk : (number + 1) * sampler.chunk]
    generated = _generate(loaded, [ids[index] for index in mine], sampler, sampler.seed * 100_003 + number)
    return [_read(loaded, index, tokens) for index, tokens in zip(mine, generated, strict=True)]


@functools.lru_cache(maxsize=1)
def _encoded(loaded: Loaded, prompts: tuple[str, ...]) -> list[list[int]]:
    """The tokens of all prompts: every chunk asks for them."""
    return encode(loaded, prompts)


def sample(loaded: Loaded, prompts: Sequence[str], sampler: Sampler) -> Iterator[list[Completion]]:
    """All chunks, one after another."""
    for number in range(count_chunks(len(prompts), sampler)):
        yield sample_chunk(loaded, prompts, sampler, number)


def _generate(loaded: Loaded, ids: Sequence[Sequence[int]], sampler: Sampler, seed: int) -> list[list[int]]:
    import torch

    from lib.decoding import decode, plain_attention

    torch.manual_seed(seed)
    pad, end = loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id
    with torch.inference_mode(), plain_attention(loaded.model):
        choose = _chooser(sampler, len(ids))
        return decode(loaded.model, ids, pad, sampler.max_new_tokens, end, choose).tolist()


def _chooser(sampler: Sampler, total: int) -> Callable[[Tensor, Tensor], Tensor]:
    """How a next token is drawn. Numbers are drawn for all rows at every step, ended or not: a row's luck
    does not depend on how long the others are."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if sampler.temperature <= 0:
        return lambda logits, rows: logits.argmax(-1)
    warpers = LogitsProcessorList()
    if sampler.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampler.temperature))
    if sampler.top_p < 1:
        warpers.append(TopPLogitsWarper(sampler.top_p))

    def choose(logits: Tensor, rows: Tensor) -> Tensor:
        chances = warpers(None, logits).softmax(-1)
        # Exponential numbers, as torch.multinomial draws them, from uniform ones: several times faster.
        luck = -torch.rand(total, logits.shape[1], device=logits.device).log()
        return (chances / (luck if len(rows) == total else luck[rows])).argmax(-1)

    return choose


def _read(loaded: Loaded, index: int, tokens: list[int]) -> Completion:
    end = loaded.tokenizer.eos_token_id
    finish = "stop" if end in tokens else "length"
    text = tokens[: tokens.index(end)] if finish == "stop" else tokens
    return Completion(index, loaded.tokenizer.decode(text, skip_special_tokens=True), finish)
