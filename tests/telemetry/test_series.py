"""Time series: what held from when to when."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from engine.core.events import EventKind
from engine.core.plan import PoolState
from engine.telemetry.memory import memory_states, memory_summary
from engine.telemetry.runlog import RunLog
from engine.telemetry.series import HELD, binned, lengths_ns, span_ns, time_series
from tests.telemetry.scripted import CAPACITY, MS, Script, decode, ended, prefill, time_mean, two_requests

BUSY = PoolState(1, 0, 0, 0, 4, 0)


def request(script: Script, request_id: str, arrival_ms: int, periods: list[tuple[int, int, int]]) -> None:
    """One request from its arrival to its end, by the start, end and close of each step."""
    script.arrive(request_id, arrival_ms, 4)
    for i, (start_ms, end_ms, closed_ms) in enumerate(periods):
        is_last = i == len(periods) - 1
        script.step(
            start_ms,
            end_ms,
            [decode(request_id, 3 + i) if i else prefill(request_id, 0, 4)],
            admitted=() if i else [request_id],
            events=[ended(request_id, EventKind.FINISHED, end_ms)] if is_last else [],
            finished=[(request_id, 0)] if is_last else [],
            after=BUSY._replace(num_kv_tokens=3 + i if i else 0),
            closed_ms=closed_ms,
        )


def with_gaps() -> RunLog:
    """Busy from 1 to 13 and from 90 to 95 ms, of 100 ms since the first arrival at 0."""
    script = Script()
    request(script, "a", 0, [(1, 9, 10), (10, 12, 13)])
    request(script, "b", 90, [(90, 94, 95), (95, 100, 103)])
    return script.log()


def test_rows_fill_the_run_without_a_hole_and_are_empty_in_gaps() -> None:
    log = with_gaps()
    series = time_series(log)
    assert series.columns.tolist() == ["begin_ns", "until_ns", *HELD]
    stretches = (series[["begin_ns", "until_ns"]] / MS).to_numpy().tolist()
    assert stretches == [[0, 1], [1, 10], [10, 13], [13, 90], [90, 95], [95, 100], [100, 100]]
    assert span_ns(log) == (0, 100 * MS)
    assert series["num_running"].tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert series["num_free_blocks"].tolist() == [8, 0, 0, 8, 0, 0, 8]
    assert series["num_free_host_blocks"].tolist() == [CAPACITY.num_host_blocks] * 7
    assert series["num_kv_tokens"].tolist() == [0, 0, 4, 0, 0, 4, 0]
    assert series["num_written_tokens"].tolist() == [0, 4, 1, 0, 4, 1, 0]


def test_a_state_lasts_while_requests_are_outstanding() -> None:
    # Nothing is computed from 30 to 40 ms, while a is swapped out and b is in the middle of its output.
    series = time_series(two_requests().log())
    assert (lengths_ns(series) / MS).tolist() == [10, 10, 20, 10, 10, 20, 20, 0]
    assert series["num_running"].tolist()[-1] == 0


def test_a_run_that_does_not_end_has_no_empty_moment_at_its_end() -> None:
    script = Script()
    script.arrive("a", 0, 4)
    script.step(0, 5, [prefill("a", 0, 4)], admitted=["a"], after=BUSY)
    assert time_series(script.log())["num_running"].tolist() == [1]


def test_a_run_of_nothing_is_an_empty_series() -> None:
    series = time_series(Script().log())
    assert series.empty and series.columns.tolist() == ["begin_ns", "until_ns", *HELD]
    assert np.isnan(time_mean(series, series["num_running"])) and binned(series, 10).empty


def uneven() -> RunLog:
    """40 requests, each of one long and many short steps, with idle gaps of all lengths between them."""
    script, rng, now_ms = Script(), np.random.default_rng(3), 0
    for number in range(40):
        now_ms += int(rng.integers(0, 200))
        bounds = now_ms + np.cumsum([0, int(rng.integers(50, 400)), *rng.integers(1, 4, 25)])
        periods = [(start, end, end) for start, end in pairwise(bounds.tolist())]
        request(script, f"r{number:02}", now_ms, periods)
        now_ms = int(bounds[-1])
    return script.log()


@pytest.mark.parametrize("num_bins", [1, 7, 60, 600])
def test_bins_have_the_means_over_time_that_the_summary_has(num_bins: int) -> None:
    log = uneven()
    states, summary = memory_states(log), memory_summary(log)
    bins = binned(states, num_bins)
    assert len(bins) == num_bins < len(states)
    assert bins.columns.tolist() == states.columns.tolist()
    expected = {
        "block_usage": "mean_block_usage",
        "token_usage": "mean_token_usage",
        "S": "mean_written_share",
        "W": "mean_tail_waste_share",
        "F": "mean_free_share",
    }
    for share, metric in expected.items():
        assert time_mean(bins, bins[share]) == pytest.approx(summary[metric], rel=1e-9), metric
    # By step, the mean would be another number.
    assert log.steps["num_kv_tokens"].mean() / 32 > 1.5 * summary["mean_token_usage"]


def test_a_bin_is_the_mean_of_what_it_covers() -> None:
    series = pd.DataFrame(
        {"begin_ns": [0, 10, 10, 40], "until_ns": [10, 10, 40, 40], "x": [1.0, 99.0, 3.0, 7.0]}
    )
    bins = binned(series, 2)
    assert bins.to_numpy().tolist() == [[0, 20, 2], [20, 40, 3]]
    assert binned(series, 4) is series
