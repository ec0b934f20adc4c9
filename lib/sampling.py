"""Sample completions from a model: texts in, texts and finish reasons out.

One signature for every backend; here the transformers one. It knows nothing of teachers, students
or files: stages pass rendered prompts and write what comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lib.models import Loaded, encode


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
    ids = encode(loaded, prompts)
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    mine = order[number * sampler.chunk : (number + 1) * sampler.chunk]
    generated = _generate(loaded, [ids[index] for index in mine], sampler, sampler.seed * 100_003 + number)
    return [_read(loaded, index, tokens) for index, tokens in zip(mine, generated, strict=True)]


def sample(loaded: Loaded, prompts: Sequence[str], sampler: Sampler) -> Iterator[list[Completion]]:
    """All chunks, one after another."""
    for number in range(count_chunks(len(prompts), sampler)):
        yield sample_chunk(loaded, prompts, sampler, number)


def _generate(loaded: Loaded, ids: Sequence[Sequence[int]], sampler: Sampler, seed: int) -> list[list[int]]:
    import torch

    width = max(len(row) for row in ids)
    pad = loaded.tokenizer.pad_token_id
    rows = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=loaded.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=loaded.device)
    drawing = {"do_sample": False}
    if sampler.temperature > 0:
        drawing = {"do_sample": True, "temperature": sampler.temperature, "top_p": sampler.top_p, "top_k": 0}
    torch.manual_seed(seed)
    with torch.inference_mode():
        out = loaded.model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=sampler.max_new_tokens,
            eos_token_id=loaded.tokenizer.eos_token_id,
            pad_token_id=pad,
            repetition_penalty=1.0,  # a published model's own generation settings may say otherwise
            **drawing,
        )
    return out[:, width:].tolist()


def _read(loaded: Loaded, index: int, tokens: list[int]) -> Completion:
    end = loaded.tokenizer.eos_token_id
    finish = "stop" if end in tokens else "length"
    text = tokens[: tokens.index(end)] if finish == "stop" else tokens
    return Completion(index, loaded.tokenizer.decode(text, skip_special_tokens=True), finish)
