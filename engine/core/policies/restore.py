"""How a victim comes back."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.policies.base import State
from engine.core.request import Request


@dataclass(frozen=True, slots=True)
class Swap:
    """Always keep the KV in the host pool."""

    def swaps(self, victim: Request, state: State) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, slots=True)
class Recompute:
    """Always drop the KV and compute it again; the tokens generated so far become part of the prompt."""

    def swaps(self, victim: Request, state: State) -> bool:
        """No."""
        return False


@dataclass(frozen=True, slots=True)
class SwapIfSeveral:
    """vLLM V0's own rule: recompute a single sequence, swap a request with several."""

    def swaps(self, victim: Request, state: State) -> bool:
        """Whether more than one sequence is alive."""
        return len(victim.live) > 1
