"""Step times that carry a machine's drift or its noise."""

from __future__ import annotations

import numpy as np
import pytest

from engine.core.plan import StepPlan, StepResult, Transfer, TransferKind
from engine.core.spec import Capacity, RequestSpec
from engine.core.work import Work
from sim.backend import SimulatedBackend
from sim.cost.kinds import kind
from sim.pace import Followed, Pace, Rerun, steady
from tests.sim.plans import decode, make_plan, prefill

DECODE = Work(2, 2, 0, 2, 40, 0, 0, 0, 0, 0, 0)
PREFILL = Work(8, 1, 1, 1, 0, 8, 36, 0, 0, 0, 0)
MIXED = Work(9, 2, 1, 2, 20, 8, 36, 0, 0, 0, 0)
MOVING = DECODE._replace(num_blocks_swapped_in=3, num_transfers=1)


class PerToken:
    def parts_ns(self, step: Work) -> dict[str, float]:
        return {"linear": 1000.0 * step.num_tokens, "transfers": 500.0 * step.num_blocks_swapped_out}

    def recompute_ns(self, num_tokens: int) -> int:
        return num_tokens

    def transfer_ns(self, num_blocks: int) -> int:
        return num_blocks


def test_kinds() -> None:
    assert [kind(step) for step in (DECODE, PREFILL, MIXED, MOVING)] == [
        "decode", "prefill", "mixed", "transfer",
    ]  # fmt: skip


def run(pace: Pace | None, *plans: StepPlan) -> list[StepResult]:
    backend = SimulatedBackend(Capacity(64, 8, 16), PerToken(), 64, pace)
    backend.add(RequestSpec("a", 0, 6, 40, 40))
    return [backend.collect(backend.submit(plan)) for plan in plans]


def test_a_steady_pace_scales_every_part_of_every_step() -> None:
    out = Transfer(TransferKind.SWAP_OUT, "a", (1, 2), (1, 2))
    plans = (make_plan([prefill("a", 6)]), make_plan([decode("a", 6)], [out]))
    slow = run(steady(1.5), *plans)
    assert [result.duration_ns for result in run(None, *plans)] == [6000, 2000]
    assert [result.duration_ns for result in slow] == [9000, 3000]
    assert slow[1].transfer_ns == 1500
    assert sum(slow[1].parts_ns.values()) == pytest.approx(3000)


def test_residuals_are_replayed_in_order_kind_by_kind_and_go_round() -> None:
    ratios = {"decode": [1.0, 1.1, 1.2, 1.3], "prefill": [2.0]}
    rerun = Rerun(ratios, np.random.default_rng(3))
    decodes = [rerun(DECODE) for _ in range(9)]
    start = ratios["decode"].index(decodes[0])
    assert decodes == [ratios["decode"][(start + i) % 4] for i in range(9)]
    assert [rerun(PREFILL), rerun(PREFILL)] == [2.0, 2.0]
    assert rerun(MIXED) == 1.0, "a kind that was not measured"


def test_members_of_an_ensemble_start_at_different_places() -> None:
    ratios = {"decode": [float(i) for i in range(100)]}
    starts = {Rerun(ratios, np.random.default_rng(seed))(DECODE) for seed in range(20)}
    assert len(starts) > 10


def test_a_measured_speed_is_followed_by_the_work_that_was_done() -> None:
    """Steps of 2 and 8 us: at half the speed for the first 10 us of work, then as priced, then twice it."""
    steps = [DECODE, PREFILL, PREFILL, DECODE, PREFILL]
    followed = Followed(steps, [4000, 16000, 8000, 2000, 4000], PerToken(), 10_000)
    assert [followed(step) for step in steps] == [2.0, 2.0, 1.0, 1.0, 0.5]
    assert followed(DECODE) == 0.5, "beyond the end: as at the end"
    other = Followed(steps, [4000, 16000, 8000, 2000, 4000], PerToken(), 10_000)
    assert [other(DECODE) for _ in range(11)] == [2.0] * 5 + [1.0] * 5 + [0.5]


def test_a_stretch_without_a_beginning_has_the_speed_of_the_whole_run() -> None:
    followed = Followed([PREFILL, PREFILL], [16000, 24000], PerToken(), 5_000)
    assert [followed(DECODE) for _ in range(5)] == [2.0, 2.0, 2.0, 3.0, 3.0]
    gap = Followed([PREFILL, PREFILL], [16000, 24000], PerToken(), 4_000)
    assert [gap(PREFILL), gap(PREFILL)] == [2.0, 3.0]
    assert [Followed([PREFILL, PREFILL], [16000, 24000], PerToken(), 4_000)(DECODE)] == [2.0]
