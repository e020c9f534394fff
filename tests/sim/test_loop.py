from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import pytest

from engine.core.events import Event, EventKind
from engine.core.laws import LawBroken
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Swap
from engine.core.policies.victim import LastAdmitted
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.work import Work
from sim.backend import SimulatedBackend
from sim.loop import MAX_EMPTY_STEPS, NO_ABORTS, simulate
from tests.sim.plans import make_plan


class UnitCost:
    """100 ns a step and 1 ns a token."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"overhead": 100.0, "linear": float(step.num_tokens), "transfers": 10.0 * step.num_transfers}

    def recompute_ns(self, num_tokens: int) -> int:
        return num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return 10


class Step(NamedTuple):
    start_ns: int
    end_ns: int
    request_ids: tuple[str, ...]


class Recorder:
    """Everything that an observer hears, in the order in which it hears it."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.events: list[Event] = []

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        self.heard.append((spec.request_id, now_ns))

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        self.heard.append((spec.request_id, now_ns, reason))

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        self.heard.append(Step(start_ns, end_ns, tuple(chunk.request_id for chunk in plan.chunks)))
        self.events.extend(events)

    def closed(self, now_ns: int) -> None:
        assert now_ns == max(step.end_ns for step in self.heard if isinstance(step, Step))


def serve(
    specs: Sequence[RequestSpec],
    num_blocks: int = 64,
    num_host_blocks: int = 64,
    aborts_ns: Mapping[str, int] = NO_ABORTS,
) -> tuple[int, Recorder]:
    capacity = Capacity(num_blocks, num_host_blocks, block_size=4)
    policies = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Swap(), OnDemand())
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=200)
    recorder = Recorder()
    backend = SimulatedBackend(capacity, UnitCost(), limits.max_model_len)
    serving = Serving(Scheduler(capacity, limits, policies), backend, [recorder])
    return simulate(serving, specs, aborts_ns=aborts_ns), recorder


def spec(request_id: str, arrival_ns: int, num_prompt: int = 10, num_output: int = 2) -> RequestSpec:
    return RequestSpec(request_id, arrival_ns, num_prompt, max_tokens=100, num_output_tokens=num_output)


def test_no_requests_take_no_time() -> None:
    assert serve([])[0] == 0


def test_one_request_and_an_idle_gap() -> None:
    end_ns, recorder = serve([spec("b", 5000), spec("a", 7)])
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


def test_arrival_during_a_step_is_noted_when_it_happens_and_waits_for_the_next_step() -> None:
    _, recorder = serve([spec("a", 0), spec("b", 60)])
    assert recorder.heard[:4] == [("a", 0), ("b", 60), Step(0, 110, ("a",)), Step(110, 221, ("a", "b"))]


@pytest.mark.parametrize("earlier_ns", [[], [50], [109]])
def test_arrival_at_the_start_of_a_step_is_in_it(earlier_ns: list[int]) -> None:
    """Step 0 ends at 110. Whether SimPy handles that end or the arrival first depends on what came before."""
    others = [spec(f"x{at_ns}", at_ns, num_prompt=1) for at_ns in earlier_ns]
    _, recorder = serve([spec("a", 0), *others, spec("b", 110)])
    second = [heard for heard in recorder.heard if isinstance(heard, Step)][1]
    assert second.start_ns == 110
    assert "b" in second.request_ids
    assert ("b", 110) in recorder.heard


def test_simultaneous_arrivals_enter_in_order_of_their_ids() -> None:
    _, recorder = serve([spec("c", 5), spec("a", 5), spec("b", 5)])
    assert recorder.heard[:3] == [("a", 5), ("b", 5), ("c", 5)]
    assert recorder.heard[3] == Step(5, 135, ("a", "b", "c"))


@pytest.mark.parametrize("earlier_ns", [[], [50], [109]])
def test_an_abort_at_the_end_of_a_step_comes_after_its_tokens_and_before_the_next_plan(
    earlier_ns: list[int],
) -> None:
    """Step 0 ends at 110, whatever SimPy has to do before."""
    others = [spec(f"x{at_ns}", at_ns, num_prompt=1) for at_ns in earlier_ns]
    _, recorder = serve([spec("a", 0), *others], aborts_ns={"a": 110})
    turns = [(event.kind, event.time_ns) for event in recorder.events if event.request_id == "a"]
    assert turns[-2:] == [(EventKind.FIRST_TOKEN, 110), (EventKind.ABORTED, 110)]
    assert ["a" in step.request_ids for step in recorder.heard if isinstance(step, Step)][:2] == [True, False]


