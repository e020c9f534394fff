"""The recorder beside an observer that does the same the slow way, over runs of the real scheduler."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from math import ceil

import numpy as np
import pytest

from engine.core.drive import drive
from engine.core.events import ENDINGS, Event, EventKind
from engine.core.plan import StepPlan, StepResult
from engine.core.policies.admission import FirstChunk
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute, Restore, Swap
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Observer, Serving
from engine.core.sources import Listed
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.work import Work
from engine.telemetry.memory import SHARES, memory_states
from engine.telemetry.metrics import summarize
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock

CAPACITY = Capacity(num_blocks=30, num_host_blocks=40, block_size=4)


class Cost:
    """Ten microseconds a step and for ten tokens begun: steps end at the moments when clients come and go."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"tokens": 10_000.0 * ceil(step.num_tokens / 10), "overhead": 10_000.0}

    def recompute_ns(self, num_tokens: int) -> int:
        return 1000 * num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return 1000 * num_blocks


class Naive:
    """Looks at every chunk and remembers every table."""

    def __init__(self) -> None:
        self.specs: dict[str, RequestSpec] = {}
        self.tokens_ns: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self.computed: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.tables: dict[tuple[str, int], int] = {}
        self.snapshots: list[dict[tuple[str, int], int]] = []
        self.rows: list[tuple[int, int, int]] = []

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        self.specs[spec.request_id] = spec

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        aborted = {event.request_id: event.time_ns for event in events if event.kind is EventKind.ABORTED}
        for request_id, time_ns in aborted.items():
            if time_ns <= start_ns:
                self._free(request_id)
        for preemption in plan.preemptions:
            self._free(preemption.request_id)
        for request_id, seq, first, block_ids in plan.updates:
            self.tables[request_id, seq] = first + len(block_ids)
        self.snapshots.append(dict(self.tables))
        num_prefill = num_recomputed = context = 0
        for request_id, start, num_tokens, seqs, samples in plan.chunks:
            is_prefill = num_tokens > 1
            for seq in seqs:
                num_recomputed += len(range(start, min(start + num_tokens, self.computed[request_id, seq])))
                num_prefill += num_tokens if is_prefill else 0
                context += 0 if is_prefill else start + 1
            for seq in range(self.specs[request_id].n):
                if seq in seqs or start < self.specs[request_id].num_prompt_tokens:
                    key = request_id, seq
                    self.computed[key] = max(self.computed[key], start + num_tokens)
            for seq in samples:
                if request_id not in aborted:
                    self.tokens_ns[request_id, seq].append(end_ns)
        self.rows.append((num_prefill, num_recomputed, context))
        for finish in result.finished:
            self.tables.pop((finish.request_id, finish.seq), None)
        for event in events:
            if event.kind in ENDINGS:
                self._free(event.request_id)

    def closed(self, now_ns: int) -> None:
        pass

    def _free(self, request_id: str) -> None:
        for seq in range(self.specs[request_id].n):
            self.tables.pop((request_id, seq), None)

    def unused(self, snapshot: dict[tuple[str, int], int]) -> int:
        return sum(max(0, 4 * blocks - self.computed[key]) for key, blocks in snapshot.items())


def run(
    restore: Restore,
    max_n: int,
    seed: int,
    share_aborted: float = 0.0,
    others: Sequence[Observer] = (),
) -> tuple[RunLog, Naive]:
    rng = random.Random(seed)
    specs = [
        RequestSpec(f"r{i:03}", i * 50_000, rng.randint(1, 40), 64, rng.randint(1, 30), rng.randint(1, max_n))
        for i in range(60)
    ]
    specs.append(RequestSpec("too-long", 70_000, 500, 64))
    policies = Policies(
        order=Fcfs(),
        admission=FirstChunk(),
        batching=DecodeFirst(),
        victim=LastAdmitted(),
        restore=restore,
        reservation=OnDemand(),
    )
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=24, max_model_len=90)
    aborts_ns = {
        spec.request_id: spec.arrival_ns + 10_000 * round(rng.expovariate(1e-2))
        for spec in specs
        if rng.random() < share_aborted
    }
    scheduler = Scheduler(CAPACITY, limits, policies)
    recorder, naive = Recorder(), Naive()
    serving = Serving(scheduler, SimulatedBackend(CAPACITY, Cost(), 90), [recorder, naive, *others])
    drive(serving, Listed(specs, aborts_ns), SimulatedClock())
    return RunLog.of(recorder, World.SIMULATED, CAPACITY), naive


