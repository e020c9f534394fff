"""A queue of requests that keeps its order."""

from __future__ import annotations

from engine.core.policies.base import Order
from engine.core.request import Request


class Queue(list[Request]):
    """Requests in the order in which they joined, or by the order policy if that sorts the queue of this
    name.
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
            self.sort(key=lambda request: order.key(request, now_ns))
            self._is_sorted = True

    def rearrange(self, requests: list[Request]) -> None:
        """Stand in this order until the queue is arranged again."""
        self[:] = requests
        self._is_sorted = False
