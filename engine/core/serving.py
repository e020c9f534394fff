"""Scheduler, backend and observers joined. A driver adds the one thing that is missing: time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from engine.core.backend import Backend
from engine.core.errors import UserError
from engine.core.events import ENDINGS, Event
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import RequestSpec


class Observer(Protocol):
    """Sees everything, decides nothing: run log, progress bar, journal."""

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """A request entered the system."""
        ...

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """A request of a workload did not enter: nobody else has heard of it."""
        ...

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """A step was committed, which began at `start_ns` and was committed at `end_ns`.

        It began when it was planned; or, planned while another was in flight, with the end of that.
        """
        ...

    def closed(self, now_ns: int) -> None:
        """The period of the step last told of is over: the driver looks for the next one.

        A period is planning, execution, commit and what the observers did about it. The periods of busy steps
        follow one another without a gap; what lies between two periods is idle time. While another step is
        in flight, what is done about this one hides behind that: its period ends with it.
        """
        ...


class Flight(NamedTuple):
    """A plan that the backend is executing."""

    plan: StepPlan
    ticket: object
    start_ns: int


class Serving:
    """The three verbs of a step in the order in which every driver needs them."""

    def __init__(self, scheduler: Scheduler, backend: Backend, observers: Sequence[Observer] = ()) -> None:
        self.scheduler = scheduler
        self.backend = backend
        self.observers = observers
        self._has_open_period = False
        self._num_begun = self._num_finished = 0
        self._last_end_ns = 0
        self._to_drop: deque[tuple[int, str]] = deque()
        """Requests that have ended, and after how many steps the backend need not know them any more."""
        self._ids: set[str] = set()
        """Of the requests of a workload that have entered; the run log tells them apart by these."""

    def arrive(self, spec: RequestSpec, now_ns: int) -> None:
        """A request enters; if it can never fit, the scheduler says so in the events of the next step.

        Raises:
            UserError: scheduler or backend refuse it; then neither of them keeps anything of it.
        """
        self._take_in(spec, now_ns)
        for observer in self.observers:
            observer.arrived(spec, now_ns)

    def try_arrive(self, spec: RequestSpec, now_ns: int) -> bool:
        """A request of a workload enters, or is refused (False); the observers are told which.

        Within a workload an id is used once.
        """
        try:
            if spec.request_id in self._ids:
                raise UserError(f"request {spec.request_id}: a request with this id came before it")
            self._take_in(spec, now_ns)
        except UserError as error:
            for observer in self.observers:
                observer.refused(spec, str(error), now_ns)
            return False
        self._ids.add(spec.request_id)
        for observer in self.observers:
            observer.arrived(spec, now_ns)
        return True

    def _take_in(self, spec: RequestSpec, now_ns: int) -> None:
        """Both know of the request, or neither: whoever may refuse is asked before anybody keeps it."""
        self.scheduler.check_is_new(spec.request_id)
        self.backend.add(spec)
        self.scheduler.add(Request(spec), now_ns)

    def abort(self, request_id: str, now_ns: int) -> bool:
        """A client goes away; the backend lets go of the request when the scheduler tells of its end.

        False if no such request is outstanding.
        """
        return self.scheduler.abort(request_id, now_ns)

    def begin(self, now_ns: int) -> Flight | None:
        """Close the period of the last step, plan another and hand it to the backend; None if there is
        nothing to do.
        """
        self._close(now_ns)
        plan = self.scheduler.schedule(now_ns)
        if plan is None:
            return None
        self._num_begun += 1
        return Flight(plan, self.backend.submit(plan), now_ns)

    def _close(self, now_ns: int) -> None:
        if self._has_open_period:
            self._has_open_period = False
            for observer in self.observers:
                observer.closed(now_ns)

    def collect(self, flight: Flight) -> StepResult:
        """Wait for the backend."""
        return self.backend.collect(flight.ticket)

    def finish(self, flight: Flight, result: StepResult, now_ns: int) -> list[Event]:
        """Commit the step and tell the observers; ended requests that no step in flight names leave the
        backend.
        """
        events = self.scheduler.commit(flight.plan, result, now_ns)
        self._num_finished += 1
        self._to_drop.extend((self._num_begun, event.request_id) for event in events if event.kind in ENDINGS)
        while self._to_drop and self._to_drop[0][0] <= self._num_finished:
            self.backend.drop(self._to_drop.popleft()[1])
        start_ns, self._last_end_ns = max(flight.start_ns, self._last_end_ns), now_ns
        for observer in self.observers:
            observer.stepped(flight.plan, result, start_ns, now_ns, events)
        self._has_open_period = True
        if self._num_begun > self._num_finished:
            self._close(now_ns)
        return events
