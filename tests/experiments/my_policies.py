"""A user's own policies, which no YAML of conf/ knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.request import Request


@dataclass(frozen=True, slots=True)
class LeastComputed:
    """The victim is the request with the fewest computed tokens."""

    def choose(self, running: Sequence[Request]) -> Request:
        return min(running, key=lambda request: (request.num_computed_tokens, request.id))
