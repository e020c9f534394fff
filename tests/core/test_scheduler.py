"""The verbs of the scheduler: the ordinary life of a request, and calls that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.core.events import EventKind
from engine.core.plan import Chunk, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.spec import Capacity, Limits
from tests.core.build import DEFAULT, commit, drain, kinds, lawful, on_trial, spec, step


def test_a_request_lives_and_ends() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 6, max_tokens=3))
    plans, events = drain(trial)
    assert [tuple(plan.chunks) for plan in plans] == [
        (Chunk("a", 0, 6, (0,), (0,)),),
        (Chunk("a", 6, 1, (0,), (0,)),),
        (Chunk("a", 7, 1, (0,), (0,)),),
    ]
    assert [plan.step_id for plan in plans] == [0, 1, 2]
    assert kinds(events, "a") == [
        EventKind.ADDED,
        EventKind.SCHEDULED,
        EventKind.FIRST_TOKEN,
        EventKind.FINISHED,
    ]
    assert events[-1].detail == "length"


def test_a_long_prompt_is_computed_in_chunks_and_samples_once() -> None:
    trial = on_trial(limits=Limits(4, 4, 64))
    trial.arrive(spec("a", 10, max_tokens=2))
    plans, events = drain(trial)
    assert [(c.start, c.num_tokens, c.samples) for plan in plans for c in plan.chunks] == [
        (0, 4, ()),
        (4, 4, ()),
        (8, 2, (0,)),
        (10, 1, (0,)),
    ]
    assert kinds(events, "a").count(EventKind.FIRST_TOKEN) == 1


def test_the_pool_state_of_a_plan() -> None:
    trial = on_trial(num_blocks=4, limits=Limits(2, 64, 64))
    for name in "abc":
        trial.arrive(spec(name, 5))
    plan, _ = step(trial)
    assert (plan.after.num_running, plan.after.num_waiting, plan.after.num_swapped) == (2, 1, 0)
    assert (plan.after.num_free_blocks, plan.after.num_kv_tokens) == (0, 0)
    plan, _ = step(trial)
    assert plan.after.num_kv_tokens == 10


def test_an_idle_scheduler_plans_nothing() -> None:
    scheduler = lawful()
    assert scheduler.is_idle
    assert scheduler.schedule(0) is None


def test_an_id_is_unique_while_its_bearer_lives() -> None:
    scheduler = lawful()
    scheduler.add(Request(spec("a", 4)), 0)
    with pytest.raises(ValueError, match="'a' is already here"):
        scheduler.add(Request(spec("a", 4)), 0)


def test_an_id_is_free_again_when_the_end_has_been_told() -> None:
    """Not before: a backend forgets a request when it hears of the end, and would forget the new bearer."""
    scheduler = lawful()
    scheduler.add(Request(spec("a", 4)), 0)
    plan = scheduler.schedule(0)
    assert plan is not None
    scheduler.abort("a", 0)
    with pytest.raises(ValueError, match="'a'"):
        scheduler.add(Request(spec("a", 4)), 0)
    assert kinds(commit(scheduler, plan), "a")[-1] is EventKind.ABORTED
    scheduler.add(Request(spec("a", 4)), 0)
    assert list(scheduler.state.requests) == ["a"]


def test_plans_are_committed_in_order() -> None:
    scheduler = lawful()
    scheduler.add(Request(spec("a", 4)), 0)
    first, second = scheduler.schedule(0), scheduler.schedule(0)
    assert first is not None and second is not None
    assert [chunk.start for chunk in (*first.chunks, *second.chunks)] == [0, 4], "planned is as good as done"
    with pytest.raises(RuntimeError, match="step 1 is not in flight: commit each plan once, in order"):
        commit(scheduler, second)
    commit(scheduler, first)
    commit(scheduler, second)


def test_a_plan_is_committed_once() -> None:
    scheduler = lawful()
    scheduler.add(Request(spec("a", 4)), 0)
    plan = scheduler.schedule(0)
    assert plan is not None
    commit(scheduler, plan)
    with pytest.raises(RuntimeError, match="step 0 is not in flight"):
        commit(scheduler, plan)


def test_an_older_plan_is_not_the_one_in_flight() -> None:
    scheduler = lawful()
    scheduler.add(Request(spec("a", 4)), 0)
    old = scheduler.schedule(0)
    assert old is not None
    commit(scheduler, old)
    assert scheduler.schedule(0) is not None
    with pytest.raises(RuntimeError, match="step 0 is not in flight"):
        commit(scheduler, old)


@pytest.mark.parametrize("verb", ["add", "abort", "schedule", "commit"])
def test_time_never_goes_back(verb: str) -> None:
    scheduler = lawful()
    scheduler.add(Request(spec("a", 4)), 5)
    plan = scheduler.schedule(7)
    assert plan is not None
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: scheduler.add(Request(spec("b", 4)), 6),
        "abort": lambda: scheduler.abort("a", 6),
        "schedule": lambda: scheduler.schedule(6),
        "commit": lambda: scheduler.commit(plan, StepResult(1), 6),
    }
    with pytest.raises(ValueError, match="time goes back from 7 to 6 ns"):
        calls[verb]()


@pytest.mark.parametrize("end", [("b", 0), ("a", 1), ("nobody", 0)])
def test_a_backend_ends_only_what_the_step_ran(end: tuple[str, int]) -> None:
    scheduler = Scheduler(Capacity(4, 0, 4), Limits(1, 8, 16), DEFAULT)
    scheduler.add(Request(spec("a", 4)), 0)
    scheduler.add(Request(spec("b", 4)), 0)
    plan = scheduler.schedule(0)
    assert plan is not None
    with pytest.raises(ValueError, match=rf"ends sequence {end[1]} of '{end[0]}', which .*did not run"):
        commit(scheduler, plan, end)
