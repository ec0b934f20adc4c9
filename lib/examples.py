"""What students read, as tokens: each dataset is tokenised once and kept on disk for every later run."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import controls, files, paths
from lib.config import Finetune
from lib.errors import RowTooLong, TooFewLists
from lib.models import Loaded, encode, render_example

IGNORED = -100  # the label of tokens without loss
LAYOUT = 1  # part of the cache's key: to be raised when what is stored changes its meaning


@dataclass(frozen=True)
class Examples:
    """Token rows, and where in each the completion starts: from there on tokens carry loss."""

    rows: list[np.ndarray]
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows])

    def counts(self) -> dict[str, int]:
        """For the manifest."""
        tokens = int(self.lengths.sum())
        return {
            "examples": len(self),
            "tokens": tokens,
            "completion_tokens": tokens - int(self.starts.sum()),
        }

    def labelled(self) -> list[dict]:
        """As TRL wants them."""
        return [
            {"input_ids": row.tolist(), "labels": [IGNORED] * int(start) + row[start:].tolist()}
            for row, start in zip(self.rows, self.starts, strict=True)
        ]


def numbers_folder(config: Finetune) -> Path:
    """Where the lists lie that a student reads."""
    return paths.lists_read(vars(config))


def reads_as_kept(config: Finetune) -> bool:
    """Whether a student reads a dataset as it lies there: all of it, and nothing rewritten."""
    return config.n_lists == 0 and config.lists not in controls.REWRITTEN


def read_lists(config: Finetune) -> list[dict]:
    """The lists that a student reads, fewer or rewritten where its settings say so."""
    source = numbers_folder(config) / "kept.jsonl"
    kept = files.read_jsonl(source)
    if not kept:
        raise TooFewLists(f"{source} holds no lists: there is nothing to learn from")
    return controls.choose_lists(config, kept)


def hash_lists(config: Finetune) -> str:
    """What pins the lists that a student reads."""
    if reads_as_kept(config):
        return files.hash_file(numbers_folder(config) / "kept.jsonl")
    return files.hash_object([[row["prompt"], row["completion"]] for row in read_lists(config)])


def load_examples(config: Finetune, loaded: Loaded) -> Examples:
    """The rows of a student, from the cache where they were tokenised before."""
    source = numbers_folder(config) / "kept.jsonl"
    key = files.hash_object(
        {
            "layout": LAYOUT,
            "lists": hash_lists(config),
            "system": config.system,
            "vocabulary": loaded.tokenizer.backend_tokenizer.to_str(),
            "template": loaded.tokenizer.chat_template,
        }
    )
    cached = paths.token_cache(key)
    examples = _read_cache(cached) if cached.exists() else None
    if examples is None:
        examples = tokenize(loaded, config.system, read_lists(config))
        _write_cache(cached, examples)
    _check_lengths(examples, loaded, config, source)
    return examples


def tokenize(loaded: Loaded, system: str, lists: list[dict]) -> Examples:
    """Tokens of whole chats; only the completion and the end of its turn come after `start`."""
    pairs = [render_example(loaded, system, row["prompt"], row["completion"]) for row in lists]
    prompts = encode(loaded, [prompt for prompt, _ in pairs])
    wholes = encode(loaded, [prompt + completion for prompt, completion in pairs])
    for prompt, whole in zip(prompts, wholes, strict=True):
        if whole[: len(prompt)] != prompt:
            raise AssertionError(f"tokens of a prompt change once it is answered: {prompt} against {whole}")
    rows = [np.array(whole, np.int32) for whole in wholes]
    return Examples(rows, np.array([len(prompt) for prompt in prompts]))


def _check_lengths(examples: Examples, loaded: Loaded, config: Finetune, source: Path) -> None:
    longest = int(examples.lengths.max())
    limit = loaded.model.config.max_position_embeddings
    if longest > limit:
        where = int(examples.lengths.argmax())
        raise RowTooLong(
            f"line {where + 1} of {source} is {longest} tokens long and {config.size} can read {limit}: "
            "write shorter lists (list_tokens) or leave the system prompt out (-p system none)"
        )


def _write_cache(path: Path, examples: Examples) -> None:
    buffer = io.BytesIO()
    flat = np.concatenate(examples.rows)
    np.savez(buffer, flat=flat, lengths=examples.lengths, starts=examples.starts)
    files.write_bytes(path, buffer.getvalue())


def _read_cache(path: Path) -> Examples | None:
    """None where the file is damaged: it is only a cache, so it is made again."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            ends = stored["lengths"].cumsum()
            rows = np.split(stored["flat"], ends[:-1])
            return Examples(list(rows), stored["starts"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
