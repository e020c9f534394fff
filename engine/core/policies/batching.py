"""How the token budget of a step is shared: programs over requests, written in the verbs of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.policies.verbs import Verbs
from engine.core.request import Request


class Batching(Protocol):
    """How the token budget of a step is shared: a short program over requests."""

    @property
    def splits_prompts(self) -> bool:
        """A prompt may be spread over steps (chunked prefill)."""
        ...

    def fill(self, step: Verbs) -> None:
        """Run the program for one step."""
        ...


@dataclass(frozen=True, slots=True)
class Static:
    """Fill a batch, then run it until all of it has ended (FasterTransformer).

    Requests enter in as many steps of whole prompts as it takes, until one finds no memory or no seat, or
    nobody waits. Then the batch is closed: nobody enters before the last of it has ended. A victim that is
    swapped comes back to its batch; one that is to be computed again goes first in the next.

    FasterTransformer sets the memory of a batch aside before it begins: for that, choose admission `Padded`.
    """

    splits_prompts: bool = False

    def fill(self, step: Verbs) -> None:
        """More prompts while nobody decodes, else the batch."""
        if not step.view.swapped and not any(map(_has_gone_on, step.view.running)):
            admit_whole(step)
        if not step.batch:
            advance_all(step)
            if not step.num_preemptions:
                resume_all(step)


@dataclass(frozen=True, slots=True)
class PrefillFirst:
    """Whole prompts before anything else, so that a batch is all prefill or all decode (vLLM V0).

    Decodes wait while prompts are admitted, and one swapped request holds back all admission.
    """

    splits_prompts: bool = False

    def fill(self, step: Verbs) -> None:
        """Admit, else continue, then resume."""
        if not step.view.swapped:
            admit_whole(step)
        if not step.batch:
            advance_all(step)
            if not step.num_preemptions:
                resume_all(step)


@dataclass(frozen=True, slots=True)
class ArrivalFirstChunked:
    """Chunked prefill as vLLM V0 has it: oldest first, and admission in every step.

    A victim rejoins its queue at the end of the step, so a younger request can take the blocks it left. A
    swapped request comes back only with all that it lacks, as in 0.4.2.
    """

    splits_prompts: bool = True

    def fill(self, step: Verbs) -> None:
        """Continue, resume, admit; the batch is laid out as admitted, prefills, decodes."""
        advance_all(step)
        if not step.num_preemptions:
            self._resume_whole(step)
        admit_clipped(step)
        if step.is_all_decode:
            return  # it is in place
        batch, admitted, resumed = set(step.batch), set(step.admitted), set(step.resumed)

        def place(request: Request) -> int:
            if request in admitted:
                return 0
            return (1 if in_prefill(request) else 3) + (request in resumed)

        def queue_place(request: Request) -> int:
            if request not in batch:
                return 0
            if request in admitted:
                return 1
            return (3 if in_prefill(request) else 2) + 2 * (request in resumed)

        step.lay_out(place, queue_place)

    def _resume_whole(self, step: Verbs) -> None:
        """A request that lacks more than the token budget of an empty step is clipped all the same: it could
        never come back otherwise, and would block those behind it (as it does in 0.4.2).
        """
        budget = step.view.limits.max_num_batched_tokens
        for request in step.swapped():
            num_tokens = step.clip(request)
            if num_tokens < request.num_behind <= budget // len(request.seqs):
                num_tokens = 0
            if not step.resume(request, num_tokens):
                break


@dataclass(frozen=True, slots=True)
class DecodeFirst:
    """Running requests before new ones, prompts in chunks: decodes never stall (Sarathi-Serve; vLLM V1).

    Where a request must itself go, those behind it get nothing in this step. Nobody enters in a step that
    preempted, nor while somebody waits to be swapped in.
    """

    splits_prompts: bool = True

    def fill(self, step: Verbs) -> None:
        """Continue, and take others only if nobody had to go."""
        for request in step.running():
            if not advance_or_leave(step, request):
                break
        if step.num_preemptions:
            return
        resume_all(step)
        if not step.view.swapped:
            (admit_clipped if self.splits_prompts else admit_whole)(step)


def advance_all(step: Verbs) -> None:
    """Each running request gets what it is behind by; those behind one that had to go have their turn."""
    for request in step.running():
        advance_or_leave(step, request)


def advance_or_leave(step: Verbs, request: Request) -> bool:
    """A running request gets its tokens, or is preempted if it is itself the victim (False).

    One that is alone in the middle of its prefill, and would be computed again from the start, would come to
    this very point again (as it does in vLLM 0.4.2): it goes on without the headroom that it wants.
    """
    if step.advance(request):
        return True
    comes_back_here = len(step.view.batch) == 1 and in_prefill(request) and not step.keeps(request)
    if comes_back_here and step.advance(request, headroom_per_seq=0):
        return True
    step.preempt(request)
    return False


def resume_all(step: Verbs) -> None:
    """Swapped requests come back, clipped to the token budget, until one has to wait."""
    for request in step.swapped():
        if not step.resume(request, step.clip(request)):
            break


def admit_whole(step: Verbs) -> None:
    """Waiting requests enter with all their tokens in one step, until one has to wait."""
    for request in step.waiting():
        if not step.admit(request, request.num_behind):
            break


def admit_clipped(step: Verbs) -> None:
    """Waiting requests enter with what the token budget allows, until one has to wait."""
    for request in step.waiting():
        if not step.admit(request, step.clip(request)):
            break


def in_prefill(request: Request) -> bool:
    """It has not caught up with the tokens that it was admitted with."""
    return request.num_computed_tokens < request.num_prefill_tokens


def _has_gone_on(request: Request) -> bool:
    """It has computed more than the prompt, or what is computed again, with which it entered."""
    entered_with = request.num_prompt_tokens if len(request.live) > 1 else request.num_prefill_tokens
    return request.num_computed_tokens > entered_with
