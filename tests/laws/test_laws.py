"""Each law as a function says no where it should, and names the law and the culprit."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from engine.core.events import Event, EventKind
from engine.core.laws import (
    LawBroken,
    Ledger,
    check_budget,
    check_conservation,
    check_exclusive_writes,
    check_ids_are_taken,
    check_lengths,
    check_nothing_left,
    check_same_plans,
    check_same_tokens,
)
from engine.core.plan import Batch, Chunk, StepPlan
from engine.core.scheduler import Scheduler
from engine.core.spec import Limits
from tests.core.build import on_trial, spec, step


def running(n: int = 1) -> tuple[Scheduler, StepPlan]:
    """A scheduler with one request that decodes, and a plan of it."""
    trial = on_trial()
    trial.arrive(spec("a", 6, n=n))
    step(trial)
    plan = trial.begin()
    assert plan is not None
    return trial.scheduler, plan


def broken(number: int) -> AbstractContextManager[object]:
    return pytest.raises(LawBroken, match=f"^law {number}: ")


def test_a_count_that_no_table_explains() -> None:
    scheduler, _ = running()
    check_conservation(scheduler)
    scheduler.state.kv.device.num_holders[0] += 1
    with broken(1):
        check_conservation(scheduler)


def test_a_block_both_free_and_held() -> None:
    scheduler, _ = running()
    scheduler.state.kv.device.free.append(0)
    with broken(1):
        check_conservation(scheduler)


def test_slots_miscounted() -> None:
    scheduler, _ = running()
    scheduler.state.num_kv_tokens += 1
    with broken(1):
        check_conservation(scheduler)


def test_sequences_miscounted() -> None:
    scheduler, _ = running(n=2)
    scheduler.state.num_running_seqs -= 1
    with broken(1):
        check_conservation(scheduler)


def test_a_block_that_outlives_its_owner() -> None:
    scheduler, _ = running()
    check_nothing_left(scheduler)
    scheduler.state.requests.clear()
    with broken(3):
        check_nothing_left(scheduler)


def test_a_write_to_a_shared_block() -> None:
    scheduler, plan = running(n=2)
    check_exclusive_writes(scheduler, plan)
    tables = scheduler.state.requests["a"].tables
    scheduler.state.kv.device.hold([tables[1][1]])
    with broken(4):
        check_exclusive_writes(scheduler, plan)


def test_a_write_beyond_the_table() -> None:
    scheduler, plan = running()
    beyond = plan._replace(chunks=Batch.of([Chunk("a", 6, 3, (0,), (0,))]))
    with broken(4):
        check_exclusive_writes(scheduler, beyond)


@pytest.mark.parametrize(
    ("chunks", "num_tokens", "limits"),
    [
        ([Chunk("a", 0, 9, (0,), (0,))], 9, Limits(4, 8, 64)),
        ([Chunk("a", 0, 4, (0,), (0,))], 5, Limits(4, 8, 64)),
        ([Chunk("a", 6, 1, (0, 1, 2), (0, 1, 2))], 3, Limits(2, 8, 64)),
        ([Chunk("a", 0, 0, (0,), ())], 0, Limits(4, 8, 64)),
        ([Chunk("a", 4, 1, (0,), ()), Chunk("a", 5, 1, (0,), (0,))], 2, Limits(4, 8, 64)),
    ],
)
def test_over_budget(chunks: list[Chunk], num_tokens: int, limits: Limits) -> None:
    _, plan = running()
    check_budget(plan, limits, num_blocks=16)
    with broken(5):
        check_budget(plan._replace(chunks=Batch.of(chunks), num_tokens=num_tokens), limits, num_blocks=16)


def test_past_the_length_limit() -> None:
    scheduler, plan = running()
    check_lengths(scheduler, plan)
    for start in (9, 12):
        beyond = plan._replace(chunks=Batch.of([Chunk("a", start, 1, (0,), (0,))]))
        with broken(5):
            check_lengths(scheduler, beyond)


def test_an_id_that_is_free_while_a_plan_names_it() -> None:
    scheduler, plan = running()
    check_ids_are_taken(scheduler, [plan])
    named_otherwise = plan._replace(chunks=Batch.of([Chunk("b", 6, 1, (0,), (0,))]))
    with broken(2):
        check_ids_are_taken(scheduler, [plan, named_otherwise])


def test_a_block_beyond_the_pool() -> None:
    trial = on_trial()
    trial.arrive(spec("a", 6))
    plan = trial.begin()
    assert plan is not None
    with broken(5):
        check_budget(plan, trial.scheduler.limits, num_blocks=1)


def test_the_ledger() -> None:
    scheduler, _ = running()
    ledger, ended = Ledger(), [Event(1, "a", EventKind.FINISHED, "stop")]
    with broken(2):
        ledger.check_matches(scheduler)
    ledger.opened("a", 0)
    ledger.check_matches(scheduler)
    ledger.noted(ended)
    assert ledger.num_ended == 1
    with broken(2):
        ledger.noted(ended)


def test_tokens_that_changed() -> None:
    check_same_tokens({"a": [1, 2]}, {"a": [1, 2]})
    for other in ({"a": [1, 3]}, {}, {"a": [1, 2], "b": [1]}):
        with broken(8):
            check_same_tokens({"a": [1, 2]}, other)


def test_plans_that_changed() -> None:
    _, plan = running()
    check_same_plans([plan, None], [plan._replace(), None])
    for other in ([plan], [None, plan], [plan, None, None]):
        with broken(9):
            check_same_plans([plan, None], other)
