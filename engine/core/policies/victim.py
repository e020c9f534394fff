"""Whom to preempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.core.request import Request
from engine.core.view import View


class Need(NamedTuple):
    """Why somebody has to go."""

    request: Request
    """It runs, and finds too few blocks."""
    num_blocks: int
    """Free blocks that it wants."""


class Victim(Protocol):
    """Whom to preempt when a running request finds no block."""

    def choose(self, view: View, need: Need) -> Request:
        """One of `view.running`, which is in queue order; it may be the one in need."""
        ...


@dataclass(frozen=True, slots=True)
class LastAdmitted:
    """The tail of the running queue (vLLM, Sarathi-Serve, Vidur): the oldest always gets through."""

    def choose(self, view: View, need: Need) -> Request:
        """The last one."""
        return view.running[-1]


@dataclass(frozen=True, slots=True)
class LowestPriority:
    """The highest priority number, the latest arrival among equals (vLLM V1 with priority scheduling).

    Where the order lets priorities age, what counts is what has become of them: who has waited until it was
    the first to enter is not the first to go.
    """

    def choose(self, view: View, need: Need) -> Request:
        """The worst (effective priority, arrival, id)."""
        return max(
            view.running, key=lambda request: (request.effective_priority, request.arrival_ns, request.id)
        )
