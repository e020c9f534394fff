"""The periods of steps: each pays for its own bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.drive import drive
from engine.core.events import Event
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.admission import FullPrompt
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Flight, Serving
from engine.core.sources import Listed
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.work import Work
from experiments.samples import StepSamples
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock

POLICIES = Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand())
LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=200)
CAPACITY = Capacity(64, 0, 4)


class ContextCost:
    """100 ns a step and 1 ns for each position that a decode reads."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"all": 100.0 + step.decode_context_tokens}

    def recompute_ns(self, num_tokens: int) -> int:
        return num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return num_blocks


class FakeClock:
    """Stands still but for what work and waiting add."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        return self.time_ns

    def wait_until(self, time_ns: int) -> None:
        self.time_ns = max(self.time_ns, time_ns)

    def end_ns(self, flight: Flight, result: StepResult) -> int:
        return self.time_ns


class Engine(SimulatedBackend):
    """Takes as long on the fake clock as the cost model says."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(CAPACITY, ContextCost(), LIMITS.max_model_len)
        self._clock = clock

    def collect(self, ticket: object) -> StepResult:
        result = super().collect(ticket)
        self._clock.time_ns += result.duration_ns
        return result


class Clerk:
    """An observer that takes 1 us for each token of a step that it writes down."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.steps: list[tuple[int, int]] = []
        self.closed_ns: list[int] = []

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        pass

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        assert end_ns == start_ns + result.duration_ns == self._clock.time_ns
        self._clock.time_ns += 1000 * plan.num_tokens
        self.steps.append((start_ns, end_ns))

    def closed(self, now_ns: int) -> None:
        self.closed_ns.append(now_ns)


def spec(request_id: str, arrival_ns: int) -> RequestSpec:
    return RequestSpec(request_id, arrival_ns, 20, max_tokens=9, num_output_tokens=3)


def test_a_period_holds_the_bookkeeping_of_its_own_step_and_no_idle_time() -> None:
    clock = FakeClock()
    samples, clerk = StepSamples(), Clerk(clock)
    serving = Serving(Scheduler(CAPACITY, LIMITS, POLICIES), Engine(clock), [samples, clerk])
    end_ns = drive(serving, Listed([spec("a", 0), spec("b", 100_000)]), clock)
    assert [step.num_tokens for step in samples.steps] == [20, 1, 1] * 2
    assert samples.periods_ns == [100 + 20_000, 121 + 1000, 122 + 1000] * 2
    # Tokens are dated by the commit, before the observers work.
    assert [end - start for start, end in clerk.steps] == [100, 121, 122] * 2
    assert [start for start, _ in clerk.steps] == [0, 20_100, 21_221, 100_000, 120_100, 121_221]
    assert clerk.closed_ns == [20_100, 21_221, 22_343, 120_100, 121_221, 122_343]
    assert end_ns == clerk.steps[-1][1] == 121_343


def test_who_arrives_while_observers_work_is_in_the_next_step() -> None:
    clock = FakeClock()
    samples = StepSamples()
    serving = Serving(Scheduler(CAPACITY, LIMITS, POLICIES), Engine(clock), [samples, Clerk(clock)])
    drive(serving, Listed([spec("a", 0), spec("b", 20_100), spec("c", 20_101)]), clock)
    assert [step.num_tokens for step in samples.steps] == [20, 21, 22, 2, 1]


def test_a_simulated_period_is_the_duration() -> None:
    samples = StepSamples()
    backend = SimulatedBackend(CAPACITY, ContextCost(), LIMITS.max_model_len)
    serving = Serving(Scheduler(CAPACITY, LIMITS, POLICIES), backend, [samples])
    drive(serving, Listed([spec("a", 0), spec("b", 100_000)]), SimulatedClock())
    assert samples.periods_ns == [100, 121, 122] * 2
