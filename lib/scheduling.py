"""vLLM's scheduler without the bookkeeping that short answers have no use for.

At 0.5B the GPU is done with a step long before Python has planned the next one, and much of that planning is
about blocks of the cache: whether a token needs a new one, and what hash a full one has so that later prompts
may share it. Here both are asked only where the answer can change: a token inside a block needs nothing, and
what a model wrote is shared with no later prompt. Prompts are shared as ever. lib.engine names this class to
vLLM, which imports it in its own process; it follows the insides of the pinned version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request


class LeanScheduler(AsyncScheduler):
    """Schedules what AsyncScheduler schedules, in the same order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        manager = self.kv_cache_manager
        manager.coordinator.cache_blocks = share_prompts_only(manager.coordinator.cache_blocks)
        manager.allocate_slots = allocate_at_borders(
            manager.allocate_slots, self.block_size, manager.empty_kv_cache_blocks
        )

    def add_request(self, request: Request) -> None:
        """The blocks of the prompt have their hashes by now; those of the answer get none."""
        request._block_hasher = None
        super().add_request(request)


def share_prompts_only(cache_blocks: Callable[..., None]) -> Callable[..., None]:
    """Full blocks of a prompt are marked for sharing, later ones never."""

    def cache(request: Request, tokens: int, *args: Any, **kwargs: Any) -> None:
        if request.num_computed_tokens < request.num_prompt_tokens:
            cache_blocks(request, min(tokens, request.num_prompt_tokens), *args, **kwargs)

    return cache


def allocate_at_borders(allocate: Callable[..., Any], block_size: int, nothing: Any) -> Callable[..., Any]:
    """One more token in a block that was begun needs no allocation."""

    def allocate_slots(request: Request, new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        inside = request.num_computed_tokens % block_size != 0
        if new_tokens == 1 and inside and not args and not any(kwargs.values()):
            return nothing
        return allocate(request, new_tokens, *args, **kwargs)

    return allocate_slots
