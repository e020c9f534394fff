"""Presets decide what vLLM's real schedulers decided, step for step.

The traces and where they come from: golden/SOURCE.md. PAGETWIN_GOLDEN names another folder with more of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.policies.admission import Watermark
from engine.core.policies.batching import DecodeFirst, Static
from engine.core.policies.order import Fcfs
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import Need
from engine.core.request import Request
from engine.core.view import View
from tests.parity.golden import GOLDEN, Record, Run, load, names, without
from tests.parity.golden_async import AsyncRun, expected_v1_async

EMPTY: Record = {
    "tokens": [],
    "prefill": [],
    "swapped_out": [],
    "recomputed": [],
    "swapped_in": [],
    "new": [],
    "readmitted": [],
    "rejected": [],
    "sampled": [],
    "forked": [],
    "finished": [],
    "blocks_out": 0,
    "blocks_in": 0,
    "blocks_copied": 0,
    "num_tokens": 0,
}


def expected_v0(golden: Record) -> Record:
    """A V0 record in our words."""
    return {
        "step": golden["step"],
        "tokens": golden["tokens"],
        "prefill": golden["prefill"],
        "swapped_out": golden["swapped_out"],
        "recomputed": golden["preempted_recompute"],
        "swapped_in": golden["swapped_in"],
        "blocks_out": golden["num_blocks_to_swap_out"],
        "blocks_in": golden["num_blocks_to_swap_in"],
        "blocks_copied": golden["num_blocks_to_copy"],
        "num_tokens": golden["num_batched_tokens"],
        "free": golden["free_gpu_blocks"],
        "free_host": golden["free_cpu_blocks"],
        "running": golden["running"],
        "waiting": golden["waiting"],
        "swapped": golden["swapped"],
        "sampled": golden["sampled"],
        "forked": golden.get("forked", []),
        "finished": golden["finished"],
        "rejected": golden["ignored"],
        "free_after": golden["free_gpu_after"],
        "free_host_after": golden["free_cpu_after"],
    }


def expected_v1(golden: Record) -> Record:
    """A V1 record in our words.

    Resumed, preempted and finished ids are ordered by position in the file: in V1 they come out of sets.
    """
    return {
        "step": golden["step"],
        "tokens": golden["tokens"],
        "new": [request_id for request_id, _ in golden["new"]],
        "readmitted": golden["resumed"],
        "recomputed": golden["preempted"],
        "free": golden["free_blocks"],
        "running": golden["running"],
        "waiting": golden["waiting"],
        "sampled": golden["sampled"],
        "finished": golden["finished"],
        "free_after": golden["free_after"],
    }


def first_difference(run: Run, wanted: list[Record], position: dict[str, int] | None = None) -> Any:
    """(step, key, ours, theirs) of the first record that differs; None if all are equal."""
    for ours, theirs in zip(run.records(len(wanted)), wanted, strict=True):
        ours, theirs = without(EMPTY | ours, run.too_long), without(theirs, run.too_long)
        if position is not None:
            for key in ("readmitted", "recomputed", "finished"):
                ours[key] = sorted(ours[key], key=lambda request_id: position[request_id])
        for key, value in theirs.items():
            if ours[key] != value:
                return theirs["step"], key, ours[key], value
    return None


@pytest.mark.parametrize(
    ("engine", "prefix"),
    [("vllm_v0", "v0_"), ("vllm_v0", "v085_"), ("vllm_v1", ""), ("vllm_v1_async", "")],
)
def test_every_dialect_has_traces(engine: str, prefix: str) -> None:
    """Tests that take their cases from a folder must not pass because it is empty."""
    assert names(engine, prefix), f"no traces of {engine} {prefix}* in {GOLDEN}: see PAGETWIN_GOLDEN"


DIVERGENCES = {
    # With chunked prefill, 0.4.2 swaps a request in only with all the tokens it lacks. r40 lacks more than
    # the token budget, never returns and blocks all behind it (here from step 711 to the end). Ours comes
    # back in clipped chunks.
    "v0_chunked_livelock_a": (711, "tokens"),
    # A swapped request that outgrew the pool is dropped by 0.4.2 with its host blocks: 48 of 200 leak. Ours
    # are freed.
    "v0_outgrow_swap_a": (197, "free_host"),
    "v0_outgrow_chunked_a": (229, "free_host"),
}
RAISES = {
    # The host pool is full, and the whole engine dies. Ours recomputes the victim.
    "v0_swap_cpu_small_a": 156,
}


@pytest.mark.parametrize("name", [name for name in names("vllm_v1") if not name.startswith("prefix")])
def test_vllm_v1(name: str) -> None:
    scenario, trace = load("vllm_v1", name)
    position = {item["id"]: index for index, item in enumerate(scenario["requests"])}
    wanted = [expected_v1(golden) for golden in trace]
    assert first_difference(Run.of("vllm_v1", scenario), wanted, position) is None


@pytest.mark.parametrize("name", [name for name in names("vllm_v1_async") if not name.startswith("prefix")])
def test_vllm_v1_async(name: str) -> None:
    scenario, trace = load("vllm_v1_async", name)
    run = AsyncRun(Run.of("vllm_v1_async", scenario))
    for ours, theirs in zip(run.records(len(trace)), trace, strict=True):
        assert {key: ours[key] for key in ("call", "plan", "update")} == expected_v1_async(theirs)
    assert not run.scheduler.state.requests


def defect(trace: list[Record], step: int, too_long: frozenset[str]) -> str | None:
    """The known defect of vLLM 0.4.2 that shows in this step of a trace; None: we must decide as it did.

    Leak: a swapped request is dropped, and its host blocks are not freed. Livelock: the request at the head
    of the swapped queue is the one that still stands there, for ever, when the trace gives up. Window: a
    prompt longer than the window is served, since only the chunk that the budget allows is held against it.
    """
    before, now, last = trace[step - 1], trace[step], trace[-1]
    if too_long & {name for name, _ in now["tokens"]}:
        return "window"
    if set(now["ignored"]) & set(before["swapped"]):
        return "leak"
    if last.get("stuck") and before["swapped"][:1] == last["swapped"][:1] != []:
        return "livelock"
    return None


@pytest.mark.parametrize("name", names("vllm_v0", "v0_"))
def test_vllm_v0(name: str) -> None:
    scenario, trace = load("vllm_v0", name)
    recorded = [golden for golden in trace if "raised" not in golden]
    run = Run.of("vllm_v0", scenario)
    difference = first_difference(run, [expected_v0(golden) for golden in recorded])
    if difference is None:
        assert name not in DIVERGENCES
    else:
        assert defect(trace, difference[0], run.too_long) is not None, (
            f"{difference} of {len(recorded)} steps"
        )
        assert difference[:2] == DIVERGENCES.get(name, difference[:2])


@pytest.mark.parametrize("name", [*DIVERGENCES, *RAISES])
def test_where_the_real_scheduler_fails_ours_obeys_the_laws(name: str) -> None:
    scenario, trace = load("vllm_v0", name)
    run = Run.of("vllm_v0", scenario)
    if name in RAISES:
        assert trace[-1]["step"] == RAISES[name]
        assert "lack of CPU swap space" in trace[-1]["raised"]
    ended: list[str] = []
    fell_back = []
    for record in run.records(3 * len(trace) + 2000):
        ended += record.get("finished", []) + record.get("rejected", [])
        fell_back += record.get("recomputed", []) if name in RAISES else []
    assert sorted(ended) == sorted(spec.request_id for spec in run.specs)
    assert not run.scheduler.state.requests
    assert record["free_host_after"] == run.scheduler.state.kv.host.num_blocks
    assert bool(fell_back) == (name in RAISES)


@pytest.mark.parametrize("name", names("vllm_v0", "v085_"))
def test_the_dialect_of_a_later_version(name: str) -> None:
    """The preset is that of 0.4.2; 0.8.5 decides otherwise but for recomputation without chunks."""
    scenario, trace = load("vllm_v0", name)
    difference = first_difference(Run.of("vllm_v0", scenario), [expected_v0(golden) for golden in trace])
    assert (difference is None) == ("v085_recompute" in name)


def test_a_changed_policy_is_noticed() -> None:
    """The comparison can fail: each axis of the preset matters to some trace."""
    scenario, trace = load("vllm_v0", "v0_swap_tight_a")
    wanted = [expected_v0(golden) for golden in trace]
    run = Run.of("vllm_v0", scenario)
    changes: list[dict[str, Any]] = [
        {"order": Fcfs()},
        {"admission": Watermark(fraction=0.05)},
        {"admission": Watermark(headroom_per_seq=0)},
        {"batching": DecodeFirst()},
        {"batching": Static()},
        {"restore": Recompute()},
        {"victim": LeastArrived()},
    ]
    for change in changes:
        assert first_difference(run.with_policies(**change), wanted) is not None, change


class LeastArrived:
    """The oldest request is the victim: no sensible policy."""

    def choose(self, view: View, need: Need) -> Request:
        return min(view.running, key=lambda request: (request.arrival_ns, request.id))