def test_an_abort_takes_effect_at_once_and_the_step_runs_on() -> None:
    _, recorder = serve([spec("a", 0), spec("b", 0)], aborts_ns={"a": 60})
    assert [step for step in recorder.heard if isinstance(step, Step)] == [
        Step(0, 120, ("a", "b")),
        Step(120, 221, ("b",)),
    ]
    assert [event for event in recorder.events if event.request_id == "a"][-1].time_ns == 60


def test_who_has_not_come_or_has_gone_cannot_be_aborted() -> None:
    end_ns, recorder = serve([spec("a", 10)], aborts_ns={"a": 9, "nobody": 50})
    assert (end_ns, recorder.events[-1].kind) == (221, EventKind.FINISHED)
    assert serve([spec("a", 10)], aborts_ns={"a": 9_999})[0] == 221


def test_who_is_aborted_at_arrival_computes_nothing() -> None:
    _, recorder = serve([spec("a", 10)], aborts_ns={"a": 10})
    assert recorder.heard == [("a", 10), Step(10, 10, ())]


def test_rejected_request_leaves_and_the_others_run_on() -> None:
    end_ns, recorder = serve([spec("long", 0, num_prompt=250), spec("a", 0)])
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


def test_every_request_ends_once_under_memory_pressure() -> None:
    specs = random_workload()
    _, recorder = serve(specs, num_blocks=20)
    finished = sorted(event.request_id for event in recorder.events if event.kind == EventKind.FINISHED)
    assert finished == sorted(spec.request_id for spec in specs)
    assert any(event.kind == EventKind.PREEMPTED for event in recorder.events)


def test_same_workload_in_another_order_gives_the_same_run() -> None:
    first_ns, first = serve(random_workload(), num_blocks=20)
    second_ns, second = serve(random_workload()[::-1], num_blocks=20)
    assert (first_ns, first.heard, first.events) == (second_ns, second.heard, second.events)


class ScriptedScheduler:
    """Hands out the plans it was given, then nothing, and never becomes idle."""

    def __init__(self, plans: Sequence[StepPlan]) -> None:
        self._plans = list(plans)
        self.is_idle = False
        self.asked_at_ns: list[int] = []

    def check_is_new(self, request_id: str) -> None:
        pass

    def add(self, request: Request, now_ns: int) -> None:
        assert request.arrival_ns == now_ns

    def schedule(self, now_ns: int) -> StepPlan | None:
        self.asked_at_ns.append(now_ns)
        return self._plans.pop(0) if self._plans else None

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        return []


def script(plans: Sequence[StepPlan], specs: Sequence[RequestSpec]) -> ScriptedScheduler:
    scheduler = ScriptedScheduler(plans)
    backend = SimulatedBackend(Capacity(8, 8, 4), UnitCost(), 100)
    simulate(Serving(cast(Scheduler, scheduler), backend), specs)
    return scheduler


def test_scheduler_that_waits_is_asked_again_at_the_next_arrival_and_no_sooner() -> None:
    scheduler = ScriptedScheduler([])
    backend = SimulatedBackend(Capacity(8, 8, 4), UnitCost(), 100)
    with pytest.raises(LawBroken, match="law 6: requests are outstanding at 900 ns, none will arrive"):
        simulate(Serving(cast(Scheduler, scheduler), backend), [spec("a", 100), spec("b", 900)])
    assert sorted(set(scheduler.asked_at_ns)) == [0, 100, 900]


def test_endless_plans_that_compute_nothing_break_law_6() -> None:
    with pytest.raises(LawBroken, match=r"law 6: .* steps in a row computed no token"):
        script([make_plan()] * (MAX_EMPTY_STEPS + 1), [spec("a", 0)])


def test_a_duplicate_request_is_refused_and_the_others_go_on() -> None:
    _, recorder = serve([spec("a", 0), spec("a", 60), spec("b", 60)])
    reason = "request a: a request with this id came before it"
    assert ("a", 60, reason) in recorder.heard
    finished = [event.request_id for event in recorder.events if event.kind is EventKind.FINISHED]
    assert sorted(finished) == ["a", "b"]


class TurnstileBroken(Exception):
    """An exception that cannot be rebuilt from its arguments, as SimPy would."""

    def __init__(self, request_id: str, now_ns: int) -> None:
        super().__init__(f"{request_id} at {now_ns}")


def test_exception_on_arrival_reaches_the_caller_as_it_is() -> None:
    class Turnstile(Recorder):
        def arrived(self, spec: RequestSpec, now_ns: int) -> None:
            if now_ns:
                raise TurnstileBroken(spec.request_id, now_ns)

    scheduler = ScriptedScheduler([])
    backend = SimulatedBackend(Capacity(8, 8, 4), UnitCost(), 100)
    with pytest.raises(TurnstileBroken, match="a at 60"):
        simulate(Serving(cast(Scheduler, scheduler), backend, [Turnstile()]), [spec("a", 60)])
