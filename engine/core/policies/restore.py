"""How a victim comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.request import Request
from engine.core.view import View


class Restore(Protocol):
    """How a victim comes back."""

    def swaps(self, victim: Request, view: View) -> bool:
        """Keep its KV in the host pool (True), or drop it and compute it again (False).

        If the host pool has no room for it, it is recomputed whatever is answered here.
        """
        ...


class CostEstimator(Protocol):
    """What work costs in the world that a policy runs in; a policy that weighs costs takes one as `cost`."""

    def recompute_ns(self, num_tokens: int) -> int:
        """What computing the KV of `num_tokens` tokens from position 0 adds to a step."""
        ...

    def transfer_ns(self, num_blocks: int) -> int:
        """Moving blocks between device and host, one way."""
        ...


@dataclass(frozen=True, slots=True)
class Swap:
    """Always keep the KV in the host pool."""

    def swaps(self, victim: Request, view: View) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, slots=True)
class Recompute:
    """Always drop the KV and compute it again; the tokens generated so far become part of the prompt."""

    def swaps(self, victim: Request, view: View) -> bool:
        """No."""
        return False


@dataclass(frozen=True, slots=True)
class SwapIfSeveral:
    """vLLM V0's own rule: recompute a single sequence, swap a request with several."""

    def swaps(self, victim: Request, view: View) -> bool:
        """Whether more than one sequence is alive."""
        return len(victim.live) > 1


@dataclass(frozen=True, slots=True)
class Cheapest:
    """Whatever costs less: both ways through the host link, or computing the KV again.

    The crossover of the vLLM paper (SOSP 2023, section 7.3), asked of the cost model instead of a rule.
    """

    cost: CostEstimator

    def swaps(self, victim: Request, view: View) -> bool:
        """Whether twice the transfer of its blocks is cheaper than computing its tokens again."""
        transfer_ns = self.cost.transfer_ns(view.blocks_held(victim))
        return 2 * transfer_ns < self.cost.recompute_ns(victim.num_kv_slots)
