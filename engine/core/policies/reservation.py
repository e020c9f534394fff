"""How memory is set aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.request import Request
from engine.core.view import View


class Reservation(Protocol):
    """How much memory is set aside ahead of need."""

    def tokens(self, request: Request, num_tokens: int, view: View) -> int:
        """Tokens to hold blocks for when `num_tokens` are about to be computed; not fewer."""
        ...


@dataclass(frozen=True, slots=True)
class OnDemand:
    """A block when a token needs it: PagedAttention as vLLM V1 does it, chunk by chunk."""

    def tokens(self, request: Request, num_tokens: int, view: View) -> int:
        """Just these."""
        return num_tokens


@dataclass(frozen=True, slots=True)
class WholePrompt:
    """Blocks for all known tokens at the first chunk (vLLM V0)."""

    def tokens(self, request: Request, num_tokens: int, view: View) -> int:
        """All it has; its prompt while several sequences are to share that, since they part after it."""
        if len(request.live) > 1 and request.num_computed_tokens < request.num_prompt_tokens:
            return request.num_prompt_tokens
        return request.num_tokens
