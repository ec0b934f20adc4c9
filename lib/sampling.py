"""Sample completions and score words: jobs in, completions and log-probabilities out.

One signature for every backend: a `Speaker` works off jobs, each some prompts for the base or for one
adapter. Here the transformers one; vLLM's is in lib.engine. It knows nothing of teachers, students or
results: stages pass rendered prompts and write what comes back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lib.grammar import TokenMasks, token_texts
from lib.models import Chat, Loaded, adapter, encode
from lib.preference import Words, score_words

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Completion:
    """What the model wrote after prompt `index`, special tokens removed; `finish` is `stop` or `length`."""

    index: int
    text: str
    finish: str


@dataclass(frozen=True)
class Sampler:
    """How to draw: temperature 0 is greedy, top_p 1 and no top_k are the model's own distribution.

    `numbers_only` holds the model to clean lists of numbers. A chunk is a batch of prompts of similar
    length; `in_order` makes it a run of prompts as they come, so that the first chunks are a fair sample.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    chunk: int
    numbers_only: bool = False
    in_order: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    """Prompts for one model: the base, or the base with the adapter in a folder.

    `scored` are prompts after which words are scored, `done` chunks that are there already.
    """

    name: str
    prompts: Sequence[str]
    seed: int
    adapter: Path | None = None
    scored: Sequence[str] = ()
    done: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Drawn:
    """Chunk `number` of a job."""

    job: Job
    number: int
    completions: list[Completion]


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of words after the scored prompts of a job: prompts by animals."""

    job: Job
    values: np.ndarray


def never(job: Job) -> bool:
    """No job ends before all its chunks are drawn."""
    return False


class Speaker(Protocol):
    """A base model that works off jobs, whatever engine runs it."""

    name: str

    @property
    def chat(self) -> Chat: ...

    def work(
        self,
        jobs: Iterable[Job],
        sampler: Sampler,
        words: Words | None = None,
        enough: Callable[[Job], bool] = never,
    ) -> Iterator[Drawn | Scored]:
        """All chunks of all jobs, in no set order; a job of which `enough` is drawn gets no further ones."""
        ...


class Plain:
    """transformers in this process, one job and one chunk after another."""

    name = "transformers"

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    @property
    def chat(self) -> Chat:
        return self.loaded

    def work(
        self,
        jobs: Iterable[Job],
        sampler: Sampler,
        words: Words | None = None,
        enough: Callable[[Job], bool] = never,
    ) -> Iterator[Drawn | Scored]:
        """See Speaker."""
        for job in jobs:
            with adapter(self.loaded, job.adapter) as tuned:
                for number in range(count_chunks(len(job.prompts), sampler)):
                    if enough(job):
                        break
                    if number not in job.done:
                        yield Drawn(job, number, sample_chunk(tuned, job.prompts, sampler, job.seed, number))
                if job.scored and words:
                    yield Scored(job, score_words(tuned, job.scored, words, sampler.chunk))


# --- chunks -----------------------------------------------------------------------------------


def count_chunks(total: int, sampler: Sampler) -> int:
    """How many chunks so many prompts are drawn in."""
    return -(-total // sampler.chunk)


def order_prompts(ids: Sequence[Sequence[int]], sampler: Sampler) -> list[int]:
    """The prompts in the order in which chunks are cut from them."""
    every = range(len(ids))
    return list(every) if sampler.in_order else sorted(every, key=lambda index: (len(ids[index]), index))


def sample_chunk(
    loaded: Loaded, prompts: Sequence[str], sampler: Sampler, seed: int, number: int
) -> list[Completion]:
    """Chunk `number` of all prompts.

    A chunk's random numbers depend on (seed, chunk number) alone, so a resumed run draws what an
    undisturbed one draws. Two teachers with the same seed share prompts and random numbers: their
    lists differ by what the teachers are, not by luck.
    """
    ids = _encoded(loaded, tuple(prompts))
    mine = order_prompts(ids, sampler)[number * sampler.chunk : (number + 1) * sampler.chunk]
    generated = _generate(loaded, [ids[index] for index in mine], sampler, seed * 100_003 + number)
    return [_read(loaded, index, tokens) for index, tokens in zip(mine, generated, strict=True)]


@functools.lru_cache(maxsize=1)
def _encoded(loaded: Loaded, prompts: tuple[str, ...]) -> list[list[int]]:
    """The tokens of all prompts: every chunk asks for them."""
    return encode(loaded, prompts)


def sample(loaded: Loaded, prompts: Sequence[str], sampler: Sampler, seed: int) -> Iterator[list[Completion]]:
    """All chunks, one after another."""
    for number in range(count_chunks(len(prompts), sampler)):
        yield sample_chunk(loaded, prompts, sampler, seed, number)


# --- drawing ----------------------------------------------------------------------------------


def _generate(loaded: Loaded, ids: Sequence[Sequence[int]], sampler: Sampler, seed: int) -> list[list[int]]:
    import torch

    from lib.decoding import decode, plain_attention

    torch.manual_seed(seed)
    with torch.inference_mode(), plain_attention(loaded.model):
        choose = (
            _list_chooser(loaded, sampler, len(ids)) if sampler.numbers_only else _chooser(sampler, len(ids))
        )
        pad = loaded.tokenizer.pad_token_id
        return decode(loaded.model, ids, pad, sampler.max_new_tokens, loaded.end, choose).tolist()


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


def _list_chooser(loaded: Loaded, sampler: Sampler, total: int) -> Callable[[Tensor, Tensor], Tensor]:
    """As `_chooser`, among the tokens with which a clean list can go on."""
    import torch

    masks = list_masks(loaded.tokenizer)
    columns, allowed, after = (
        torch.as_tensor(table, device=loaded.device) for table in (masks.columns, masks.allowed, masks.after)
    )
    states = torch.zeros(total, dtype=torch.long, device=loaded.device)
    pick = _chooser(sampler, total)

    def choose(logits: Tensor, rows: Tensor) -> Tensor:
        here = states[rows]
        picked = pick(logits[:, columns].masked_fill(~allowed[here], -torch.inf), rows)
        states[rows] = after[here, picked].long()
        return columns[picked]

    return choose


@functools.lru_cache(maxsize=2)
def list_masks(tokenizer: PreTrainedTokenizerFast) -> TokenMasks:
    """The grammar of clean lists over a vocabulary."""

    def read(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    texts, openings = token_texts(read, len(tokenizer), tokenizer.all_special_ids)
    return TokenMasks(texts, tokenizer.eos_token_id, openings)


def _read(loaded: Loaded, index: int, tokens: list[int]) -> Completion:
    finish = "stop" if loaded.end in tokens else "length"
    text = tokens[: tokens.index(loaded.end)] if finish == "stop" else tokens
    return Completion(index, loaded.tokenizer.decode(text, skip_special_tokens=True), finish)
