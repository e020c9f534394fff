"""Small lives with several plans in flight: what is planned counts as done, and what comes late is known."""

from __future__ import annotations

import pytest

from engine.core.events import Event, EventKind
from engine.core.laws import MAX_STEPS_WITHOUT_TOKEN
from engine.core.plan import FinishReason, Preemption, PreemptionKind, StepPlan
from engine.core.policies.restore import Swap
from engine.core.request import Status
from engine.core.spec import Limits
from experiments.trial import Trial
from tests.core.build import kinds, on_trial, spec


def begin(trial: Trial) -> StepPlan:
    """Plan a step, which stays in flight."""
    plan = trial.begin()
    assert plan is not None, "nothing to do"
    return plan


def names(plan: StepPlan) -> list[str]:
    return [chunk.request_id for chunk in plan.chunks]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_who_comes_to_its_length_limit_by_tokens_in_flight_is_passed_over(max_tokens: int) -> None:
    trial = on_trial()
    trial.arrive(spec("short", 4, max_tokens=max_tokens))
    trial.arrive(spec("long", 4, max_tokens=9))
    plans = [begin(trial) for _ in range(4)]
    assert [names(plan) for plan in plans] == [["short", "long"]] * max_tokens + [["long"]] * (4 - max_tokens)
    assert trial.scheduler.state.num_running_seqs == 2, "it has its seat until its end is told"
    events = [event for _ in plans for event in trial.end()]
    assert kinds(events, "short").count(EventKind.FINISHED) == 1
    assert trial.scheduler.state.num_running_seqs == 1


def test_nothing_is_planned_while_all_are_at_their_limits() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 4, max_tokens=2))
    begin(trial)
    begin(trial)
    assert trial.begin() is None
    trial.end()
    assert trial.begin() is None
    assert kinds(trial.end(), "a") == [EventKind.FINISHED]
    assert trial.scheduler.is_idle


def preempted_in_flight(num_host_blocks: int = 0, max_tokens: int = 8) -> tuple[Trial, StepPlan]:
    """`second` was preempted with the step in flight that brings it its second token; and the plan that did
    it.
    """
    trial = on_trial(num_blocks=4, num_host_blocks=num_host_blocks, restore=Swap())
    trial.arrive(spec("first", 7, max_tokens=8))
    trial.arrive(spec("second", 4, max_tokens=max_tokens))
    begin(trial)
    trial.end()
    begin(trial)
    plan = begin(trial)
    return trial, plan


def test_who_is_preempted_with_its_token_in_flight_waits_for_it() -> None:
    trial, plan = preempted_in_flight()
    assert plan.preemptions == (Preemption("second", PreemptionKind.RECOMPUTE, 5, fell_back=True),)
    second = trial.scheduler.state.requests["second"]
    assert (second.status, second.num_awaited_tokens, second.num_tokens) == (Status.WAITING, 1, 6)
    trial.abort("first")
    assert trial.begin() is None, "there is room, and its second token is not there yet"
    trial.end()
    assert second.num_awaited_tokens == 0
    [chunk] = begin(trial).chunks
    assert (chunk.request_id, chunk.start, chunk.num_tokens) == ("second", 0, 6)


def test_a_request_may_end_by_a_token_that_finds_it_waiting() -> None:
    trial, _ = preempted_in_flight()
    trial.backend.stop("second", 0)
    assert kinds(trial.end(), "second") == [EventKind.PREEMPTED, EventKind.FINISHED]
    assert list(trial.scheduler.state.requests) == ["first"]
    assert not trial.scheduler.state.waiting
    trial.in_flight = 2
    trial.drain()


def test_a_request_may_end_by_a_token_that_finds_it_swapped() -> None:
    trial, plan = preempted_in_flight(num_host_blocks=4)
    assert plan.preemptions == (Preemption("second", PreemptionKind.SWAP, 5, fell_back=False),)
    trial.backend.stop("second", 0)
    assert kinds(trial.end(), "second") == [EventKind.PREEMPTED, EventKind.FINISHED]
    assert trial.scheduler.state.kv.host.num_free == 4
    trial.drain()


