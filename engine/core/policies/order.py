"""Who is next in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from engine.core.fields import NonNegative, check_fields
from engine.core.request import Request
from engine.core.view import View

QueueName = Literal["waiting", "running", "swapped"]


class Order(Protocol):
    """Who is next in a queue."""

    @property
    def sorts(self) -> Sequence[str]:
        """The queues ("waiting", "running", "swapped") kept in the order of `key`; others stay as they
        came.
        """
        ...

    def key(self, request: Request, view: View) -> tuple[float | str, ...]:
        """Lowest first; the last element is the request id. Asked when the request joins a queue, or when the
        queue is put in order.
        """
        ...


@runtime_checkable
class ChangingOrder(Order, Protocol):
    """An order in which a key may change while its request stands in a queue."""

    def has_changed(self, view: View) -> bool:
        """Whether the queue at hand must be put in order anew."""
        ...


@runtime_checkable
class AgeingOrder(Order, Protocol):
    """An order in which priorities change as requests wait."""

    def effective_priority(self, request: Request) -> float:
        """What has become of `request.priority`; lower goes first. Only differences count."""
        ...


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
