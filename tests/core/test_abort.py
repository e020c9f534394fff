"""A client may go away at any moment, and leaves nothing behind."""

from __future__ import annotations

import pytest

from engine.core.events import EventKind
from engine.core.policies.restore import Swap
from engine.core.request import Status
from engine.core.spec import Limits
from experiments.trial import Trial
from tests.core.build import drain, kinds, lawful, on_trial, spec, step


def waiting() -> Trial:
    trial = on_trial(limits=Limits(1, 8, 64))
    trial.arrive(spec("other", 4))
    trial.arrive(spec("a", 4))
    step(trial)
    return trial


def mid_prompt() -> Trial:
    trial = on_trial(limits=Limits(4, 4, 64))
    trial.arrive(spec("a", 10))
    step(trial)
    return trial


def decoding() -> Trial:
    trial = on_trial()
    trial.arrive(spec("a", 6))
    step(trial)
    step(trial)
    return trial


def forked() -> Trial:
    trial = on_trial()
    trial.arrive(spec("a", 6, n=3))
    step(trial)
    step(trial)
    return trial


def preempted(num_host_blocks: int) -> Trial:
    """`a` came second, and lost its blocks to `other`."""
    trial = on_trial(num_blocks=3, num_host_blocks=num_host_blocks, restore=Swap())
    trial.arrive(spec("other", 4, max_tokens=8))
    trial.arrive(spec("a", 4, max_tokens=8))
    while not trial.scheduler.state.requests["a"].num_preemptions:
        step(trial)
    return trial


def swapped() -> Trial:
    return preempted(num_host_blocks=3)


def to_be_recomputed() -> Trial:
    return preempted(num_host_blocks=0)


STATES = {
    waiting: Status.WAITING,
    mid_prompt: Status.RUNNING,
    decoding: Status.RUNNING,
    forked: Status.RUNNING,
    swapped: Status.SWAPPED,
    to_be_recomputed: Status.WAITING,
}


@pytest.mark.parametrize("build", STATES)
@pytest.mark.parametrize("in_flight", [False, True])
def test_abort(build: object, in_flight: bool) -> None:
    assert callable(build)
    trial: Trial = build()
    kv = trial.scheduler.state.kv
    if in_flight:
        trial.begin()
    else:
        assert trial.scheduler.state.requests["a"].status is STATES[build]
    trial.abort("a")
    assert "a" not in trial.scheduler.state.requests
    assert kv.host.num_free == kv.host.num_blocks
    _, events = (None, trial.end()) if trial.flights else step(trial)
    assert kinds(events, "a")[-1] is EventKind.ABORTED
    _, events = drain(trial)
    assert kinds(events, "a") == []
    assert kv.device.num_free == kv.device.num_blocks


def test_a_sequence_that_ends_in_flight_of_an_aborted_request_is_not_told() -> None:
    trial = decoding()
    plan = trial.begin()
    assert plan is not None
    trial.backend.stop("a", 0)
    trial.abort("a")
    assert kinds(trial.end(), "a") == [EventKind.ABORTED]


def test_an_abort_alone_is_enough_for_a_plan() -> None:
    trial = decoding()
    trial.abort("a")
    plan, events = step(trial)
    assert (len(plan.chunks), plan.num_tokens) == (0, 0)
    assert kinds(events, "a") == [EventKind.ABORTED]
    assert trial.begin() is None


def test_nobody_is_aborted_twice() -> None:
    trial = decoding()
    trial.abort("a")
    assert not trial.scheduler.abort("a", trial.now_ns)


def test_who_never_came_or_was_turned_away_cannot_be_aborted() -> None:
    scheduler = lawful(limits=Limits(1, 8, 8))
    trial = Trial(scheduler)
    trial.arrive(spec("long", 9))
    assert not scheduler.abort("long", 0)
    assert not scheduler.abort("nobody", 0)
    assert kinds(step(trial)[1], "long") == [EventKind.ADDED, EventKind.REJECTED]
