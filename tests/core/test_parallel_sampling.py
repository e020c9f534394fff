"""Several sequences from one prompt: it is computed once, shared, and copied where they write."""

from __future__ import annotations

from engine.core.events import EventKind
from engine.core.plan import Chunk, TransferKind
from engine.core.spec import Limits
from tests.core.build import drain, kinds, on_trial, spec, step


def test_the_prompt_is_computed_once_and_each_sequence_samples() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 6, n=3))
    plan, events = step(trial)
    assert list(plan.chunks) == [Chunk("a", 0, 6, (0,), (0, 1, 2))]
    assert EventKind.FIRST_TOKEN in kinds(events, "a")
    plan, _ = step(trial)
    assert list(plan.chunks) == [Chunk("a", 6, 1, (0, 1, 2), (0, 1, 2))]
    assert [len(t.src) for t in plan.transfers if t.kind is TransferKind.COPY] == [1, 1]
    assert plan.num_tokens == 3


def test_sequences_end_one_by_one() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 6, max_tokens=9, n=3))
    kv = trial.scheduler.state.kv
    step(trial)
    for seq in (1, 0):
        step(trial)
        trial.begin()
        num_free = kv.device.num_free
        trial.backend.stop("a", seq)
        events = trial.end()
        assert kinds(events, "a") == [EventKind.SEQUENCE_FINISHED]
        assert kv.device.num_free > num_free, "what only it held is free at once"
    assert trial.scheduler.state.requests["a"].live == (2,)
    assert trial.scheduler.state.num_running_seqs == 1
    plan, _ = step(trial)
    assert [chunk.seqs for chunk in plan.chunks] == [(2,)]
    _, events = drain(trial)
    assert kinds(events, "a") == [EventKind.FINISHED]
    assert kv.device.num_free == kv.device.num_blocks


def test_a_request_ends_with_all_its_sequences_in_one_step() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 6, max_tokens=1, n=3))
    _, events = step(trial)
    assert kinds(events, "a")[-3:] == [
        EventKind.SEQUENCE_FINISHED,
        EventKind.SEQUENCE_FINISHED,
        EventKind.FINISHED,
    ]
    assert trial.scheduler.is_idle
    assert trial.scheduler.state.kv.device.num_free == trial.scheduler.state.kv.device.num_blocks


def test_the_budget_counts_every_sequence() -> None:
    trial = on_trial(limits=Limits(4, 4, 64))
    trial.arrive(spec("a", 4, n=3))
    trial.arrive(spec("b", 4))
    step(trial)
    plan, _ = step(trial)
    assert [(chunk.request_id, chunk.num_tokens) for chunk in plan.chunks] == [("a", 1), ("b", 1)]
    assert plan.num_tokens == 4


def test_seats_are_counted_in_sequences() -> None:
    trial = on_trial(limits=Limits(3, 64, 64))
    trial.arrive(spec("a", 4, n=2))
    trial.arrive(spec("b", 4, n=2))
    plan, _ = step(trial)
    assert plan.admitted == ("a",)
    assert plan.after.num_waiting == 1


def test_a_recomputed_request_does_not_revive_the_sequences_that_ended() -> None:
    trial = on_trial(num_blocks=6, limits=Limits(4, 64, 64))
    trial.arrive(spec("first", 4, max_tokens=14))
    trial.arrive(spec("forks", 6, max_tokens=9, n=3))
    step(trial)
    trial.begin()
    trial.backend.stop("forks", 0)
    trial.end()
    plans, events = drain(trial)
    assert EventKind.PREEMPTED in kinds(events, "forks")
    chunks = [chunk for plan in plans for chunk in plan.chunks if chunk.request_id == "forks"]
    trunk = [chunk for chunk in chunks if chunk.start == 0]
    assert trunk and all(chunk.seqs == (1,) for chunk in trunk), "the first of the living computes for both"
    assert all(chunk.seqs == (1, 2) for chunk in chunks if chunk.start >= 6)
