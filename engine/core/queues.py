"""Queues of requests that keep their order. Who stands at the head leaves in constant time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable

from engine.core.request import Request

Key = Callable[[Request], tuple[float | str, ...]]
"""A place in a queue that no other request can have; the lowest goes first."""


class Queue(deque[Request]):
    """Requests in the order in which they joined."""

    def join(self, request: Request) -> None:
        """Stand at the end."""
        self.append(request)

    def rejoin(self, request: Request) -> None:
        """Stand at the head."""
        self.appendleft(request)

    def arrange(self) -> None:
        """Asked whenever the queue is visited: put those in order who are not."""

    def rearrange(self, requests: list[Request]) -> bool:
        """Stand in this order until the queue is arranged; one that never is stays as it is (False)."""
        return False


class VisitedQueue(Queue):
    """Requests by a key, put in order whenever the queue is visited and somebody has joined meanwhile, as
    vLLM 0.4.2 does it; or, if the keys have changed, on every visit.
    """

    def __init__(self, key: Key, has_changed: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._key = key
        self._has_changed = has_changed
        self._is_sorted = True

    def join(self, request: Request) -> None:
        """Stand at the end until the next visit."""
        super().join(request)
        self._is_sorted = False

    def rejoin(self, request: Request) -> None:
        """Stand at the head until the next visit."""
        super().rejoin(request)
        self._is_sorted = False

    def arrange(self) -> None:
        """Sort, if need be."""
        if not self._is_sorted or self._has_changed():
            self._become(sorted(self, key=self._key))
            self._is_sorted = True

    def rearrange(self, requests: list[Request]) -> bool:
        """Stand in this order until the next visit."""
        self._become(requests)
        self._is_sorted = False
        return True

    def _become(self, requests: list[Request]) -> None:
        self.clear()
        self.extend(requests)


class SortedQueue(Queue):
    """Requests by a key at any time; who joins is put into place by bisection.

    For the queue that may be long, and for keys that do not change.
    """

    def __init__(self, key: Key) -> None:
        super().__init__()
        self._key = key

    def join(self, request: Request) -> None:
        """Stand behind those who go first."""
        self.insert(bisect_right(self, self._key(request), key=self._key), request)

    def rejoin(self, request: Request) -> None:
        """The same, ahead of one with an equal key."""
        self.insert(bisect_left(self, self._key(request), key=self._key), request)
