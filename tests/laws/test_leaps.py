"""Law 10: a run that leaps over quiet stretches logs what it logs step by step."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from pandas.testing import assert_frame_equal

from engine.core.backend import Capacity, RequestSpec
from engine.core.journal import JournaledScheduler, replay
from engine.core.policies.admission import FirstChunk, FullPrompt, Watermark
from engine.core.policies.base import Limits, Policies
from engine.core.policies.batching import ArrivalFirstChunked, DecodeFirst, PrefillFirst, Static
from engine.core.policies.order import Fcfs, Priority
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Recompute, Swap
from engine.core.policies.victim import LastAdmitted, LowestPriority
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from sim.backend import SimulatedBackend
from sim.cost.base import StepFeatures
from sim.loop import simulate

LIMITS = Limits(max_num_seqs=12, max_num_batched_tokens=64, max_model_len=200)
WHOLE_PROMPTS = replace(LIMITS, max_num_batched_tokens=200)
POLICIES = {
    "v1": Policies(Fcfs(), FullPrompt(), DecodeFirst(), LastAdmitted(), Recompute(), OnDemand()),
    "swap": Policies(Fcfs(), FirstChunk(), DecodeFirst(), LastAdmitted(), Swap(), OnDemand()),
    "v0": Policies(
        Fcfs(("running", "swapped")), Watermark(0.05), PrefillFirst(), LastAdmitted(), Swap(), WholePrompt()
    ),
    "v0 chunked": Policies(
        Fcfs(("running", "swapped")),
        Watermark(),
        ArrivalFirstChunked(),
        LastAdmitted(),
        Recompute(),
        WholePrompt(),
    ),
    "static": Policies(Priority(), FullPrompt(), Static(), LowestPriority(), Swap(), OnDemand()),
}


class UnevenCost:
    """Durations that are no round numbers, so that a sum in another order would show."""

    def parts_ns(self, step: StepFeatures) -> dict[str, float]:
        return {
            "tokens": 1000.3 * step.num_tokens,
            "context": 7.7 * step.decode_context_tokens,
            "fixed": 900.1,
        }

    def recompute_ns(self, num_tokens: int) -> int:
        return num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return num_blocks


class CountingBackend(SimulatedBackend):
    """Notes how many steps were taken in leaps."""

    num_leapt = 0

    def collect(self, ticket):
        result = super().collect(ticket)
        self.num_leapt += len(result.earlier)
        return result


def workload(seed: int, max_n: int) -> list[RequestSpec]:
    rng = random.Random(seed)
    arrivals = sorted(rng.randrange(6_000_000) for _ in range(60))
    return [
        RequestSpec(
            f"r{index:03}",
            arrival_ns,
            rng.randint(1, 60),
            200,
            rng.randint(1, 90),
            n=rng.randint(1, max_n),
            priority=rng.randrange(3),
        )
        for index, arrival_ns in enumerate(arrivals)
    ]


def serve(policies: Policies, specs: list[RequestSpec], num_blocks: int, *, leaps: bool):
    capacity, journal = Capacity(num_blocks, 40, 4), io.StringIO()
    backend, recorder = CountingBackend(capacity, UnevenCost(), 200), Recorder(4)
    limits = LIMITS if policies.batching.splits_prompts else WHOLE_PROMPTS
    scheduler = JournaledScheduler(capacity, limits, policies, journal)
    end_ns = simulate(Serving(scheduler, backend, [recorder]), specs, leaps=leaps)
    assert replay(journal.getvalue().splitlines(), policies) is None
    return end_ns, RunLog.of(recorder, World.SIMULATED, capacity), backend.num_leapt


@pytest.mark.parametrize("max_n", [1, 3])
@pytest.mark.parametrize("num_blocks", [120, 1000])
@pytest.mark.parametrize("name", POLICIES)
def test_a_leap_equals_steps(name: str, num_blocks: int, max_n: int) -> None:
    for seed in range(4):
        specs = workload(seed, max_n)
        end_ns, steps, num_leapt = serve(POLICIES[name], specs, num_blocks, leaps=False)
        assert num_leapt == 0
        leapt_end_ns, leapt, num_leapt = serve(POLICIES[name], specs, num_blocks, leaps=True)
        assert num_leapt > 10
        assert leapt_end_ns == end_ns
        assert_frame_equal(leapt.steps, steps.steps, check_exact=True)
        assert_frame_equal(leapt.requests, steps.requests, check_exact=True)


def test_a_policy_that_does_not_repeat_itself_is_not_leapt_over() -> None:
    policies = Policies(
        Fcfs(), FullPrompt(), DecodeFirst(repeats=False), LastAdmitted(), Recompute(), OnDemand()
    )
    assert serve(policies, workload(1, 1), 1000, leaps=True)[2] == 0


def test_a_leap_asked_of_a_scheduler_without_a_plan_is_one_step() -> None:
    capacity = Capacity(8, 0, 4)
    assert Scheduler(capacity, LIMITS, POLICIES["v1"]).max_repeats() == 1
