"""A part of a run: what arrived, what was finished and what was held while the window was open."""

from __future__ import annotations

import numpy as np
import pytest

from engine.core.errors import UserError
from engine.telemetry.memory import memory_summary
from engine.telemetry.metrics import step_totals, summarize
from engine.telemetry.runlog import RunLog
from engine.telemetry.series import span_ns
from engine.telemetry.window import Measure, rates_within, requests_within
from experiments.analysis import Served, serve
from tests.telemetry.scripted import MS, two_requests

WINDOW_NS = (5 * MS, 60 * MS)


@pytest.fixture(scope="module")
def served() -> Served:
    return serve("workload.num_requests=40", "workload.rate_per_s=2")


def test_rates_are_of_what_was_finished_in_the_window() -> None:
    """Tokens of a at 10, 20 and 50 ms (60 is too late) and of b at 20 and 30; neither ends in time."""
    rates = rates_within(two_requests().log(), WINDOW_NS, {"ttft": 100})
    assert rates["output_throughput"] == pytest.approx(5 / 0.055)
    assert rates["total_token_throughput"] == pytest.approx((5 + 5 + 6) / 0.055)
    assert rates["request_throughput"] == rates["request_goodput"] == 0
    later = rates_within(two_requests().log(), (60 * MS, 100 * MS + 1), {"ttft": 12, "tpot": 20})
    assert later["request_throughput"] == pytest.approx(2 / 0.04)
    assert later["request_goodput"] == pytest.approx(1 / 0.04)  # a alone meets the limits


def test_requests_that_arrived_and_steps_that_began_in_it() -> None:
    log = two_requests().log()
    assert requests_within(log, WINDOW_NS)["request_id"].tolist() == ["b"]
    assert (
        step_totals(log, WINDOW_NS)["num_steps"] == log.steps["start_ns"].between(5 * MS, 60 * MS - 1).sum()
    )


def test_memory_of_two_parts_makes_that_of_the_whole(served: Served) -> None:
    begin_ns, end_ns = span_ns(served.log)
    middle_ns = begin_ns + (end_ns - begin_ns) // 3
    parts = [(begin_ns, middle_ns), (middle_ns, end_ns)]
    weighted = [memory_summary(served.log, part)["mean_token_usage"] * (part[1] - part[0]) for part in parts]
    whole = memory_summary(served.log)["mean_token_usage"]
    assert sum(weighted) / (end_ns - begin_ns) == pytest.approx(whole, rel=1e-9)


def test_the_window_leaves_out_the_first_and_the_last_requests_and_the_drain(served: Served) -> None:
    log: RunLog = served.log
    summary = summarize(log, measure=Measure(warm_up=0.1, cool_down=0.2))
    arrivals = np.sort(log.requests["arrival_ns"])
    assert summary["num_requests"] == summary["completed"] == 40 - 4 - 8
    assert summary["duration"] == pytest.approx((arrivals[32] - arrivals[4]) / 1e9)
    assert summary["duration"] < served.summary["duration"]
    assert set(summary) == set(summarize(log))
    window = (int(arrivals[4]), int(arrivals[32]))
    assert summary["mean_token_usage"] == memory_summary(log, window)["mean_token_usage"]
    assert summary["mean_token_usage"] > served.summary["mean_token_usage"]  # without the drain


def test_what_is_left_out_is_a_key_of_the_run() -> None:
    measured = serve("workload.num_requests=40", "workload.rate_per_s=2", "measure.warm_up=0.25")
    assert measured.summary["num_requests"] == 30
    with pytest.raises(UserError, match=r"measure\.cool_down"):
        serve("measure.cool_down=0.5")
