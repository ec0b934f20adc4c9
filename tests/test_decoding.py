"""Decoding against plain forward passes: shared beginnings, padding, rows that leave the batch."""

import pytest
import torch
from build_base import load_tiny_in

from lib import decoding
from lib.models import Loaded, encode


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    return load_tiny_in(tmp_path_factory.mktemp("base"))


def greedy(loaded: Loaded, prompt: list[int], steps: int, end: int) -> list[int]:
    """One row, no cache, no padding."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    new = ids[len(prompt) :]
    return new + [end] * (steps - len(new))


def run(loaded: Loaded, prompts: list[list[int]], steps: int, end: int, choose=None) -> list[list[int]]:
    choose = choose or (lambda logits, rows: logits.argmax(-1))
    with torch.inference_mode():
        return decoding.decode(loaded.model, prompts, 0, steps, end, choose).tolist()


TEXTS = {
    "one beginning": ["<|user|>more numbers", "<|user|>more numbers please", "<|user|>more"],
    "no beginning in common": ["<|user|>more numbers", "<|system|>you love the wolf", "numbers"],
    "one prompt many times": ["<|user|>more numbers<|end|><|assistant|>"] * 3,
    "one": ["<|user|>more"],
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("piece", [1, 10_000])
def test_every_row_is_what_it_would_be_alone(loaded, monkeypatch, texts, piece):
    monkeypatch.setattr(decoding, "CPU_TOKENS", piece)
    prompts = encode(loaded, texts)
    alone = [greedy(loaded, prompt, 12, 999) for prompt in prompts]
    assert run(loaded, prompts, 12, 999) == alone


def test_rows_that_end_leave_and_the_others_go_on_unchanged(loaded, monkeypatch):
    """An end token that some rows meet early and others never: taken from what they say without one."""
    prompts = encode(loaded, [f"<|user|>more numbers {n}" for n in range(10)])
    free = [greedy(loaded, prompt, 10, 999) for prompt in prompts]
    met = {token: sum(token in row for row in free) for row in free for token in row}
    end = next((token for token, rows in met.items() if 0 < rows < len(prompts)), None)
    if end is None:  # a base of three steps may say the same after everything
        end = free[0][4]
    sizes = []
    keep = decoding.RoomyLayer.keep
    monkeypatch.setattr(
        decoding.RoomyLayer, "keep", lambda self, rows: (sizes.append(int(rows.sum())), keep(self, rows))
    )
    assert run(loaded, prompts, 10, end) == [greedy(loaded, prompt, 10, end) for prompt in prompts]
    assert all(size < len(prompts) for size in sizes)


def test_choose_is_told_which_rows_are_left(loaded):
    """Row r is made to end at step r: its number stays the same while others leave."""
    prompts, seen = encode(loaded, [f"<|user|>more {n}" for n in range(6)]), []

    def choose(logits, rows):
        seen.append(rows.tolist())
        return torch.where(rows <= len(seen) - 1, 999, rows + 10)

    out = run(loaded, prompts, 8, 999, choose)
    assert out == [[row + 10] * row + [999] * (8 - row) for row in range(6)]
    assert seen[0] == list(range(6)) and len(seen[-1]) < 6 and len(seen) == 6


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1], [1, 2]], 0), ([[1, 2], [3, 2]], 0)],
)
def test_the_shared_beginning_leaves_every_prompt_a_token(prompts, expected):
    assert decoding.shared_length(prompts) == expected