def test_a_swapped_request_comes_back_while_its_token_is_in_flight() -> None:
    trial, _ = preempted_in_flight(num_host_blocks=4)
    assert trial.scheduler.state.requests["second"].status is Status.SWAPPED
    trial.abort("first")
    plan = begin(trial)
    assert plan.resumed == ("second",)
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.chunks] == [(5, 1)]
    trial.drain()
    assert trial.report()["finished"] == 1


def test_who_is_swapped_at_its_limit_does_not_come_back() -> None:
    trial, _ = preempted_in_flight(num_host_blocks=4, max_tokens=2)
    trial.abort("first")
    assert trial.begin() is None
    assert kinds(trial.end(), "second")[-1] is EventKind.FINISHED
    trial.drain()


def test_an_end_that_later_steps_do_not_foresee_is_told_once() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 4, max_tokens=9))
    for _ in range(3):
        begin(trial)
    trial.backend.stop("a", 0)
    told = [kinds(trial.end(), "a") for _ in range(3)]
    assert told[0][-1] is EventKind.FINISHED
    assert told[1:] == [[], []], "what later steps bring it is dropped"
    assert trial.scheduler.is_idle


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.NOT_FINITE])
def test_one_of_several_sequences_ends_while_the_next_step_runs(reason: FinishReason) -> None:
    trial = on_trial()
    trial.arrive(spec("a", 4, max_tokens=4, n=2))
    begin(trial)
    begin(trial)
    trial.backend.stop("a", 1, reason)
    ends = kinds(trial.end(), "a")
    if reason is FinishReason.NOT_FINITE:
        assert ends == [EventKind.ADDED, EventKind.SCHEDULED, EventKind.FAILED]
    else:
        assert ends[-1] is EventKind.SEQUENCE_FINISHED
        assert [chunk.seqs for chunk in begin(trial).chunks] == [(0,)]
    trial.drain()


def test_an_id_is_free_when_no_step_in_flight_names_it() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 4, max_tokens=9))
    for _ in range(3):
        begin(trial)
    trial.abort("a")
    for _ in range(3):
        with pytest.raises(ValueError, match="'a' is already here"):
            trial.scheduler.check_is_new("a")
        assert "a" in trial.backend.requests
        trial.end()
    assert "a" not in trial.backend.requests
    trial.arrive(spec("a", 4))
    trial.drain()


def test_events_name_the_step_that_was_being_planned() -> None:
    trial = on_trial(limits=Limits(1, 8, 64))
    trial.arrive(spec("a", 4, max_tokens=2))
    trial.arrive(spec("b", 4, max_tokens=1))
    begin(trial)
    begin(trial)
    events = trial.end() + trial.end()
    begin(trial)
    events += trial.end()
    assert [(event.request_id, event.kind, event.step_id) for event in events] == [
        ("a", EventKind.ADDED, 0),
        ("b", EventKind.ADDED, 0),
        ("a", EventKind.SCHEDULED, 0),
        ("a", EventKind.FIRST_TOKEN, 2),
        ("a", EventKind.FINISHED, 2),
        ("b", EventKind.SCHEDULED, 2),
        ("b", EventKind.FIRST_TOKEN, 3),
        ("b", EventKind.FINISHED, 3),
    ]


def test_plans_that_only_reject_are_no_standstill_while_tokens_are_in_flight() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 4, max_tokens=1))
    begin(trial)
    for number in range(MAX_STEPS_WITHOUT_TOKEN + 1):
        trial.arrive(spec(f"long{number}", 64))
        assert not names(begin(trial))
    trial.drain()
    assert trial.report()["rejected"] == MAX_STEPS_WITHOUT_TOKEN + 1


def test_no_event_is_told_twice() -> None:
    trial, _ = preempted_in_flight()
    events: list[Event] = []
    while trial.flights or trial.begin() is not None:
        if len(trial.flights) > 1 or trial.begin() is None:
            events += trial.end()
    assert kinds(events, "first") == [EventKind.FINISHED]
    assert kinds(events, "second").count(EventKind.FINISHED) == 1
    assert len(set(events)) == len(events)
