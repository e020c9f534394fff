"""May a request take memory now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from engine.core.fields import AtLeast, Below, Natural, check_fields
from engine.core.policies.base import State
from engine.core.request import Request

Spared = Annotated[float, AtLeast(0), Below(1)]
"""The share of the pool that stays free."""


def _too_big(request: Request, num_blocks: int, num_allowed: int, state: State) -> str | None:
    if num_blocks <= num_allowed:
        return None
    return (
        f"{request.num_tokens} tokens need {num_blocks} blocks of {state.kv.block_size}, and the pool allows "
        f"{num_allowed} of its {state.kv.num_blocks}: give it more blocks or send a shorter request"
    )


@dataclass(frozen=True, slots=True)
class FullPrompt:
    """A request enters when blocks for all its tokens are free, though it may take them chunk by chunk.

    vLLM V1 with `scheduler_reserve_full_isl`. A share `watermark` of the pool stays free unless nothing runs.
    """

    watermark: Spared = 0.0
    screens_arrivals: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def never(self, request: Request, state: State) -> str | None:
        """Longer than the whole pool."""
        return _too_big(request, state.kv.blocks_to_hold(request), state.kv.num_blocks, state)

    def enter(self, request: Request, num_new_tokens: int, state: State) -> bool:
        """All its tokens fit now."""
        return self.resume(state.kv.blocks_to_hold(request), state)

    def resume(self, num_blocks: int, state: State) -> bool:
        """What it held fits now."""
        reserve = int(self.watermark * state.kv.num_blocks) if state.is_busy else 0
        return num_blocks + reserve <= state.kv.num_free

    @property
    def headroom_per_seq(self) -> int:
        """Only what it needs."""
        return 0


@dataclass(frozen=True, slots=True)
class FirstChunk(FullPrompt):
    """A request enters when its next chunk fits: the fullest batches, and the most preemptions.

    vLLM V1 without `scheduler_reserve_full_isl`.
    """

    def enter(self, request: Request, num_new_tokens: int, state: State) -> bool:
        """Its next chunk fits now."""
        return self.resume(state.kv.blocks_for(num_new_tokens), state)


@dataclass(frozen=True, slots=True)
class Watermark:
    """A request enters when its tokens fit and a share of the pool stays free (vLLM V0's block manager).

    Two habits of vLLM 0.4.2 are part of it. A running request wants one free block for each of its sequences,
    due or not (`headroom_per_seq`). And whether a request fits the pool at all is asked only when it is at
    the head of the queue. Where 0.4.2 could wait for ever, because the watermark can
    never be met, a request may come back as soon as nothing else runs.
    """

    fraction: Spared = 0.01
    headroom_per_seq: Natural = 1
    screens_arrivals: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def never(self, request: Request, state: State) -> str | None:
        """More blocks than the pool without the watermark."""
        num_allowed = state.kv.num_blocks - self._reserve(state)
        return _too_big(request, state.kv.blocks_to_hold(request), num_allowed, state)

    def enter(self, request: Request, num_new_tokens: int, state: State) -> bool:
        """All its tokens fit above the watermark."""
        return state.kv.num_free - state.kv.blocks_to_hold(request) >= self._reserve(state)

    def resume(self, num_blocks: int, state: State) -> bool:
        """What it held, and what it may need next, fits above the watermark."""
        reserve = self._reserve(state) if state.is_busy else 0
        return state.kv.num_free - num_blocks >= reserve

    def _reserve(self, state: State) -> int:
        return int(self.fraction * state.kv.num_blocks)
