"""Queues of requests that keep their order."""

from __future__ import annotations

from bisect import insort_left, insort_right

from engine.core import answers
from engine.core.policies.base import Order
from engine.core.request import Request


class Queue(list[Request]):
    """Requests in the order in which they joined, or by the order policy if that sorts the queue of this
    name: anew whenever it is visited and somebody has joined meanwhile, as vLLM 0.4.2 does it.
    """

    def __init__(self, name: str, order: Order) -> None:
        super().__init__()
        self._order = order if name in order.sorts else None
        self._is_sorted = True

    def join(self, request: Request) -> None:
        """Stand at the end."""
        self.append(request)
        self._is_sorted = False

    def rejoin(self, request: Request) -> None:
        """Stand at the head."""
        self.insert(0, request)
        self._is_sorted = False

    def arrange(self, now_ns: int) -> None:
        """Bring the queue into the order of the policy; nothing to do if nobody joined since the last
        time.
        """
        order = self._order
        if order is not None and (order.ages or not self._is_sorted):
            self.sort(key=lambda request: answers.key(order, request, now_ns))
            self._is_sorted = True

    def rearrange(self, requests: list[Request]) -> None:
        """Stand in this order until the queue is arranged again."""
        self[:] = requests
        self._is_sorted = False


class SortedQueue(Queue):
    """Requests by the order policy at any time; who joins is put into place by bisection.

    For the queue that may be long, and for orders whose keys do not change with time.
    """

    def __init__(self, name: str, order: Order) -> None:
        super().__init__(name, order)
        self._key = lambda request: answers.key(order, request, request.arrival_ns)

    def join(self, request: Request) -> None:
        """Stand behind those who go first."""
        insort_right(self, request, key=self._key)

    def rejoin(self, request: Request) -> None:
        """The same, ahead of one with an equal key."""
        insort_left(self, request, key=self._key)

    def arrange(self, now_ns: int) -> None:
        """It is arranged."""


def waiting_queue(order: Order) -> Queue:
    """The queue of those that wait, under this order."""
    is_kept_sorted = "waiting" in order.sorts and not order.ages
    return (SortedQueue if is_kept_sorted else Queue)("waiting", order)
