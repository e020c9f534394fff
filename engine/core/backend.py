"""What stands behind the seam: whoever executes plans."""

from __future__ import annotations

from typing import Protocol

from engine.core.plan import StepPlan, StepResult
from engine.core.spec import Capacity, RequestSpec


class Backend(Protocol):
    """Executes plans, for real or by a cost model.

    `submit` must not block; `collect` waits for the ticket. Tickets are collected in the order of submission.
    A backend learns of a request by `add` before any plan names it, and keeps its state until `drop`.
    """

    @property
    def capacity(self) -> Capacity:
        """The memory it found."""
        ...

    def add(self, spec: RequestSpec) -> None:
        """Learn of a request.

        Raises:
            UserError: it cannot be served here, whatever the limits; nothing of it is kept.
        """
        ...

    def submit(self, plan: StepPlan) -> object:
        """Start a step; returns its ticket."""
        ...

    def collect(self, ticket: object) -> StepResult:
        """Wait for a step."""
        ...

    def drop(self, request_id: str) -> None:
        """Forget a request that has ended."""
        ...
