"""Whom to preempt."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.policies.base import Need
from engine.core.request import Request
from engine.core.view import View


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
