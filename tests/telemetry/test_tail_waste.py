"""Waste in the last block of a sequence: about (B - 1) / 2 slots, where blocks are taken on demand."""

from __future__ import annotations

import random

import pytest

from engine.core.drive import drive
from engine.core.policies.admission import FirstChunk
from engine.core.policies.base import Policies
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute, Swap
from engine.core.policies.victim import LastAdmitted
from engine.core.scheduler import Scheduler
from engine.core.serving import Serving
from engine.core.sources import Listed
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.core.work import Work
from engine.telemetry.metrics import summarize
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from sim.backend import SimulatedBackend
from sim.clock import SimulatedClock

BLOCK_SIZE = 16


class Cost:
    """A millisecond a step and 20 us a token: a prefill is many times as long as a decode."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"all": 1e6 + 2e4 * step.num_tokens}

    def recompute_ns(self, num_tokens: int) -> int:
        return 20_000 * num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return 100_000 * num_blocks


def summary(restore: Recompute | Swap, num_blocks: int, max_num_batched_tokens: int) -> dict[str, float]:
    rng = random.Random("tail waste")
    specs = [
        RequestSpec(f"r{i:03}", 20_000_000 * i, rng.randint(1, 600), 200, rng.randint(1, 200))
        for i in range(300)
    ]
    capacity = Capacity(num_blocks, num_blocks, BLOCK_SIZE)
    limits = Limits(max_num_seqs=64, max_num_batched_tokens=max_num_batched_tokens, max_model_len=900)
    policies = Policies(Fcfs(), FirstChunk(), DecodeFirst(), LastAdmitted(), restore, OnDemand())
    recorder = Recorder()
    backend = SimulatedBackend(capacity, Cost(), limits.max_model_len)
    drive(
        Serving(Scheduler(capacity, limits, policies), backend, [recorder]), Listed(specs), SimulatedClock()
    )
    return summarize(RunLog.of(recorder, World.SIMULATED, capacity))


@pytest.mark.parametrize(
    ("restore", "num_blocks", "max_num_batched_tokens"),
    [(Recompute(), 4000, 2048), (Recompute(), 300, 2048), (Swap(), 300, 512)],
    ids=["roomy", "recompute", "swap, chunks"],
)
def test_tail_waste_is_half_a_block_a_sequence(
    restore: Recompute | Swap, num_blocks: int, max_num_batched_tokens: int
) -> None:
    metrics = summary(restore, num_blocks, max_num_batched_tokens)
    assert (metrics["num_preemptions"] > 0) == (num_blocks < 4000)
    assert metrics["mean_tail_waste_tokens"] == pytest.approx((BLOCK_SIZE - 1) / 2, rel=0.03)
    assert metrics["mean_written_share"] > metrics["mean_tail_waste_share"]  # or this would show nothing
