"""How the token budget of a step is shared: programs over continue_running, resume_swapped and
admit_waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.policies.base import Verbs


@dataclass(frozen=True, slots=True)
class Static:
    """Admit when the batch is empty, then run until all of it has ended (FasterTransformer)."""

    splits_prompts: bool = False
    repeats: bool = True

    def fill(self, step: Verbs) -> None:
        """The batch first; a new one when it is gone."""
        step.continue_running()
        if not step.num_preemptions:
            step.resume_swapped()
        if not step.is_busy and not step.num_swapped:
            step.admit_waiting()


@dataclass(frozen=True, slots=True)
class PrefillFirst:
    """Whole prompts before anything else, so that a batch is all prefill or all decode (vLLM V0).

    Decodes wait while prompts are admitted, and one swapped request holds back all admission.
    """

    splits_prompts: bool = False
    repeats: bool = True

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
    repeats: bool = True

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
    repeats: bool = True

    def fill(self, step: Verbs) -> None:
        """Continue, and take others only if nobody had to go."""
        step.continue_running(until_self_preempted=True)
        if step.num_preemptions:
            return
        step.resume_swapped()
        if not step.num_swapped:
            step.admit_waiting()
