"""Requests that come while the engine runs, from other threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from engine.core.drive import FOREVER_NS
from engine.core.errors import UserError
from engine.core.events import Event
from engine.core.serving import Serving
from engine.core.spec import RequestSpec
from engine.runtime.clock import WallClock


class LiveQueue:
    """A source for `drive` that any thread may put requests into; it is over when it is closed and empty.

    A request arrives at the moment at which it is put in, whatever its spec says. The observers hear what
    becomes of it, on the driver's thread.
    """

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock
        self._lock = Lock()
        """Held while the clock is read and an entry put in: the driver, which reads it too, misses none."""
        self._due: deque[tuple[int, RequestSpec | str]] = deque()
        """Arrivals, and ids to abort."""
        self._is_open = True

    def put(self, spec: RequestSpec) -> None:
        """A request arrives.

        Raises:
            UserError: the queue has been closed.
        """
        with self._lock:
            if not self._is_open:
                raise UserError(f"request {spec.request_id}: the queue is closed; put it in before `close`")
            now_ns = self._clock.now_ns()
            self._due.append((now_ns, replace(spec, arrival_ns=now_ns)))
        self._clock.wake()

    def abort(self, request_id: str) -> None:
        """A client goes away; nothing happens if no such request is outstanding. `close` changes nothing."""
        with self._lock:
            self._due.append((self._clock.now_ns(), request_id))
        self._clock.wake()

    def close(self) -> None:
        """No request will come any more; the driver returns when it has served those that are here."""
        with self._lock:
            self._is_open = False
        self._clock.wake()

    def next_ns(self) -> int | None:
        """When the first that has not been delivered came; forever while the queue is open, then None."""
        with self._lock:
            if self._due:
                return self._due[0][0]
            return FOREVER_NS if self._is_open else None

    def deliver(self, now_ns: int, serving: Serving) -> None:
        """All that came by now, in the order in which it came."""
        while (arrival := self._pop(now_ns)) is not None:
            if isinstance(arrival, str):
                serving.abort(arrival, now_ns)
            else:
                serving.try_arrive(arrival, now_ns)

    def told(self, events: Sequence[Event]) -> None:
        """Clients hear from the observers."""

    def _pop(self, now_ns: int) -> RequestSpec | str | None:
        with self._lock:
            return self._due.popleft()[1] if self._due and self._due[0][0] <= now_ns else None
