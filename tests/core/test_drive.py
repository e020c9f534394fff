"""The driver, in both worlds: where only steps take time, the same things happen at the same moments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import cast

import pytest

from engine.core.drive import MAX_EMPTY_STEPS, Source, drive
from engine.core.errors import UserError
from engine.core.events import ENDINGS, Event, EventKind
from engine.core.laws import LawBroken
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.core.spec import RequestSpec
from tests.core.worlds import Recorder, Step, World, spec
from tests.sim.plans import decode, make_plan


def test_no_requests_take_no_time(world: World) -> None:
    assert world.serve([])[0] == 0


def test_one_request_and_an_idle_gap(world: World) -> None:
    end_ns, recorder = world.serve([spec("b", 5000), spec("a", 7)])
    assert recorder.heard == [
        ("a", 7),
        Step(7, 117, ("a",)),
        Step(117, 218, ("a",)),
        ("b", 5000),
        Step(5000, 5110, ("b",)),
        Step(5110, 5211, ("b",)),
    ]
    assert end_ns == 5211
    assert all(type(event.time_ns) is int for event in recorder.events)


def test_arrival_during_a_step_is_noted_when_it_happens_and_waits_for_the_next_step(world: World) -> None:
    _, recorder = world.serve([spec("a", 0), spec("b", 60)])
    assert recorder.heard[:4] == [("a", 0), ("b", 60), Step(0, 110, ("a",)), Step(110, 221, ("a", "b"))]


@pytest.mark.parametrize("earlier_ns", [[], [50], [109]])
def test_arrival_at_the_start_of_a_step_is_in_it(earlier_ns: list[int], world: World) -> None:
    """Step 0 ends at 110, whatever has happened before."""
    others = [spec(f"x{at_ns}", at_ns, num_prompt=1) for at_ns in earlier_ns]
    _, recorder = world.serve([spec("a", 0), *others, spec("b", 110)])
    second = [heard for heard in recorder.heard if isinstance(heard, Step)][1]
    assert second.start_ns == 110
    assert "b" in second.request_ids
    assert ("b", 110) in recorder.heard


def test_simultaneous_arrivals_enter_in_order_of_their_ids(world: World) -> None:
    _, recorder = world.serve([spec("c", 5), spec("a", 5), spec("b", 5)])
    assert recorder.heard[:3] == [("a", 5), ("b", 5), ("c", 5)]
    assert recorder.heard[3] == Step(5, 135, ("a", "b", "c"))


@pytest.mark.parametrize("earlier_ns", [[], [50], [109]])
def test_an_abort_at_the_end_of_a_step_comes_after_its_tokens_and_before_the_next_plan(
    earlier_ns: list[int], world: World
) -> None:
    """Step 0 ends at 110, whatever has happened before."""
    others = [spec(f"x{at_ns}", at_ns, num_prompt=1) for at_ns in earlier_ns]
    _, recorder = world.serve([spec("a", 0), *others], aborts_ns={"a": 110})
    turns = [(event.kind, event.time_ns) for event in recorder.events if event.request_id == "a"]
    assert turns[-2:] == [(EventKind.FIRST_TOKEN, 110), (EventKind.ABORTED, 110)]
    assert ["a" in step.request_ids for step in recorder.heard if isinstance(step, Step)][:2] == [True, False]


def test_an_abort_takes_effect_at_once_and_the_step_runs_on(world: World) -> None:
    _, recorder = world.serve([spec("a", 0), spec("b", 0)], aborts_ns={"a": 60})
    assert [step for step in recorder.heard if isinstance(step, Step)] == [
        Step(0, 120, ("a", "b")),
        Step(120, 221, ("b",)),
    ]
    assert [event for event in recorder.events if event.request_id == "a"][-1].time_ns == 60


def test_who_has_not_come_or_has_gone_cannot_be_aborted(world: World) -> None:
    end_ns, recorder = world.serve([spec("a", 10)], aborts_ns={"a": 9, "nobody": 50})
    assert (end_ns, recorder.events[-1].kind) == (221, EventKind.FINISHED)
    assert world.serve([spec("a", 10)], aborts_ns={"a": 9_999})[0] == 221


def test_who_is_aborted_at_arrival_computes_nothing(world: World) -> None:
    _, recorder = world.serve([spec("a", 10)], aborts_ns={"a": 10})
    assert recorder.heard == [("a", 10), Step(10, 10, ())]


def test_rejected_request_leaves_and_the_others_run_on(world: World) -> None:
    end_ns, recorder = world.serve([spec("long", 0, num_prompt=250), spec("a", 0)])
    endings = {event.request_id: event.kind for event in recorder.events if event.kind != EventKind.ADDED}
    assert endings == {"long": EventKind.REJECTED, "a": EventKind.FINISHED}
    assert end_ns == 211


def random_workload() -> list[RequestSpec]:
    stream = random.Random("loop/workload")
    specs = [
        RequestSpec(
            f"r{index:02d}",
            arrival_ns=stream.randint(0, 3000),
            num_prompt_tokens=stream.randint(1, 30),
            max_tokens=100,
            num_output_tokens=stream.randint(1, 20),
            n=stream.choice((1, 1, 2)),
        )
        for index in range(40)
    ]
    stream.shuffle(specs)
    return specs


def test_every_request_ends_once_under_memory_pressure(world: World) -> None:
    specs = random_workload()
    _, recorder = world.serve(specs, num_blocks=20)
    finished = sorted(event.request_id for event in recorder.events if event.kind == EventKind.FINISHED)
    assert finished == sorted(spec.request_id for spec in specs)
    assert any(event.kind == EventKind.PREEMPTED for event in recorder.events)


def test_same_workload_in_another_order_gives_the_same_run(world: World) -> None:
    first_ns, first = world.serve(random_workload(), num_blocks=20)
    second_ns, second = world.serve(random_workload()[::-1], num_blocks=20)
    assert (first_ns, first.heard, first.events) == (second_ns, second.heard, second.events)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_both_worlds_do_the_same_things_at_the_same_moments(in_flight: int, world: World) -> None:
    """With preemptions and aborts, some of them during a step, before the arrival or after the end."""
    stream = random.Random("drive/aborts")
    specs = random_workload()
    aborts_ns = {spec.request_id: stream.randint(0, 9000) for spec in stream.sample(specs, 15)}
    end_ns, recorder = world.drive(Listed(specs, aborts_ns), 20, in_flight)
    other_ns, other = World("simulation").drive(Listed(specs, aborts_ns), 20, in_flight)
    assert (end_ns, recorder.heard, recorder.events) == (other_ns, other.heard, other.events)
    kinds = [event.kind for event in recorder.events]
    assert {EventKind.PREEMPTED, EventKind.ABORTED} <= set(kinds)
    assert sum(kinds.count(kind) for kind in ENDINGS) == len(specs)
    steps = [heard for heard in recorder.heard if isinstance(heard, Step)]
    assert all(earlier.end_ns <= later.start_ns for earlier, later in pairwise(steps)), "one after the other"


def test_a_duplicate_request_is_refused_and_the_others_go_on(world: World) -> None:
    _, recorder = world.serve([spec("a", 0), spec("a", 60), spec("b", 60)])
    reason = "request a: a request with this id came before it"
    assert ("a", 60, reason) in recorder.heard
    finished = [event.request_id for event in recorder.events if event.kind is EventKind.FINISHED]
    assert sorted(finished) == ["a", "b"]


class ScriptedScheduler:
    """Hands out the plans it was given, then nothing; idle from the time on that is given, or never."""

    def __init__(self, plans: Sequence[StepPlan], num_until_idle: int | None = None) -> None:
        self._plans = list(plans)
        self._num_until_idle = num_until_idle
        self.told: list[tuple[str, int]] = []

    @property
    def is_idle(self) -> bool:
        commits = [verb for verb, _ in self.told if verb.startswith("commit")]
        return len(commits) == self._num_until_idle

    def check_is_new(self, request_id: str) -> None:
        pass

    def add(self, request: Request, now_ns: int) -> None:
        assert request.arrival_ns == now_ns
        self.told.append((f"add {request.id}", now_ns))

    def abort(self, request_id: str, now_ns: int) -> bool:
        self.told.append((f"abort {request_id}", now_ns))
        return True

    def schedule(self, now_ns: int) -> StepPlan | None:
        plan = self._plans.pop(0) if self._plans else None
        self.told.append((f"plan {plan.step_id}" if plan is not None else "no plan", now_ns))
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        self.told.append((f"commit {plan.step_id}", now_ns))
        return []


def script(
    world: World,
    plans: Sequence[StepPlan],
    source: Source,
    *,
    in_flight: int = 1,
    num_until_idle: int | None = None,
) -> list[tuple[str, int]]:
    """What a scheduler is told that plans as it was told to."""
    scheduler = ScriptedScheduler(plans, num_until_idle)
    with suppress(LawBroken):
        drive(Serving(cast(Scheduler, scheduler), world.backend()), source, world.clock(), in_flight)
    return scheduler.told


def plans_of_one(num_plans: int) -> list[StepPlan]:
    """Each computes a token of the request "a", which takes 101 ns."""
    return [make_plan([decode("a", 20 + step_id)], step_id=step_id) for step_id in range(num_plans)]


def test_scheduler_that_waits_is_asked_again_at_the_next_arrival_and_no_sooner(world: World) -> None:
    told = script(world, [], Listed([spec("a", 100), spec("b", 900)]))
    assert told == [("no plan", 0), ("add a", 100), ("no plan", 100), ("add b", 900), ("no plan", 900)]


def test_a_scheduler_that_gives_up_breaks_law_6(world: World) -> None:
    scheduler = cast(Scheduler, ScriptedScheduler([]))
    with pytest.raises(LawBroken, match="law 6: requests are outstanding at 900 ns, none will arrive"):
        drive(Serving(scheduler, world.backend()), Listed([spec("a", 900)]), world.clock())


def test_endless_plans_that_compute_nothing_break_law_6(world: World) -> None:
    scheduler = cast(Scheduler, ScriptedScheduler([make_plan()] * (MAX_EMPTY_STEPS + 1)))
    with pytest.raises(LawBroken, match=r"law 6: .* steps in a row computed no token"):
        drive(Serving(scheduler, world.backend()), Listed([spec("a", 0)]), world.clock())


def test_with_two_in_flight_a_step_is_planned_while_the_one_before_runs(world: World) -> None:
    source = Listed([spec("a", 0), spec("b", 150), spec("c", 202)], aborts_ns={"b": 170})
    assert script(world, plans_of_one(4), source, in_flight=2, num_until_idle=4) == [
        ("add a", 0),
        ("plan 0", 0),
        ("plan 1", 0),
        ("commit 0", 101),
        ("plan 2", 101),
        ("add b", 150),
        ("abort b", 170),
        ("commit 1", 202),
        ("add c", 202),
        ("plan 3", 202),
        ("commit 2", 303),
        ("no plan", 303),
        ("commit 3", 404),
        ("no plan", 404),
    ]


def test_three_in_flight(world: World) -> None:
    told = script(world, plans_of_one(4), Listed([spec("a", 0)]), in_flight=3, num_until_idle=4)
    verbs = [verb for verb, _ in told]
    assert verbs[1:7] == ["plan 0", "plan 1", "plan 2", "commit 0", "plan 3", "commit 1"]
    assert [at_ns for verb, at_ns in told if verb.startswith("commit")] == [101, 202, 303, 404]


def test_a_step_that_is_planned_when_none_runs_begins_then(world: World) -> None:
    """Its time is counted from there, not from the end of the step before."""

    class Waiting(ScriptedScheduler):
        def schedule(self, now_ns: int) -> StepPlan | None:
            has_planned = ("plan 0" if now_ns < 1000 else "plan 1") in dict(self.told)
            return None if has_planned else super().schedule(now_ns)

    scheduler = Waiting(plans_of_one(2), num_until_idle=2)
    serving = Serving(cast(Scheduler, scheduler), world.backend())
    end_ns = drive(serving, Listed([spec("a", 0), spec("b", 1000)]), world.clock(), in_flight=2)
    assert [at_ns for verb, at_ns in scheduler.told if verb.startswith("commit")] == [101, 1101]
    assert end_ns == 1101


def test_no_plan_in_flight_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="in_flight"):
        script(world, [], Listed([]), in_flight=0)


class TurnstileBroken(Exception):
    """An exception that cannot be rebuilt from its arguments, as SimPy would."""

    def __init__(self, request_id: str, now_ns: int) -> None:
        super().__init__(f"{request_id} at {now_ns}")


def test_exception_on_arrival_reaches_the_caller_as_it_is(world: World) -> None:
    class Turnstile(Recorder):
        def arrived(self, spec: RequestSpec, now_ns: int) -> None:
            raise TurnstileBroken(spec.request_id, now_ns)

    serving = Serving(cast(Scheduler, ScriptedScheduler([])), world.backend(), [Turnstile()])
    with pytest.raises(TurnstileBroken, match="a at 60"):
        drive(serving, Listed([spec("a", 60)]), world.clock())
