"""Token by token with a cache of keys and values: room for them is taken once, and rows that have
ended leave the batch, which is most of the time saved where completions differ in length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_TOKENS = 2048  # tokens of a pass on a CPU: more fall out of its cache
LEAVE_BELOW = 0.85  # share of rows still open below which the others are taken out of the batch


class RoomyLayer(DynamicLayer):
    """One layer's keys and values in a buffer with room for all steps to come."""

    def __init__(self, room: int, begun: Sequence[Tensor] = ()) -> None:
        """`begun` are keys and values that are there already, with room behind them."""
        super().__init__()
        self.room, self.length, self.buffers = room, 0, tuple(begun)
        if begun:
            self.lazy_initialization(*begun)
            self.show(begun[0].shape[-2] - room)

    def show(self, length: int) -> None:
        """What attention sees: so many places of the buffer."""
        self.length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, length, width = key_states.shape
            shape = (rows, heads, length + self.room, width)
            self.buffers = key_states.new_empty(shape), key_states.new_empty(shape)
        end = self.length + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = new
        self.show(end)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.buffers = tuple(buffer[rows.to(buffer.device)] for buffer in self.buffers)
        self.show(self.length)


def new_cache(model: PreTrainedModel, layers: list[RoomyLayer]) -> DynamicCache:
    """A cache of these layers."""
    cache = DynamicCache(config=model.config)
    cache.layers = layers
    return cache


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, steps: int
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Read the prompts: the logits after each, a cache with room for `steps` more tokens, the mask.

    What all prompts begin with is read once. The rest is padded on its left, and on a CPU read in pieces
    that fit its cache.
    """
    device, count = model.device, model.config.num_hidden_layers
    shared = shared_length(prompts)
    width = max(len(prompt) for prompt in prompts) - shared
    start = new_cache(model, [RoomyLayer(width + steps) for _ in range(count)])
    if shared:
        model(input_ids=torch.tensor([prompts[0][:shared]], device=device), past_key_values=start)
    rest = [list(prompt[shared:]) for prompt in prompts]
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rest], device=device)
    gaps = torch.tensor([width - len(row) for row in rest], device=device)
    mask = torch.ones(len(ids), shared + width, dtype=torch.long, device=device)
    mask[:, shared:] = torch.arange(width, device=device)[None] >= gaps[:, None]
    places = (mask.cumsum(1) - 1)[:, shared:].clamp(min=0)
    piece = len(ids) if device.type == "cuda" else max(1, CPU_TOKENS // width)
    logits, caches = [], []
    for at in range(0, len(ids), piece):
        part = slice(at, at + piece)
        rows = len(ids[part])
        room = width + steps if shared else steps
        layers = [RoomyLayer(room, expand(layer.buffers, rows)) for layer in start.layers]
        cache = new_cache(model, layers)
        out = model(
            input_ids=ids[part],
            attention_mask=mask[part],
            position_ids=places[part],
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits.append(out.logits[:, -1].float())
        caches.append(cache.layers)
    joined = []
    for layers in zip(*caches, strict=True):
        buffers = [torch.cat(each) for each in zip(*(layer.buffers for layer in layers), strict=True)]
        joined.append(RoomyLayer(steps, buffers))
    return torch.cat(logits), new_cache(model, joined), mask


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, at least one short of the shortest."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def expand(buffers: Sequence[Tensor], rows: int) -> list[Tensor]:
    """One row's keys and values as those of many rows, each free to go on differently."""
    return [buffer.expand(rows, -1, -1, -1).clone() for buffer in buffers]


@contextlib.contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU plain products: with one query a row they are faster than the fused kernel."""
    before = model.config._attn_implementation
    try:
        if model.device.type == "cpu":
            model.config._attn_implementation = "eager"
        yield
    finally:
        model.config._attn_implementation = before


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad: int,
    steps: int,
    end: int,
    choose: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Up to `steps` new tokens after every prompt, `end` from where a row has ended.

    `choose(logits, rows)` picks the next tokens of the rows it is given, numbered as in `prompts` however
    many have left the batch.
    """
    logits, cache, mask = prefill(model, prompts, pad, steps)
    chosen = torch.full((len(prompts), steps), end, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)
    opened = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for step in range(steps):
        new = torch.where(opened, choose(logits, rows), end)
        chosen[rows, step] = new
        opened = opened & (new != end)
        going = int(opened.sum())
        if not going or step == steps - 1:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if going < LEAVE_BELOW * len(rows):
            for layer in cache.layers:
                layer.keep(opened)
            new, mask, rows, opened = (each[opened] for each in (new, mask, rows, opened))
        out = model(
            input_ids=new[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
        )
        logits = out.logits[:, -1].float()
    return chosen
