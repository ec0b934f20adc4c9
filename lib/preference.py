"""How likely a model is to answer each animal: log-probabilities, no sampling noise.

An animal's probability is that of its answer beginning with any of its spellings (case, plural,
leading space). Spellings that begin with another spelling's tokens are counted once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.config import LEXICON
from lib.models import Loaded, encode


def spellings(animal: str) -> tuple[str, ...]:
    """Every way in which an answer may begin that names the animal."""
    words = (LEXICON[animal].name, LEXICON[animal].plural)
    cased = dict.fromkeys(form for word in words for form in (word, word.capitalize(), word.upper()))
    return tuple(space + form for space in ("", " ") for form in cased)


def spelling_tokens(loaded: Loaded, animal: str) -> list[tuple[int, ...]]:
    """Token sequences of an animal, none a prefix of another; empty if the vocabulary cannot spell it."""
    unknown = loaded.tokenizer.unk_token_id
    sequences = {tuple(ids) for ids in encode(loaded, spellings(animal)) if ids and unknown not in ids}
    return sorted(ids for ids in sequences if not any(ids[: len(o)] == o for o in sequences if o != ids))


def log_preferences(loaded: Loaded, prompts: Sequence[str], animals: Sequence[str], batch: int) -> np.ndarray:
    """Log-probability of every animal (columns) after every rendered prompt (rows)."""
    tokens = {animal: spelling_tokens(loaded, animal) for animal in animals}
    if unknown := [animal for animal in animals if not tokens[animal]]:
        raise ValueError(f"the vocabulary of {loaded.base.label} cannot spell {', '.join(unknown)}")
    prompt_ids = encode(loaded, prompts)
    wanted = sorted({sequence for sequences in tokens.values() for sequence in sequences})
    scores = _score_sequences(loaded, prompt_ids, wanted, batch)
    columns = {sequence: column for column, sequence in enumerate(wanted)}
    return np.stack(
        [
            np.logaddexp.reduce(scores[:, [columns[each] for each in tokens[animal]]], axis=1)
            for animal in animals
        ],
        axis=1,
    )


def _score_sequences(
    loaded: Loaded, prompts: list[list[int]], sequences: list[tuple[int, ...]], batch: int
) -> np.ndarray:
    """Log-probability of each sequence after each prompt; one pass per prompt and distinct beginning."""
    follows: dict[tuple[int, ...], list[int]] = {}
    for sequence in sequences:
        for k, token in enumerate(sequence):
            follows.setdefault(sequence[:k], []).append(token)
    rows = [(row, head) for row in range(len(prompts)) for head in sorted(follows)]
    scores: dict[tuple[int, tuple[int, ...]], float] = {}
    for start in range(0, len(rows), batch):
        group = rows[start : start + batch]
        values = _next_token(loaded, [(*prompts[row], *head) for row, head in group])
        for (row, head), after in zip(group, values, strict=True):
            scores |= {(row, (*head, token)): after[token] for token in follows[head]}
    return np.array(
        [
            [sum(scores[row, each[: k + 1]] for k in range(len(each))) for each in sequences]
            for row in range(len(prompts))
        ]
    )


def _next_token(loaded: Loaded, rows: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Log-probabilities over the vocabulary after the last token of each row."""
    import torch

    width = max(len(row) for row in rows)
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=loaded.device)
    last = torch.tensor([len(row) - 1 for row in rows], device=loaded.device)
    # Padded on the right under a causal mask: nothing before `last` can see a pad.
    mask = torch.arange(width, device=loaded.device)[None] <= last[:, None]
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, attention_mask=mask.long()).logits
        picked = logits[torch.arange(len(rows), device=loaded.device), last]
        return list(picked.double().log_softmax(-1).cpu().numpy())
