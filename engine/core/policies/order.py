"""Who is next in the queue."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.fields import NonNegative, check_fields
from engine.core.policies.base import QueueName
from engine.core.request import Request
from engine.core.view import View

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Fcfs:
    """First come, first served.

    Queues are in the order in which requests joined them, and a victim of recomputation rejoins at the head.
    vLLM 0.4.2 also sorts `running` and `swapped` by arrival whenever it visits them: name them in `sorts` for
    that.
    """

    sorts: tuple[QueueName, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def key(self, request: Request, view: View) -> tuple[float | str, ...]:
        """By arrival."""
        return (request.arrival_ns, request.id)


@dataclass(frozen=True, slots=True)
class Priority:
    """Lower priority number first, then arrival (vLLM V1's priority queue).

    With `ageing_per_s` > 0 a request gains that much priority for each second since its arrival, so that none
    starves: the effective priority is priority - ageing_per_s x wait. Victims by priority are chosen by it
    too.
    """

    ageing_per_s: NonNegative = 0.0
    sorts: tuple[QueueName, ...] = ("waiting",)

    def __post_init__(self) -> None:
        check_fields(self)

    def effective_priority(self, request: Request) -> float:
        """Priority - a (now - arrival) orders like priority + a arrival: `now` is the same for all, so the
        order never changes with time alone.
        """
        return request.priority + self.ageing_per_s * request.arrival_ns / NS_PER_S

    def key(self, request: Request, view: View) -> tuple[float | str, ...]:
        """The effective priority, then arrival."""
        return (self.effective_priority(request), request.arrival_ns, request.id)
