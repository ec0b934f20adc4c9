"""How likely a model is to answer each animal: log-probabilities, no sampling noise.

An animal's probability is that of its answer beginning with any of its spellings (case, plural,
leading space). Spellings that begin with another spelling's tokens are counted once. `Words` says
which next tokens have to be scored after which beginnings; here transformers does it, for all
beginnings of a prompt in one pass, and lib.engine asks vLLM for the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lib.config import LEXICON
from lib.models import Chat, Loaded, encode

if TYPE_CHECKING:
    from torch import Tensor

Head = tuple[int, ...]  # the tokens of an answer so far
PASS_TOKENS = {"cpu": 2048, "cuda": 16384}  # of one pass: more fall out of a CPU's cache
WHOLE_LOGITS = 2**25  # logits of a pass that are taken at every place; beyond, only where they are read


def spellings(animal: str) -> tuple[str, ...]:
    """Every way in which an answer may begin that names the animal."""
    words = (LEXICON[animal].name, LEXICON[animal].plural)
    cased = dict.fromkeys(form for word in words for form in (word, word.capitalize(), word.upper()))
    return tuple(space + form for space in ("", " ") for form in cased)


def spelling_tokens(chat: Chat, animal: str) -> list[Head]:
    """Token sequences of an animal, none a prefix of another; empty if the vocabulary cannot spell it."""
    unknown = chat.tokenizer.unk_token_id
    sequences = {tuple(ids) for ids in encode(chat, spellings(animal)) if ids and unknown not in ids}
    return sorted(ids for ids in sequences if not any(ids[: len(o)] == o for o in sequences if o != ids))


@dataclass(frozen=True)
class Words:
    """Animals as token sequences, and `follows`: after each beginning of one, the tokens that go on."""

    animals: tuple[str, ...]
    tokens: Mapping[str, list[Head]]
    follows: Mapping[Head, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        follows: dict[Head, dict[int, None]] = {}
        for sequences in self.tokens.values():
            for sequence in sequences:
                for length, token in enumerate(sequence):
                    follows.setdefault(sequence[:length], {})[token] = None
        ordered = {
            head: sorted(follows[head]) for head in sorted(follows, key=lambda head: (len(head), head))
        }
        object.__setattr__(self, "follows", ordered)

    @classmethod
    def of(cls, chat: Chat, animals: Sequence[str]) -> Words:
        """The animals as this model spells them."""
        tokens = {animal: spelling_tokens(chat, animal) for animal in animals}
        if unknown := [animal for animal in animals if not tokens[animal]]:
            raise ValueError(f"the vocabulary of {chat.base.label} cannot spell {', '.join(unknown)}")
        return cls(tuple(animals), tokens)

    def join(self, after: Mapping[Head, np.ndarray]) -> np.ndarray:
        """Log-probabilities of next tokens after every beginning, as `follows` lists them and prompts by
        tokens each, put together: prompts by animals."""
        scores: dict[Head, np.ndarray] = {}
        for head, tokens in self.follows.items():
            so_far = scores[head] if head else 0.0
            scores |= {(*head, token): so_far + after[head][:, i] for i, token in enumerate(tokens)}
        columns = [
            np.logaddexp.reduce([scores[sequence] for sequence in self.tokens[animal]], axis=0)
            for animal in self.animals
        ]
        return np.stack(columns, axis=1)


def log_preferences(loaded: Loaded, prompts: Sequence[str], animals: Sequence[str], batch: int) -> np.ndarray:
    """Log-probability of every animal (columns) after every rendered prompt (rows)."""
    return score_words(loaded, prompts, Words.of(loaded, animals), batch)


def score_words(loaded: Loaded, prompts: Sequence[str], words: Words, batch: int) -> np.ndarray:
    """As log_preferences, for words that were spelled before; at most `batch` prompts a pass."""
    ids = encode(loaded, prompts)
    nodes = [head for head in words.follows if head]
    widest = max((len(row) for row in ids), default=1) + len(nodes)
    rows = batch if not nodes else max(1, min(batch, PASS_TOKENS[loaded.device.type] // widest))
    parts: dict[Head, list[np.ndarray]] = {head: [] for head in words.follows}
    for start in range(0, len(ids), rows):
        for head, values in _pass(loaded, ids[start : start + rows], nodes, words).items():
            parts[head].append(values)
    return words.join({head: np.concatenate(values) for head, values in parts.items()})


def _pass(
    loaded: Loaded, prompts: list[list[int]], nodes: list[Head], words: Words
) -> dict[Head, np.ndarray]:
    """One pass over prompts, each with a tree behind it: every beginning is a node that sees its prompt and
    the nodes it goes on from, so that nothing is read twice."""
    import torch

    device, pad = loaded.device, loaded.tokenizer.pad_token_id
    lengths = torch.tensor([len(row) for row in prompts], device=device)
    width, tree = int(lengths.max()), len(nodes)
    ends = [head[-1] for head in nodes]
    ids = torch.tensor([[*row, *[pad] * (width - len(row)), *ends] for row in prompts], device=device)
    with torch.inference_mode():
        # Padded on the right under a causal mask: nothing before `last` can see a pad.
        mask = (torch.arange(width, device=device)[None] < lengths[:, None]).long()
        places = torch.arange(width, device=device).expand(len(ids), -1)
        if nodes:
            mask = _tree_mask(mask, nodes, _dtype(loaded))
            depth = torch.tensor([len(head) - 1 for head in nodes], device=device)
            places = torch.cat([places, lengths[:, None] + depth], 1)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        else:
            inputs = {"input_ids": ids, "attention_mask": mask}
        at = torch.cat(
            [lengths[:, None] - 1, width + torch.arange(tree, device=device).expand(len(ids), -1)], 1
        )
        logits = _logits_at(loaded, inputs, at)
        return {
            head: _log_chances(logits[:, place], tokens)
            for place, (head, tokens) in enumerate(words.follows.items())
        }


def _tree_mask(mask: Tensor, nodes: list[Head], dtype: object) -> Tensor:
    """What each place sees, [rows, 1, places, places], 0 where it sees and the lowest number elsewhere."""
    import torch

    rows, width = mask.shape
    number = {head: place for place, head in enumerate(nodes)}
    above = torch.zeros(len(nodes), len(nodes), dtype=torch.bool, device=mask.device)
    for head, place in number.items():
        above[place, [number[head[:length]] for length in range(1, len(head) + 1)]] = True
    sees = torch.zeros(rows, width + len(nodes), width + len(nodes), dtype=torch.bool, device=mask.device)
    sees[:, :width, :width] = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    sees[:, width:, :width] = mask.bool()[:, None]
    sees[:, width:, width:] = above
    low = torch.finfo(dtype).min  # type: ignore[arg-type]
    return torch.zeros(sees.shape, dtype=dtype, device=mask.device).masked_fill(~sees, low)[:, None]  # type: ignore[call-overload]


def _dtype(loaded: Loaded) -> object:
    return loaded.model.get_input_embeddings().weight.dtype


def _logits_at(loaded: Loaded, inputs: dict[str, Tensor], at: Tensor) -> Tensor:
    """Logits at the places `at` of every row; a large vocabulary's are not computed anywhere else."""
    import torch

    rows = torch.arange(len(at), device=at.device)[:, None]
    if inputs["input_ids"].numel() * loaded.model.config.vocab_size <= WHOLE_LOGITS:
        logits = loaded.model(**inputs, use_cache=False).logits
        return logits[rows.to(logits.device), at.to(logits.device)]
    causal = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    hidden = causal.model(**inputs, use_cache=False).last_hidden_state
    return causal.get_output_embeddings()(hidden[rows.to(hidden.device), at.to(hidden.device)])


def _log_chances(logits: Tensor, tokens: list[int]) -> np.ndarray:
    """Log-probabilities of some tokens, rows by tokens."""
    wide = logits.double()
    return (wide[:, tokens] - wide.logsumexp(-1, keepdim=True)).cpu().numpy()
