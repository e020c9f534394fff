"""Law 10: a run that leaps over quiet stretches logs what it logs step by step."""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import replace

import pytest
from pandas.testing import assert_frame_equal

from engine.core.journal import JournaledScheduler, replay
from engine.core.policies.admission import FirstChunk, FullPrompt, Watermark
from engine.core.policies.base import Policies
from engine.core.policies.batching import ArrivalFirstChunked, DecodeFirst, PrefillFirst, Static
from engine.core.policies.order import Fcfs, Priority
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Recompute, Swap
from engine.core.policies.victim import LastAdmitted, LowestPriority
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.spec import Capacity, Limits, RequestSpec
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


class RoundCost(UnevenCost):
    """Microseconds only, so that steps end at the moments at which clients come and go."""

    def parts_ns(self, step: StepFeatures) -> dict[str, float]:
        return {"tokens": 1000.0 * step.num_tokens, "fixed": 1000.0}


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


def tied_workload(seed: int, max_n: int, spread_us: int) -> tuple[list[RequestSpec], dict[str, int]]:
    """Arrivals in groups and aborts of two requests in three, all in whole microseconds."""
    rng = random.Random(seed)
    moments_us = [rng.randrange(spread_us) for _ in range(30)]
    specs = [replace(spec, arrival_ns=1000 * rng.choice(moments_us)) for spec in workload(seed + 1000, max_n)]
    aborts_ns = {
        spec.request_id: max(0, spec.arrival_ns + 1000 * round(rng.expovariate(1 / 300)) - 2000)
        for spec in specs
        if rng.random() < 0.67
    }
    return specs, aborts_ns


def serve(
    policies: Policies,
    specs: list[RequestSpec],
    num_blocks: int,
    *,
    leaps: bool,
    cost: UnevenCost | None = None,
    aborts_ns: dict[str, int] | None = None,
):
    capacity, journal = Capacity(num_blocks, 40, 4), io.StringIO()
    backend, recorder = CountingBackend(capacity, cost or UnevenCost(), 200), Recorder(4)
    limits = LIMITS if policies.batching.splits_prompts else WHOLE_PROMPTS
    scheduler = JournaledScheduler(capacity, limits, policies, journal)
    serving = Serving(scheduler, backend, [recorder])
    end_ns = simulate(serving, specs, aborts_ns=aborts_ns or {}, leaps=leaps)
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


def circumstances(log: RunLog) -> Counter[str]:
    """How often clients came and went at which moments, and whence those went."""
    starts, ends = set(log.steps["start_ns"]), set(log.steps["end_ns"])
    arrivals = Counter(log.requests["arrival_ns"])
    tally = Counter(
        {
            "simultaneous arrivals": sum(count - 1 for count in arrivals.values()),
            "arrivals at the end of a step": sum(time_ns in ends for time_ns in arrivals),
        }
    )
    for request in log.requests[log.requests["status"] == "aborted"].to_dict("records"):
        end_ns = request["end_ns"]
        tally[f"aborted {request['phases'][-2]}"] += 1
        tally["aborted at the end of a step" if end_ns in ends else "aborted in flight"] += 1
        tally["aborted between steps"] += end_ns in starts
    return tally


SPREADS_US = {64: 6000, 1000: 12_000}
"""So that requests queue and are preempted, or that the engine is idle now and then."""


@pytest.mark.parametrize("max_n", [1, 3])
@pytest.mark.parametrize("num_blocks", SPREADS_US)
@pytest.mark.parametrize("name", POLICIES)
def test_a_leap_equals_steps_with_ties_and_aborts(name: str, num_blocks: int, max_n: int) -> None:
    tally: Counter[str] = Counter()
    for seed in range(4):
        specs, aborts_ns = tied_workload(seed, max_n, SPREADS_US[num_blocks])
        (end_ns, steps, _), (leapt_end_ns, leapt, num_leapt) = (
            serve(POLICIES[name], specs, num_blocks, leaps=leaps, cost=RoundCost(), aborts_ns=aborts_ns)
            for leaps in (False, True)
        )
        assert leapt_end_ns == end_ns
        assert_frame_equal(leapt.steps, steps.steps, check_exact=True)
        assert_frame_equal(leapt.requests, steps.requests, check_exact=True)
        tally += circumstances(steps) + Counter({"leapt": num_leapt})
    expected = {"simultaneous arrivals", "arrivals at the end of a step", "leapt", "aborted running"}
    expected |= {f"aborted {when}" for when in ("in flight", "between steps", "at the end of a step")}
    if num_blocks < 1000:
        expected |= {"aborted waiting"} | ({"aborted swapped"} if name == "swap" else set())
    assert all(tally[what] for what in expected), tally


def test_a_policy_that_does_not_repeat_itself_is_not_leapt_over() -> None:
    policies = Policies(
        Fcfs(), FullPrompt(), DecodeFirst(repeats=False), LastAdmitted(), Recompute(), OnDemand()
    )
    assert serve(policies, workload(1, 1), 1000, leaps=True)[2] == 0


def test_a_leap_asked_of_a_scheduler_without_a_plan_is_one_step() -> None:
    capacity = Capacity(8, 0, 4)
    assert Scheduler(capacity, LIMITS, POLICIES["v1"]).max_repeats() == 1
