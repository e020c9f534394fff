"""May a request take memory now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from engine.core.fields import AtLeast, Below, Natural, check_fields
from engine.core.request import Request
from engine.core.view import View


class Admission(Protocol):
    """May a request take memory now: on entering, on growing, on coming back."""

    @property
    def headroom_per_seq(self) -> int:
        """Free blocks that each sequence of a request must find before it goes on, even if it needs
        fewer.
        """
        ...

    def screen(self, request: Request, view: View) -> str | None:
        """Why an arriving request is rejected at once; None if it may wait.

        The limits on what a request is (window, sequences) are the scheduler's own business.
        """
        ...

    def never(self, request: Request, view: View) -> str | None:
        """Why the request at the head of the queue could not even enter an empty pool; None if it could."""
        ...

    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        """A waiting request may start with so many tokens."""
        ...

    def resume(self, request: Request, num_blocks: int, view: View) -> bool:
        """A swapped request may come back, which takes `num_blocks`."""
        ...


Spared = Annotated[float, AtLeast(0), Below(1)]
"""The share of the pool that stays free."""


def _too_big(request: Request, num_blocks: int, num_allowed: int, view: View) -> str | None:
    if num_blocks <= num_allowed:
        return None
    return (
        f"{request.num_tokens} tokens need {num_blocks} blocks of {view.block_size}, and the pool allows "
        f"{num_allowed} of its {view.num_blocks}: give it more blocks or send a shorter request"
    )


@dataclass(frozen=True, slots=True)
class FullPrompt:
    """A request enters when blocks for all its tokens are free, though it may take them chunk by chunk.

    vLLM V1 with `scheduler_reserve_full_isl`. A share `watermark` of the pool stays free unless nothing runs.
    """

    watermark: Spared = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def screen(self, request: Request, view: View) -> str | None:
        """Nobody waits in vain."""
        return self.never(request, view)

    def never(self, request: Request, view: View) -> str | None:
        """Longer than the whole pool."""
        return _too_big(request, view.blocks_to_hold(request), view.num_blocks, view)

    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        """All its tokens fit now."""
        return self._fits(view.blocks_to_hold(request), view)

    def resume(self, request: Request, num_blocks: int, view: View) -> bool:
        """What it held fits now."""
        return self._fits(num_blocks, view)

    def _fits(self, num_blocks: int, view: View) -> bool:
        reserve = int(self.watermark * view.num_blocks) if view.is_busy else 0
        return num_blocks + reserve <= view.num_free_blocks

    @property
    def headroom_per_seq(self) -> int:
        """Only what it needs."""
        return 0


@dataclass(frozen=True, slots=True)
class FirstChunk(FullPrompt):
    """A request enters when its next chunk fits: the fullest batches, and the most preemptions.

    vLLM V1 without `scheduler_reserve_full_isl`.
    """

    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        """Its next chunk fits now."""
        return self._fits(view.blocks_for(num_tokens), view)


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

    def __post_init__(self) -> None:
        check_fields(self)

    def screen(self, request: Request, view: View) -> str | None:
        """Everybody may wait."""
        return None

    def never(self, request: Request, view: View) -> str | None:
        """More blocks than the pool without the watermark."""
        num_allowed = view.num_blocks - self._reserve(view)
        return _too_big(request, view.blocks_to_hold(request), num_allowed, view)

    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        """All its tokens fit above the watermark."""
        return view.num_free_blocks - view.blocks_to_hold(request) >= self._reserve(view)

    def resume(self, request: Request, num_blocks: int, view: View) -> bool:
        """What it held, and what it may need next, fits above the watermark."""
        reserve = self._reserve(view) if view.is_busy else 0
        return view.num_free_blocks - num_blocks >= reserve

    def _reserve(self, view: View) -> int:
        return int(self.fraction * view.num_blocks)


@dataclass(frozen=True, slots=True)
class Padded:
    """A request enters when the whole batch fits the pool at one length: the longest prompt in it, and the
    longest output (`max_tokens`) that may follow, cut at the window.

    With batching `Static` that is the KV cache of FasterTransformer: sequences x (longest prompt + output
    length), set aside before the batch begins and held until it has ended (models/multi_gpu_gpt,
    allocateBuffer). So nobody is preempted, and what a sequence leaves when it ends is of use to nobody.

    Modelled is the memory, and by it the size of a batch. Pad tokens are not computed, as there with
    `remove_padding`; nor does a sequence compute on after its end, as a row of its linear layers does there.
    """

    @property
    def headroom_per_seq(self) -> int:
        """All that it may ever need is counted when it enters."""
        return 0

    def screen(self, request: Request, view: View) -> str | None:
        """A request that is too big alone is too big in any batch."""
        return self.never(request, view)

    def never(self, request: Request, view: View) -> str | None:
        """More than the pool, were it alone."""
        num_blocks = self._num_blocks([request], view)
        if num_blocks <= view.num_blocks:
            return None
        return (
            f"its prompt of {request.num_prompt_tokens} tokens and max_tokens of {request.max_tokens} need "
            f"{num_blocks} blocks of {view.block_size} for n = {request.n} sequences, and the pool has "
            f"{view.num_blocks}: give it more blocks, send a shorter request or lower max_tokens"
        )

    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        """The batch fits with it."""
        return self._num_blocks([*view.batch, request], view) <= view.num_blocks

    def resume(self, request: Request, num_blocks: int, view: View) -> bool:
        """What it held fits now."""
        return num_blocks <= view.num_free_blocks

    def _num_blocks(self, batch: Sequence[Request], view: View) -> int:
        """Blocks of a batch at its padded length; the last token of a sequence is never computed."""
        longest = max(request.num_prompt_tokens for request in batch)
        longest += max(request.max_tokens for request in batch)
        num_slots = min(longest, view.limits.max_model_len) - 1
        return view.blocks_for(num_slots) * sum(request.n for request in batch)
