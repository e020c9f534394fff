"""A live queue: other threads put requests in while the engine runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from engine.core.drive import FOREVER_NS, drive
from engine.core.errors import UserError
from engine.core.events import ENDINGS, Event, EventKind
from engine.core.plan import StepPlan, StepResult
from engine.core.serving import Serving
from engine.core.spec import RequestSpec
from engine.runtime.clock import WallClock
from engine.runtime.live import LiveQueue
from tests.core.build import lawful, spec
from tests.core.test_serving import FakeBackend

PATIENCE_S = 20.0


class Client:
    """An observer by which other threads wait for what happens to requests."""

    def __init__(self) -> None:
        self.heard: dict[str, list[EventKind | str]] = {}
        self.arrivals_ns: dict[str, tuple[int, int]] = {}
        self._changed = threading.Condition()

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        self.arrivals_ns[spec.request_id] = (spec.arrival_ns, now_ns)
        self._note(spec.request_id, "arrived")

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        self._note(spec.request_id, "refused")

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        for event in events:
            self._note(event.request_id, event.kind)

    def closed(self, now_ns: int) -> None:
        pass

    def wait_for(self, request_id: str, what: EventKind | str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what in self.heard.get(request_id, ()), PATIENCE_S)

    def _note(self, request_id: str, what: EventKind | str) -> None:
        with self._changed:
            self.heard.setdefault(request_id, []).append(what)
            self._changed.notify_all()


def served(clients: Callable[[LiveQueue, Client], None], backend: FakeBackend) -> Client:
    """Drive in this thread while `clients` runs in another; its failure is ours."""
    clock, client = WallClock(), Client()
    queue = LiveQueue(clock)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            clients(queue, client)
        except BaseException as failure:
            failures.append(failure)
        queue.close()

    thread = threading.Thread(target=run)
    thread.start()
    drive(Serving(lawful(), backend, [client]), queue, clock)
    thread.join(PATIENCE_S)
    assert not failures, failures
    return client


def test_requests_are_served_as_they_come_and_an_idle_engine_is_woken() -> None:
    def clients(queue: LiveQueue, client: Client) -> None:
        for name in ("a", "b", "c"):
            queue.put(spec(name, 4, arrival_ns=10**18))
            client.wait_for(name, EventKind.FINISHED)
            time.sleep(0.02)

    backend = FakeBackend()
    client = served(clients, backend)
    assert [name for verb, name in backend.told if verb == "drop"] == ["a", "b", "c"]
    came = list(client.arrivals_ns.values())
    assert all(put_ns <= entered_ns for put_ns, entered_ns in came)
    assert came == sorted(came) and came[2][0] - came[0][0] >= 40_000_000


def test_what_is_put_in_before_the_queue_is_closed_is_served() -> None:
    def clients(queue: LiveQueue, client: Client) -> None:
        for number in range(50):
            queue.put(spec(f"r{number}", 4))
        queue.put(spec("bad", 4))
        queue.put(spec("r7", 4))

    client = served(clients, FakeBackend())
    assert [client.heard[f"r{number}"].count(EventKind.FINISHED) for number in range(50)] == [1] * 50
    assert client.heard["bad"] == ["refused"] and "refused" in client.heard["r7"]


def test_a_client_goes_away() -> None:
    released = threading.Event()

    class Slow(FakeBackend):
        def collect(self, ticket: object) -> StepResult:
            assert released.wait(PATIENCE_S)
            return super().collect(ticket)

    def clients(queue: LiveQueue, client: Client) -> None:
        queue.put(spec("a", 4))
        client.wait_for("a", "arrived")
        queue.abort("a")
        queue.abort("nobody")
        released.set()

    client = served(clients, Slow())
    assert [kind for kind in client.heard["a"] if kind in ENDINGS] == [EventKind.ABORTED]
    assert EventKind.FIRST_TOKEN not in client.heard["a"]  # the abort came before the end of its first step


def test_threads_that_put_at_once_lose_nothing_and_time_does_not_go_back() -> None:
    def clients(queue: LiveQueue, client: Client) -> None:
        def burst(thread: int) -> None:
            for number in range(40):
                queue.put(spec(f"t{thread}-{number}", 3))

        threads = [threading.Thread(target=burst, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)

    client = served(clients, FakeBackend())
    assert sum(heard.count(EventKind.FINISHED) for heard in client.heard.values()) == 160


def test_a_closed_queue_takes_no_request() -> None:
    queue = LiveQueue(WallClock())
    assert queue.next_ns() == FOREVER_NS
    queue.put(spec("a", 4))
    queue.close()
    with pytest.raises(UserError, match="request b: the queue is closed"):
        queue.put(spec("b", 4))
    queue.deliver(queue.next_ns() or 0, Serving(lawful(), FakeBackend()))
    assert queue.next_ns() is None


def test_the_clock_is_woken_even_before_it_waits() -> None:
    clock = WallClock()
    clock.wake()
    begin_ns = clock.now_ns()
    clock.wait_until(begin_ns + 10**13)
    assert clock.now_ns() < begin_ns + 10**11
    clock.wait_until(clock.now_ns() + 10**6)
    assert clock.now_ns() >= begin_ns + 10**6
