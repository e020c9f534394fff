"""Scheduler, backend and observers joined: each request is added once and dropped once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.core.errors import UserError
from engine.core.events import Event, EventKind
from engine.core.plan import Finish, FinishReason, StepPlan, StepResult
from engine.core.serving import Serving
from engine.core.spec import Capacity, Limits, RequestSpec
from tests.core.build import lawful, spec


class FakeBackend:
    """Ends every sequence with its second token, and writes down what it is told."""

    capacity = Capacity(16, 0, 4)

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._lengths: dict[str, int] = {}

    def add(self, spec: RequestSpec) -> None:
        if spec.request_id == "bad":
            raise UserError("request bad: prompt token ids must be 0 to 100")
        self.told.append(("add", spec.request_id))
        self._lengths[spec.request_id] = 0

    def submit(self, plan: StepPlan) -> int:
        for chunk in plan.chunks:
            self._lengths[chunk.request_id] += bool(chunk.samples)
        self._plan = plan
        return plan.step_id

    def collect(self, ticket: object) -> StepResult:
        assert ticket == self._plan.step_id
        finished = [
            Finish(chunk.request_id, seq, FinishReason.STOP)
            for chunk in self._plan.chunks
            for seq in chunk.samples
            if self._lengths[chunk.request_id] == 2
        ]
        return StepResult(10, tuple(finished))

    def drop(self, request_id: str) -> None:
        self.told.append(("drop", request_id))
        del self._lengths[request_id]


class Ear:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[str, int]] = []
        self.refusals: list[tuple[str, str, int]] = []
        self.steps: list[tuple[int, int, int]] = []
        self.closed_ns: list[int] = []
        self.events: list[Event] = []

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        self.arrivals.append((spec.request_id, now_ns))

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        self.refusals.append((spec.request_id, reason, now_ns))

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        assert end_ns == start_ns + result.duration_ns
        self.steps.append((plan.step_id, start_ns, end_ns))
        self.events += events

    def closed(self, now_ns: int) -> None:
        self.closed_ns.append(now_ns)


class Joined:
    """The three parts, and a clock that the steps push on."""

    def __init__(self) -> None:
        self.backend, self.ear = FakeBackend(), Ear()
        self.serving = Serving(lawful(limits=Limits(4, 16, 16)), self.backend, [self.ear])
        self.now_ns = 0

    def step(self, abort: str | None = None) -> list[Event]:
        flight = self.serving.begin(self.now_ns)
        assert flight is not None
        if abort is not None:
            assert self.serving.scheduler.abort(abort, self.now_ns)
        result = self.serving.collect(flight)
        self.now_ns += result.duration_ns
        return self.serving.finish(flight, result, self.now_ns)

    def drops(self, request_id: str) -> int:
        return self.backend.told.count(("drop", request_id))


@pytest.fixture
def joined() -> Joined:
    return Joined()


def test_a_finished_request_is_dropped_when_its_last_sequence_ends(joined: Joined) -> None:
    joined.serving.arrive(spec("a", 4, n=3), 0)
    joined.step()
    assert joined.drops("a") == 0
    joined.step()
    assert joined.drops("a") == 1
    assert joined.serving.begin(joined.now_ns) is None


def test_a_rejected_request_is_dropped_once(joined: Joined) -> None:
    joined.serving.arrive(spec("long", 40), 0)
    events = joined.step()
    assert [event.kind for event in events] == [EventKind.ADDED, EventKind.REJECTED]
    assert joined.backend.told == [("add", "long"), ("drop", "long")]


@pytest.mark.parametrize("in_flight", [False, True])
def test_an_aborted_request_is_dropped_once_and_not_while_it_is_in_flight(
    joined: Joined, in_flight: bool
) -> None:
    joined.serving.arrive(spec("a", 4), 0)
    joined.step()
    if not in_flight:
        assert joined.serving.scheduler.abort("a", joined.now_ns)
        assert joined.drops("a") == 0
    joined.step(abort="a" if in_flight else None)
    assert joined.drops("a") == 1
    assert joined.serving.begin(joined.now_ns) is None


def test_an_id_in_use_leaves_the_backend_alone(joined: Joined) -> None:
    joined.serving.arrive(spec("a", 4), 0)
    with pytest.raises(ValueError, match="'a'"):
        joined.serving.arrive(spec("a", 4), 0)
    assert joined.backend.told == [("add", "a")]
    assert joined.ear.arrivals == [("a", 0)]


def test_whom_the_backend_refuses_nobody_has_heard_of(joined: Joined) -> None:
    joined.serving.arrive(spec("a", 4), 0)
    with pytest.raises(UserError, match="request bad: prompt token ids"):
        joined.serving.arrive(spec("bad", 4), 0)
    assert list(joined.serving.scheduler.state.requests) == ["a"]
    events = joined.step() + joined.step()
    assert {event.request_id for event in events} == {"a"}
    assert joined.serving.scheduler.is_idle and joined.backend.told == [("add", "a"), ("drop", "a")]
    assert joined.ear.arrivals == [("a", 0)]


def test_of_a_workload_the_refused_are_told_of_and_the_others_go_on(joined: Joined) -> None:
    for at, name in enumerate(("a", "bad", "a", "b")):
        joined.serving.try_arrive(spec(name, 4), at)
    joined.now_ns = 4
    while not joined.serving.scheduler.is_idle:
        joined.step()
    joined.serving.try_arrive(spec("b", 4), joined.now_ns)  # ended, and yet its id is in the run log
    assert joined.ear.arrivals == [("a", 0), ("b", 3)]
    assert [(name, at) for name, _, at in joined.ear.refusals] == [("bad", 1), ("a", 2), ("b", joined.now_ns)]
    assert joined.ear.refusals[0][1] == "request bad: prompt token ids must be 0 to 100"
    assert "a request with this id came before it" in joined.ear.refusals[1][1]
    assert [joined.drops(name) for name in ("a", "b", "bad")] == [1, 1, 0]


def test_an_observer_that_raises_refuses_nobody(joined: Joined) -> None:
    class Broken(Ear):
        def arrived(self, spec: RequestSpec, now_ns: int) -> None:
            raise UserError("the disk is full")

    joined.serving.observers = [Broken()]
    with pytest.raises(UserError, match="the disk is full"):
        joined.serving.try_arrive(spec("a", 4), 0)


def test_everybody_is_dropped_exactly_once(joined: Joined) -> None:
    names = [f"r{number}" for number in range(12)]
    for number, name in enumerate(names):
        joined.serving.arrive(spec(name, 1 + 3 * number % 17, n=1 + number % 3), joined.now_ns)
        joined.step(
            abort=name if number % 4 == 3 and name in joined.serving.scheduler.state.requests else None
        )
    while not joined.serving.scheduler.is_idle:
        joined.step()
    assert [joined.drops(name) for name in names] == [1] * len(names)
    endings = {event.kind for event in joined.ear.events if event.kind is not EventKind.ADDED}
    assert {EventKind.FINISHED, EventKind.ABORTED, EventKind.REJECTED} <= endings


def test_observers_hear_of_steps_in_order_and_of_every_event(joined: Joined) -> None:
    joined.serving.arrive(spec("a", 4), 0)
    events = joined.step() + joined.step()
    assert joined.ear.steps == [(0, 0, 10), (1, 10, 20)]
    assert joined.ear.events == events
    assert [event.kind for event in events] == [
        EventKind.ADDED,
        EventKind.SCHEDULED,
        EventKind.FIRST_TOKEN,
        EventKind.FINISHED,
    ]


def test_a_period_ends_once_where_the_driver_looks_for_the_next_step(joined: Joined) -> None:
    assert joined.serving.begin(0) is None
    assert joined.ear.closed_ns == []
    joined.serving.arrive(spec("a", 4), 0)
    joined.step()  # from 0 to 10
    assert joined.ear.closed_ns == []
    joined.now_ns = 13
    joined.step()  # from 13 to 23
    assert joined.ear.closed_ns == [13]
    for now_ns in (25, 40):
        assert joined.serving.begin(now_ns) is None
    assert joined.ear.closed_ns == [13, 25]


def test_a_period_ends_with_its_step_while_another_is_in_flight(joined: Joined) -> None:
    """What is done about a step then hides behind the next one, which began when this one ended."""
    serving, ear = joined.serving, joined.ear
    serving.arrive(spec("a", 4, max_tokens=9), 0)
    first, second = serving.begin(0), serving.begin(0)
    assert first is not None and second is not None
    serving.finish(first, StepResult(10), 10)
    assert ear.closed_ns == [10]
    third = serving.begin(13)
    assert third is not None
    serving.finish(second, StepResult(11), 21)
    serving.finish(third, StepResult(9), 30)
    assert ear.steps == [(0, 0, 10), (1, 10, 21), (2, 21, 30)]
    assert ear.closed_ns == [10, 21], "nothing is in flight behind the third: it is open"
    serving.begin(34)
    assert ear.closed_ns == [10, 21, 34]
