"""A request that can never run is rejected at once, and told what would help; the others run on."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.errors import UserError
from engine.core.events import EventKind
from engine.core.policies.admission import FirstChunk, FullPrompt, Padded, Watermark
from engine.core.policies.batching import ArrivalFirstChunked, DecodeFirst, PrefillFirst, Static
from engine.core.policies.reservation import WholePrompt
from engine.core.policies.restore import Recompute, Swap
from engine.core.spec import Limits, RequestSpec
from tests.core.build import drain, kinds, on_trial, spec

TIGHT = Limits(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=20)

CASES: dict[str, tuple[RequestSpec, dict[str, Any], str]] = {
    "prompt as long as the window": (
        spec("bad", 20),
        {"num_blocks": 8},
        r"the prompt has 20 tokens, .* window of 20: send a shorter prompt or scale the lengths",
    ),
    "longer than the pool": (
        spec("bad", 13),
        {"num_blocks": 3},
        r"13 tokens need 4 blocks of 4, and the pool allows 3 of its 3: give it more blocks or send a short",
    ),
    "longer than the pool, first chunk": (
        spec("bad", 13),
        {"num_blocks": 3, "admission": FirstChunk()},
        r"13 tokens need 4 blocks of 4, and the pool allows 3",
    ),
    "above the watermark": (
        spec("bad", 13),
        {"num_blocks": 4, "admission": Watermark(fraction=0.25)},
        r"13 tokens need 4 blocks of 4, and the pool allows 3 of its 4",
    ),
    "more sequences than seats": (
        spec("bad", 4, n=5),
        {},
        r"n = 5 sequences, and limits.max_num_seqs is 4: raise it or lower n",
    ),
}
WINDOW_OF_20 = Limits(max_num_seqs=4, max_num_batched_tokens=19, max_model_len=20)
BATCHINGS = [Static(), PrefillFirst(), ArrivalFirstChunked(), DecodeFirst()]
ADMISSIONS = [FullPrompt(), FirstChunk(), Watermark(), Padded()]


@pytest.mark.parametrize("case", CASES)
def test_a_request_that_never_fits(case: str) -> None:
    bad, setting, reason = CASES[case]
    trial = on_trial(**{"num_blocks": 8, "limits": TIGHT, **setting})
    trial.arrive(spec("before", 4))
    trial.arrive(bad)
    trial.arrive(spec("after", 4))
    plans, events = drain(trial)
    rejections = [rejection for plan in plans for rejection in plan.rejections]
    assert [rejection.request_id for rejection in rejections] == ["bad"]
    with pytest.raises(ValueError, match=reason):
        raise ValueError(rejections[0].reason)
    assert kinds(events, "bad") == [EventKind.ADDED, EventKind.REJECTED]
    for name in ("before", "after"):
        assert kinds(events, name)[-1] is EventKind.FINISHED


@pytest.mark.parametrize("max_num_batched_tokens", [4, 19])
@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("admission", ADMISSIONS)
def test_the_window_is_held_against_the_prompt_on_arrival(
    admission: Any, batching: Any, max_num_batched_tokens: int
) -> None:
    """Not against the chunk that the budget allows: vLLM 0.4.2 with chunked prefill served prompts of any
    length.
    """
    if not batching.splits_prompts and max_num_batched_tokens < 19:
        return
    limits = Limits(4, max_num_batched_tokens, 20)
    trial = on_trial(num_blocks=40, limits=limits, admission=admission, batching=batching)
    for num_prompt_tokens in (18, 19, 20, 21, 100):
        trial.arrive(spec(f"p{num_prompt_tokens}", num_prompt_tokens))
    assert trial.outstanding == ["p18", "p19"], "the others are rejected before any step"
    plans, events = drain(trial)
    assert [rejection.request_id for rejection in plans[0].rejections] == ["p20", "p21", "p100"]
    assert [kinds(events, name)[-1] for name in ("p18", "p19")] == [EventKind.FINISHED] * 2


@pytest.mark.parametrize("batching", [Static(), PrefillFirst(), DecodeFirst(splits_prompts=False)])
def test_a_budget_below_the_window_needs_a_batching_that_splits(batching: Any) -> None:
    """Else a request that has grown beyond the budget, and is preempted, would be rejected in mid-life."""
    with pytest.raises(UserError, match=r"max_num_batched_tokens is 18, .* split.* 19 tokens"):
        on_trial(limits=Limits(4, 18, 20), batching=batching)
    on_trial(limits=Limits(4, 18, 20), batching=DecodeFirst())
    on_trial(limits=WINDOW_OF_20, batching=batching)


@pytest.mark.parametrize("batching", [Static(), PrefillFirst(), DecodeFirst(splits_prompts=False)])
def test_who_has_grown_to_the_window_is_recomputed_in_one_step(batching: Any) -> None:
    """The budget is to the token what the longest needs; nobody is rejected who has begun."""
    trial = on_trial(num_blocks=5, limits=WINDOW_OF_20, batching=batching)
    for name in ("first", "second"):
        trial.arrive(spec(name, 8, max_tokens=64))
    plans, events = drain(trial)
    assert [kinds(events, name)[-1] for name in ("first", "second")] == [EventKind.FINISHED] * 2
    assert any(plan.preemptions for plan in plans)
    assert max(chunk.start + chunk.num_tokens for plan in plans for chunk in plan.chunks) == 19


def test_a_rejection_alone_is_enough_for_a_plan() -> None:
    trial = on_trial(limits=TIGHT)
    trial.arrive(spec("bad", 30))
    plan = trial.begin()
    assert plan is not None
    assert (len(plan.chunks), plan.num_tokens, [r.request_id for r in plan.rejections]) == (0, 0, ["bad"])
    assert [event.kind for event in trial.end()] == [EventKind.ADDED, EventKind.REJECTED]
    assert trial.begin() is None


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("restore", [Swap(), Recompute()])
def test_a_request_that_outgrows_the_pool_ends_and_others_run(batching: Any, restore: Any) -> None:
    """Its prompt fits, its output does not; how long that will be nobody knows beforehand."""
    trial = on_trial(num_blocks=3, num_host_blocks=3, batching=batching, restore=restore)
    trial.arrive(spec("grows", 6, max_tokens=20))
    trial.arrive(spec("after", 4, max_tokens=3))
    plans, events = drain(trial)
    assert kinds(events, "grows")[-1] is EventKind.REJECTED
    assert kinds(events, "after")[-1] is EventKind.FINISHED
    (reason,) = [rejection.reason for plan in plans for rejection in plan.rejections]
    assert "4 blocks" in reason, reason


@pytest.mark.parametrize("reservation", [WholePrompt()])
@pytest.mark.parametrize("batching", [ArrivalFirstChunked(), DecodeFirst()])
def test_a_prompt_that_fills_the_pool_does_not_chase_its_own_headroom(
    batching: Any, reservation: Any
) -> None:
    """vLLM 0.4.2 preempts it for ever: it asks for a spare block that only it could give."""
    trial = on_trial(
        num_blocks=8,
        limits=Limits(1, 8, 64),
        admission=Watermark(fraction=0.1),
        batching=batching,
        reservation=WholePrompt(),
    )
    trial.arrive(spec("a", 30, max_tokens=1))
    plans, events = drain(trial)
    assert kinds(events, "a")[-1] is EventKind.FINISHED
    assert len(plans) == 4
