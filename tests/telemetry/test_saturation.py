"""A queue that grows for as long as requests arrive."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import kendalltau

from engine.telemetry.metrics import summarize
from engine.telemetry.saturation import saturation, trend_p_value
from experiments.analysis import Served, serve

POOL = ("workload.num_requests=300", "pool=blocks", "pool.num_blocks=1200")
"""Serves about 3 requests a second."""


@cache
def served(*overrides: str) -> Served:
    return serve(*POOL, *overrides)


def test_below_and_above_what_can_be_served() -> None:
    assert served("workload.rate_per_s=2").summary["saturated"] == 0
    assert served("workload.rate_per_s=4").summary["saturated"] == 1


def test_a_load_that_comes_and_goes_is_none() -> None:
    """A burst in the middle: the queue is long, and is gone before the last request arrives."""
    log = served("workload.rate_per_s=4").log
    late = log.requests.copy()
    late.loc[late.index[-1], "arrival_ns"] = 20 * int(log.steps["end_ns"].max())
    for name in ("first_scheduled_ns", "first_token_ns", "last_token_ns", "end_ns"):
        late.loc[late.index[-1], name] = late["arrival_ns"].iloc[-1]
    assert saturation(log)["saturated"] == 1
    assert saturation(type(log)(log.world, log.capacity, log.steps, late))["saturated"] == 0


def test_it_cannot_be_told_of_few_or_of_all_at_once() -> None:
    assert np.isnan(serve("workload.num_requests=10").summary["saturated"])
    burst = serve("workload=burst", "workload.num_requests=50")
    assert np.isnan(summarize(burst.log)["saturated"])


def test_the_trend_against_scipy() -> None:
    """With ties and without, rising and falling."""
    rng = np.random.default_rng(0)
    for decimals in (0, 1, 8):
        for drift in (-0.3, 0.0, 0.5):
            values = np.round(np.cumsum(rng.normal(drift, 1, 10)), decimals)
            right = kendalltau(range(10), values, alternative="greater", method="asymptotic").pvalue
            assert trend_p_value(values) == pytest.approx(right)
    assert trend_p_value(np.ones(10)) == 1
