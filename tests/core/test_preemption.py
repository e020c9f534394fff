"""Who must go, how, and what it costs; that nobody notices is for the memory of the trial to say."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.events import EventKind
from engine.core.plan import Preemption, PreemptionKind, Recomputed, TransferKind
from engine.core.policies.order import NS_PER_S, Priority
from engine.core.policies.restore import Recompute, Swap, SwapIfSeveral
from engine.core.policies.victim import LowestPriority
from engine.core.spec import Limits
from experiments.trial import Trial
from tests.core.build import drain, kinds, on_trial, spec


def two_in_a_pool_for_one(**choices: Any) -> Trial:
    trial = on_trial(**{"num_blocks": 3, "num_host_blocks": 3, **choices})
    trial.arrive(spec("first", 4, max_tokens=6))
    trial.arrive(spec("second", 4, max_tokens=6))
    return trial


def preemptions(trial: Trial) -> tuple[list[Preemption], list[Any]]:
    plans, events = drain(trial)
    for name in ("first", "second"):
        assert kinds(events, name)[-1] is EventKind.FINISHED
    return [preemption for plan in plans for preemption in plan.preemptions], events


def test_swap() -> None:
    trial = two_in_a_pool_for_one(restore=Swap())
    found, events = preemptions(trial)
    assert found[0] == Preemption("second", PreemptionKind.SWAP, 4, fell_back=False)
    assert kinds(events, "second") == [
        EventKind.ADDED,
        EventKind.SCHEDULED,
        EventKind.FIRST_TOKEN,
        EventKind.PREEMPTED,
        EventKind.RESUMED,
        EventKind.FINISHED,
    ]
    report = trial.report()
    assert report["blocks swap_out"] == report["blocks swap_in"] == 1
    assert report["tokens"] == 2 * (4 + 5), "nothing was computed twice"


def test_recompute() -> None:
    trial = two_in_a_pool_for_one(restore=Recompute())
    found, events = preemptions(trial)
    assert found[0] == Preemption("second", PreemptionKind.RECOMPUTE, 4, fell_back=False)
    assert kinds(events, "second").count(EventKind.FIRST_TOKEN) == 1
    report = trial.report()
    assert report["blocks swap_out"] == 0
    assert report["tokens"] == 2 * (4 + 5) + sum(preemption.num_tokens for preemption in found)


def test_a_plan_tells_what_is_computed_again() -> None:
    """In pieces of 3 tokens; what the first life had not reached is new."""
    limits = Limits(max_num_seqs=2, max_num_batched_tokens=3, max_model_len=20)
    plans, _ = drain(two_in_a_pool_for_one(limits=limits))
    lost = [preemption.num_tokens for plan in plans for preemption in plan.preemptions]
    again = [again for plan in plans for again in plan.recomputed]
    assert lost == [4]
    assert again == [Recomputed("second", 3), Recomputed("second", 1)]


def test_a_full_host_pool_falls_back_to_recomputation() -> None:
    trial = two_in_a_pool_for_one(restore=Swap(), num_host_blocks=0)
    found, _ = preemptions(trial)
    assert found[0] == Preemption("second", PreemptionKind.RECOMPUTE, 4, fell_back=True)


def test_a_host_pool_that_is_nearly_full_takes_whom_it_can() -> None:
    """Two are preempted, one block each, and the host has room for one."""
    trial = on_trial(num_blocks=4, num_host_blocks=1, restore=Swap())
    for name in "abc":
        trial.arrive(spec(name, 4, max_tokens=9))
    plans, _ = drain(trial)
    found = [preemption for plan in plans for preemption in plan.preemptions]
    assert {preemption.kind for preemption in found} == {PreemptionKind.SWAP, PreemptionKind.RECOMPUTE}
    for preemption in found:
        assert preemption.fell_back == (preemption.kind is PreemptionKind.RECOMPUTE)


def test_swap_if_several_asks_how_many_are_alive() -> None:
    trial = on_trial(num_blocks=6, num_host_blocks=6, restore=SwapIfSeveral())
    trial.arrive(spec("long", 4, max_tokens=16))
    trial.arrive(spec("single", 4, max_tokens=8))
    trial.arrive(spec("double", 4, max_tokens=8, n=2))
    plans, _ = drain(trial)
    kinds_of = {
        name: {p.kind for plan in plans for p in plan.preemptions if p.request_id == name}
        for name in ("single", "double")
    }
    assert kinds_of["double"] == {PreemptionKind.SWAP}
    assert kinds_of["single"] <= {PreemptionKind.RECOMPUTE}


def test_the_lowest_priority_goes_even_if_it_came_first() -> None:
    trial = on_trial(num_blocks=3, order=Priority(), victim=LowestPriority())
    trial.arrive(spec("cheap", 4, max_tokens=6, priority=1))
    trial.arrive(spec("dear", 4, max_tokens=6, priority=0))
    plans, _ = drain(trial)
    found = [preemption.request_id for plan in plans for preemption in plan.preemptions]
    assert set(found) == {"cheap"}


def test_who_has_aged_to_the_head_is_not_the_first_to_go() -> None:
    """Waiting for 2 s at one level a second is worth more than the one level that it lacks."""
    trial = on_trial(num_blocks=5, order=Priority(ageing_per_s=1.0), victim=LowestPriority())
    trial.now_ns = 2 * NS_PER_S
    trial.arrive(spec("dear", 4, max_tokens=9, priority=0, arrival_ns=2 * NS_PER_S))
    trial.arrive(spec("aged", 4, max_tokens=9, priority=1))
    trial.arrive(spec("late", 4, max_tokens=9, priority=0, arrival_ns=2 * NS_PER_S))
    plans, events = drain(trial)
    assert plans[0].admitted == ("aged", "dear", "late")
    found = [preemption.request_id for plan in plans for preemption in plan.preemptions]
    assert found, "there is room for one and a half"
    assert "aged" not in found
    assert next(event.request_id for event in events if event.kind is EventKind.FINISHED) == "aged"


def test_a_victim_gives_back_the_budget_of_its_chunk() -> None:
    """A request later in the queue preempts one that already has its chunk in this step."""
    trial = on_trial(num_blocks=3, limits=Limits(2, 2, 64), victim=LowestPriority())
    trial.arrive(spec("cheap", 3, max_tokens=6, priority=1))
    trial.arrive(spec("dear", 4, max_tokens=6, priority=0))
    plans, _ = drain(trial)
    (plan, *_) = [plan for plan in plans if plan.preemptions and plan.chunks]
    assert [chunk.request_id for chunk in plan.chunks] == ["dear"]
    assert plan.num_tokens == 1


@pytest.mark.parametrize("restore", [Swap(), Recompute()])
@pytest.mark.parametrize("max_num_batched_tokens", [4, 5, 64])
def test_a_forked_request_comes_back_trunk_first(restore: Any, max_num_batched_tokens: int) -> None:
    """Recomputed, it computes its prompt once and then each branch; swapped, shared blocks stay shared."""
    limits = Limits(4, max_num_batched_tokens, 64)
    trial = on_trial(num_blocks=7, num_host_blocks=7, limits=limits, restore=restore)
    trial.arrive(spec("first", 4, max_tokens=14))
    trial.arrive(spec("forks", 6, max_tokens=7, n=2))
    plans, events = drain(trial)
    (index, *_) = [i for i, plan in enumerate(plans) if plan.preemptions]
    (victim,) = plans[index].preemptions
    assert victim.request_id == "forks"
    assert kinds(events, "forks")[-1] is EventKind.FINISHED
    later = [chunk for plan in plans[index + 1 :] for chunk in plan.chunks if chunk.request_id == "forks"]
    transfers = [t for plan in plans[index:] for t in plan.transfers if t.kind is TransferKind.SWAP_OUT]
    if isinstance(restore, Swap):
        assert later[0].start >= 6, "nothing is computed again"
        assert len(transfers[0].src) == len(set(transfers[0].src))
        return
    num_branch_tokens = (victim.num_tokens - 6) // 2
    trunk = [chunk for chunk in later if chunk.start < 6]
    branches = later[len(trunk) :]
    assert sum(chunk.num_tokens for chunk in trunk) == 6
    assert all(chunk.seqs == (0,) and chunk.samples == () for chunk in trunk)
    assert all(chunk.seqs == (0, 1) for chunk in branches)
    assert branches[0].start == 6
    again = [chunk for chunk in branches if chunk.start < 6 + num_branch_tokens]
    assert all(chunk.num_tokens * 2 <= max_num_batched_tokens for chunk in again)
    assert (len(trunk) > 1) == (max_num_batched_tokens <= 6), "in chunks, where the budget is short"
