from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.core.events import EventKind
from engine.core.plan import PoolState, TableUpdate
from engine.telemetry.memory import SHARES, memory_states, memory_summary
from tests.telemetry.scripted import MS, Script, decode, ended, prefill, two_requests


def test_states_of_each_step_worked_out_by_hand() -> None:
    states = memory_states(two_requests().log())
    np.testing.assert_allclose(states["U"] * 32, [0, 5, 6, 13, 7, 0, 4, 0])
    np.testing.assert_allclose(states["S"] * 32, [5, 7, 1, 1, 1, 4, 4, 0])
    np.testing.assert_allclose(states["R"] * 32, [3, 4, 1, 2, 0, 0, 0, 0])
    np.testing.assert_allclose(states["F"] * 32, [24, 16, 24, 16, 24, 28, 24, 32])
    assert (states["I"] == 0).all()
    np.testing.assert_allclose(states[list(SHARES)].sum(axis=1), 1)


def test_slots_that_are_never_written_are_internal_from_the_moment_they_are_allocated() -> None:
    script = Script()
    script.arrive("a", 0, 3)
    script.step(
        0,
        1,
        [prefill("a", 0, 3)],
        admitted=["a"],
        updates=[TableUpdate("a", 0, 0, (0,))],
        after=PoolState(1, 0, 0, 7, 4, 0),
    )
    script.step(1, 2, [decode("a", 3)], after=PoolState(1, 0, 0, 7, 4, 3))
    # Its second block will get the KV of one token.
    script.step(
        2,
        3,
        [decode("a", 4)],
        updates=[TableUpdate("a", 0, 1, (1,))],
        finished=[("a", 0)],
        events=[ended("a", EventKind.FINISHED, 3)],
        after=PoolState(1, 0, 0, 6, 4, 4),
    )
    states = memory_states(script.log())
    np.testing.assert_allclose(states["I"] * 32, [0, 0, 3, 0])
    np.testing.assert_allclose(states["R"] * 32, [1, 0, 0, 0])


def test_averages_over_time_hold_a_state_until_the_next_step() -> None:
    summary = memory_summary(two_requests().log())
    assert summary["mean_token_states_share"] == pytest.approx(450 / 3200)
    assert summary["mean_written_share"] == pytest.approx(320 / 3200)
    assert summary["mean_tail_waste_share"] == pytest.approx(110 / 3200)
    assert summary["mean_block_usage"] == pytest.approx(880 / 3200)
    assert summary["max_block_usage"] == 0.5
    shares = [value for name, value in summary.items() if name.endswith("_share") and "waste" not in name]
    assert sum(shares) == pytest.approx(1)


def test_an_idle_gap_counts_as_an_empty_pool() -> None:
    script = Script()
    for request_id, start in (("a", 0), ("b", 90)):
        script.arrive(request_id, start, 4)
        end = [ended(request_id, EventKind.FINISHED, start + 10)]
        script.step(
            start,
            start + 10,
            [prefill(request_id, 0, 4)],
            admitted=[request_id],
            events=end,
            finished=[(request_id, 0)],
            after=PoolState(1, 0, 0, 6, 4, 4),
        )
    summary = memory_summary(script.log())
    assert summary["mean_token_usage"] == pytest.approx(0.2 * 4 / 32)
    assert summary["mean_free_share"] == pytest.approx(0.8 + 0.2 * 24 / 32)


def test_sharing_saves_what_tables_have_in_common() -> None:
    script = Script()
    script.arrive("a", 0, 8, n=2)
    script.step(
        0,
        1,
        [prefill("a", 0, 8, samples=(0, 1))],
        admitted=["a"],
        updates=[TableUpdate("a", 0, 0, (0, 1))],
        after=PoolState(1, 0, 0, 6, 4, 0),
    )
    script.step(
        1,
        2,
        [decode("a", 8, seqs=(0, 1))],
        after=PoolState(1, 0, 0, 4, 4, 8),
        finished=[("a", 0), ("a", 1)],
        updates=[TableUpdate("a", 0, 0, (0, 1, 2)), TableUpdate("a", 1, 0, (0, 1, 3))],
        events=[ended("a", EventKind.FINISHED, 2)],
    )
    # One of 2 ms with 2 blocks in one table, one with 6 entries for 4 blocks.
    assert memory_summary(script.log())["sharing_saving"] == pytest.approx(2 / 8)


def test_a_log_that_contradicts_itself_is_refused() -> None:
    log = two_requests().log()
    log.steps.loc[2, "num_kv_tokens"] = 8
    with pytest.raises(ValueError, match=f"memory at {20 * MS} ns does not add up"):
        memory_states(replace(log))
