"""Planted bugs that need a step in flight: a token or an end that comes late is taken for another."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.events import Event, EventKind
from engine.core.plan import Finish, StepPlan, StepResult
from engine.core.request import Request, Status
from engine.core.scheduler import Scheduler
from engine.core.serving import Flight, Serving
from engine.core.state import State
from tests.laws.test_planted_bugs import Plant, assert_soak_breaks

MAX_STEPS = 6_000


def count_a_stale_token_twice(patch: pytest.MonkeyPatch) -> None:
    """The token of a preempted request counts when it is planned, and again when it comes."""
    commit = Scheduler.commit

    def counting(self: Scheduler, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        for request in self._in_flight[0].awaited:
            request.num_tokens += 1
        return commit(self, plan, result, now_ns)

    patch.setattr(Scheduler, "commit", counting)


def lose_a_stale_token(patch: pytest.MonkeyPatch) -> None:
    """The token of a request that is preempted while its step runs is taken back, and comes all the same."""
    await_tokens = Scheduler._await_tokens

    def losing(self: Scheduler, *args: Any) -> None:
        await_tokens(self, *args)
        for flight in self._in_flight:
            for request in flight.awaited:
                request.num_tokens -= 1

    patch.setattr(Scheduler, "_await_tokens", losing)


def enter_before_the_token(patch: pytest.MonkeyPatch) -> None:
    """A preempted request is computed again, its newest token included, before that is there."""
    patch.setattr(Scheduler, "_await_tokens", lambda *args: None)


def wait_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A preempted request waits for the token of a step in flight, and nobody says that it has come."""
    await_tokens = Scheduler._await_tokens

    def forgetful(self: Scheduler, *args: Any) -> None:
        await_tokens(self, *args)
        for flight in self._in_flight:
            flight.awaited.clear()

    patch.setattr(Scheduler, "_await_tokens", forgetful)


def leak_the_seat_of_a_late_end(patch: pytest.MonkeyPatch) -> None:
    """An end that is told while a later step names the request leaves its seat taken."""
    end = Scheduler._end

    def leaky(self: Scheduler, request: Request, kind: EventKind, detail: str) -> None:
        is_named = any(request.id in flight.plan.chunks.request_ids for flight in self._in_flight)
        self.state.num_running_seqs += is_named and kind is EventKind.FINISHED
        end(self, request, kind, detail)

    patch.setattr(Scheduler, "_end", leaky)


def miscount_an_end_off_the_batch(patch: pytest.MonkeyPatch) -> None:
    """A request that was preempted while its last step ran gives back a seat that it does not have."""
    end = State.end

    def miscounting(self: State, request: Request) -> None:
        is_off = request.status in (Status.WAITING, Status.SWAPPED) and request.num_preemptions > 0
        end(self, request)
        self.num_running_seqs -= is_off

    patch.setattr(State, "end", miscounting)


def miss_an_end(patch: pytest.MonkeyPatch, status: Status) -> None:
    """An end that comes when the request is no longer in the batch is not seen."""
    alive = Scheduler._alive

    def blind(self: Scheduler, finish: Finish, plan: StepPlan) -> Request | None:
        request = alive(self, finish, plan)
        return None if request is not None and request.status is status else request

    patch.setattr(Scheduler, "_alive", blind)


def miss_the_end_of_who_waits(patch: pytest.MonkeyPatch) -> None:
    miss_an_end(patch, Status.WAITING)


def miss_the_end_of_who_is_swapped(patch: pytest.MonkeyPatch) -> None:
    miss_an_end(patch, Status.SWAPPED)


def end_twice(patch: pytest.MonkeyPatch) -> None:
    """A finish that was on its way when the request was aborted ends it again."""
    finish = Scheduler._finish

    def telling(self: Scheduler, end: Finish, plan: StepPlan) -> None:
        if self._alive(end, plan) is None:
            self._events.append(Event(self.state.now_ns, end.request_id, EventKind.FINISHED, end.reason))
        finish(self, end, plan)

    patch.setattr(Scheduler, "_finish", telling)


def free_an_id_too_early(patch: pytest.MonkeyPatch) -> None:
    """The id of a request is free once its end has been told, though a step in flight names it."""
    told = Scheduler._told

    def freeing(self: Scheduler) -> list[Event]:
        events = told(self)
        self._leaving.clear()
        return events

    patch.setattr(Scheduler, "_told", freeing)


def drop_too_early(patch: pytest.MonkeyPatch) -> None:
    """The backend forgets a request as soon as its end is told, though a step in flight names it."""
    finish = Serving.finish

    def dropping(self: Serving, flight: Flight, result: StepResult, now_ns: int) -> list[Event]:
        events = finish(self, flight, result, now_ns)
        while self._to_drop:
            self.backend.drop(self._to_drop.popleft()[1])
        return events

    patch.setattr(Serving, "finish", dropping)


def pass_nobody_over(patch: pytest.MonkeyPatch) -> None:
    """A request goes on until its end is told, though steps in flight bring it to its length limit."""
    arrive = State.arrive

    def unlimited(self: State, request: Request) -> None:
        arrive(self, request)
        request.max_num_tokens += 1

    patch.setattr(State, "arrive", unlimited)


PLANTED: list[tuple[Plant, int]] = [
    (count_a_stale_token_twice, 8),
    (lose_a_stale_token, 8),
    (enter_before_the_token, 8),
    (wait_for_ever, 6),
    (leak_the_seat_of_a_late_end, 1),
    (miscount_an_end_off_the_batch, 1),
    (miss_the_end_of_who_waits, 8),
    (miss_the_end_of_who_is_swapped, 6),
    (end_twice, 2),
    (free_an_id_too_early, 2),
    (drop_too_early, 8),
    (pass_nobody_over, 5),
]


@pytest.mark.parametrize(("plant", "law"), PLANTED)
def test_the_seeded_driver_catches(plant: Plant, law: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert_soak_breaks(law, MAX_STEPS)
