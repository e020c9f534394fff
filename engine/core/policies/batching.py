"""How the token budget of a step is shared: programs over continue_running, resume_swapped and
admit_waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.policies.base import Verbs
from engine.core.request import Request


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
        if not step.num_swapped and not any(map(_has_gone_on, step.running)):
            step.admit_waiting()
        if not step.num_chunks:
            step.continue_running()
            if not step.num_preemptions:
                step.resume_swapped()


@dataclass(frozen=True, slots=True)
class PrefillFirst:
    """Whole prompts before anything else, so that a batch is all prefill or all decode (vLLM V0).

    Decodes wait while prompts are admitted, and one swapped request holds back all admission.
    """

    splits_prompts: bool = False

    def fill(self, step: Verbs) -> None:
        """Admit, else continue, then resume."""
        if not step.num_swapped:
            step.admit_waiting()
        if not step.num_chunks:
            step.continue_running()
            if not step.num_preemptions:
                step.resume_swapped()


@dataclass(frozen=True, slots=True)
class ArrivalFirstChunked:
    """Chunked prefill as vLLM V0 has it: oldest first, and admission in every step.

    A victim rejoins its queue at the end of the step, so a younger request can take the blocks it left. A
    swapped request comes back only with all that it lacks (`whole`), as in 0.4.2.
    """

    splits_prompts: bool = True

    def fill(self, step: Verbs) -> None:
        """Continue, resume, admit."""
        step.continue_running()
        if not step.num_preemptions:
            step.resume_swapped(whole=True)
        step.admit_waiting()
        step.put_prefills_first()


@dataclass(frozen=True, slots=True)
class DecodeFirst:
    """Running requests before new ones, prompts in chunks: decodes never stall (Sarathi-Serve; vLLM V1).

    Nobody enters in a step that preempted, nor while somebody waits to be swapped in.
    """

    splits_prompts: bool = True

    def fill(self, step: Verbs) -> None:
        """Continue, and take others only if nobody had to go."""
        step.continue_running(until_self_preempted=True)
        if step.num_preemptions:
            return
        step.resume_swapped()
        if not step.num_swapped:
            step.admit_waiting()


def _has_gone_on(request: Request) -> bool:
    """It has computed more than the prompt, or what is computed again, with which it entered."""
    entered_with = request.num_prompt_tokens if len(request.live) > 1 else request.num_prefill_tokens
    return request.num_computed_tokens > entered_with