@pytest.mark.parametrize("share_aborted", [0.0, 0.6])
@pytest.mark.parametrize("max_n", [1, 3])
@pytest.mark.parametrize("restore", [Swap(), Recompute()], ids=["swap", "recompute"])
def test_the_recorder_agrees_with_the_slow_way(restore: Restore, max_n: int, share_aborted: float) -> None:
    log, naive = run(restore, max_n, 1, share_aborted)
    aborted_ns = log.requests.loc[log.requests["status"] == "aborted", "end_ns"]
    assert len(aborted_ns) >= 20 * share_aborted
    assert log.requests["arrival_ns"].isin(log.steps["end_ns"]).any()
    assert aborted_ns.isin(log.steps["end_ns"]).any() == (share_aborted > 0)
    counts = log.steps[["num_prefill_tokens", "num_recomputed_tokens", "decode_context_tokens"]]
    assert [tuple(row) for row in counts.to_numpy().tolist()] == naive.rows
    for request in log.requests.to_dict("records"):
        slow = [naive.tokens_ns[request["request_id"], seq] for seq in range(request["n"])]
        assert request["token_times_ns"].tolist() == list(chain.from_iterable(slow))
        assert request["seq_num_output_tokens"].tolist() == [len(times) for times in slow]
    assert log.steps["num_table_blocks"].tolist() == [sum(tables.values()) for tables in naive.snapshots]
    assert log.steps["num_unused_slots"].tolist() == [naive.unused(tables) for tables in naive.snapshots]


@pytest.mark.parametrize("restore", [Swap(), Recompute()], ids=["swap", "recompute"])
def test_a_run_under_pressure_adds_up(restore: Restore) -> None:
    log, _ = run(restore, max_n=1, seed=2)
    summary = summarize(log)
    assert summary["completed"] == 60 and summary["num_rejected"] == 1
    assert summary["num_preemptions"] >= 10
    assert (
        summary["num_preemptions"]
        == (log.requests["num_swap_preemptions"] + log.requests["num_recompute_preemptions"]).sum()
    )
    assert summary["num_recomputed_tokens"] == log.requests["num_recomputed_tokens"].sum()
    # Nothing is aborted, so all that is lost is computed again, and all that is swapped out comes back.
    assert summary["num_recomputed_tokens"] == summary["num_lost_tokens"]
    assert summary["num_blocks_swapped_out"] == summary["num_blocks_swapped_in"]
    # Without sharing, block tables and the pool tell the same.
    assert (log.steps["num_table_blocks"] == CAPACITY.num_blocks - log.steps["num_free_blocks"]).all()
    assert summary["sharing_saving"] == pytest.approx(0, abs=1e-12)
    assert (log.requests["phases"].map(lambda phases: phases[-1]) == "ended").all()
    states = memory_states(log)
    np.testing.assert_allclose(states[list(SHARES)].sum(axis=1), 1)
    assert states["I"].max() > 0
    assert (
        log.steps["duration_ns"].sum() == log.steps[["part_tokens_ns", "part_overhead_ns"]].to_numpy().sum()
    )


def test_sharing_is_seen_and_memory_adds_up_with_several_sequences() -> None:
    log, _ = run(Recompute(), max_n=3, seed=3)
    memory_states(log)
    assert 0 < summarize(log)["sharing_saving"] < 1


def test_swaps_and_endings_are_in_the_log() -> None:
    log, _ = run(Swap(), max_n=1, seed=4)
    assert set(log.requests["status"]) == {EventKind.FINISHED.value, EventKind.REJECTED.value}
    assert log.steps["num_swap_preemptions"].sum() + log.steps["num_fallbacks"].sum() > 0
