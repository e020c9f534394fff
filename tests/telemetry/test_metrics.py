from __future__ import annotations

import math

import numpy as np
import pytest

from engine.core.events import EventKind
from engine.telemetry.agreement import (
    half_width,
    jain_index,
    kendall_tau,
    pooled_std,
    relative_error,
    spread,
    winner,
)
from engine.telemetry.latency import Pool, distribution, inter_token_ns, latencies, meets
from engine.telemetry.metrics import preemptions_per_request, summarize
from tests.telemetry.scripted import MS, Script, decode, ended, prefill, two_requests


def test_latencies_of_two_requests_worked_out_by_hand() -> None:
    frame = latencies(two_requests().log().requests)
    assert frame.index.tolist() == ["a", "b"]
    expected = {
        "ttft_ms": [10, 15],
        "e2el_ms": [60, 95],
        "tpot_ms": [50 / 3, 40],
        "queue_ms": [0, 5],
        "prefill_ms": [10, 10],
        "decode_ms": [50, 80],
        "normalized_latency_s": [0.060 / 4, 0.095 / 3],
    }
    assert set(frame.columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(frame[name], values, rtol=1e-12)


def test_summary_of_two_requests_worked_out_by_hand() -> None:
    summary = summarize(two_requests().log())
    expected = {
        "num_requests": 2,
        "completed": 2,
        "duration": 0.1,
        "total_input_tokens": 11,
        "total_output_tokens": 7,
        "request_throughput": 20,
        "output_throughput": 70,
        "total_token_throughput": 180,
        "mean_ttft_ms": 12.5,
        "median_e2el_ms": 77.5,
        "std_e2el_ms": 17.5,
        "p90_ttft_ms": 14.5,  # linear: 10 + 0.9 x 5
        "mean_itl_ms": 26,
        "median_itl_ms": 10,
        "mean_normalized_latency_s": (0.060 / 4 + 0.095 / 3) / 2,
        "num_preemptions": 2,
        "num_swap_preemptions": 1,
        "num_recompute_preemptions": 1,
        "mean_preemptions_per_request": 1,
        "num_fallbacks": 1,
        "num_lost_tokens": 7,
        "lost_tokens_per_preemption": 7,
        "recompute_tax": 7 / 23,
        "swap_tax": 3 / 90,
        "busy_share": 0.9,
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value), name


def test_a_run_counts_from_its_first_arrival() -> None:
    script = Script()
    script.arrive("a", 900, 2)
    script.step(
        900,
        1000,
        [prefill("a", 0, 2)],
        admitted=["a"],
        finished=[("a", 0)],
        events=[ended("a", EventKind.FINISHED, 1000)],
    )
    summary = summarize(script.log())
    assert (summary["duration"], summary["output_throughput"], summary["busy_share"]) == (0.1, 10, 1)


def test_the_field_names_are_those_of_vllm_bench_serve() -> None:
    summary = summarize(two_requests().log())
    names = {
        f"{statistic}_{metric}_ms"
        for statistic in ("mean", "median", "std", "p90", "p95", "p99")
        for metric in ("ttft", "tpot", "itl", "e2el")
    }
    assert names <= summary.keys()
    assert "request_goodput" not in summary


def test_inter_token_gaps_are_pooled_and_do_not_cross_requests_or_sequences() -> None:
    gaps_ms = inter_token_ns(two_requests().log().requests) // MS
    assert gaps_ms.tolist() == [10, 30, 10, 10, 70]
    script = Script()
    script.arrive("a", 0, 2, n=2)
    script.step(0, 5, [prefill("a", 0, 2, samples=(0, 1))], admitted=["a"], finished=[("a", 1)])
    script.step(5, 8, [decode("a", 2)], finished=[("a", 0)], events=[ended("a", EventKind.FINISHED, 8)])
    requests = script.log().requests
    assert inter_token_ns(requests).tolist() == [3 * MS]
    assert latencies(requests)["tpot_ms"].tolist() == [3]
    assert latencies(requests)["normalized_latency_s"].tolist() == [0.004]


def test_goodput_counts_requests_that_meet_every_limit() -> None:
    summary = summarize(two_requests().log(), {"ttft": 12, "tpot": 20})
    assert summary["request_goodput"] == pytest.approx(10)
    assert summary["slo_attainment"] == 0.5
    assert summarize(two_requests().log(), {"e2el": 95})["slo_attainment"] == 1
    with pytest.raises(ValueError, match="'itl' is not known: use ttft, tpot or e2el"):
        meets(latencies(two_requests().log().requests), {"itl": 1.0})


def test_a_single_token_has_no_tpot_and_spoils_nothing() -> None:
    script = Script()
    script.arrive("a", 0, 2)
    script.step(
        0,
        5,
        [prefill("a", 0, 2)],
        admitted=["a"],
        finished=[("a", 0)],
        events=[ended("a", EventKind.FINISHED, 5)],
    )
    summary = summarize(script.log(), {"tpot": 1.0})
    assert math.isnan(summary["mean_tpot_ms"]) and math.isnan(summary["p99_itl_ms"])
    assert summary["mean_ttft_ms"] == summary["mean_e2el_ms"] == 5
    assert summary["slo_attainment"] == 1


def test_requests_that_did_not_finish_are_counted_but_not_timed() -> None:
    script = Script()
    for request_id in ("finished", "aborted", "rejected", "unfinished", "failed"):
        script.arrive(request_id, 0, 2)
    script.step(
        0,
        5,
        [prefill("finished", 0, 2), prefill("aborted", 0, 2), prefill("failed", 0, 2)],
        admitted=["finished", "aborted", "failed"],
        finished=[("failed", 0)],
        events=[
            ended("rejected", EventKind.REJECTED, 0, "too long"),
            ended("failed", EventKind.FAILED, 5, "its logits were not finite"),
        ],
    )
    script.step(
        5,
        50,
        [decode("finished", 2), decode("aborted", 2)],
        finished=[("finished", 0)],
        events=[ended("aborted", EventKind.ABORTED, 6), ended("finished", EventKind.FINISHED, 50)],
    )
    summary = summarize(script.log(), {"ttft": 100})
    names = ("requests", "aborted", "rejected", "unfinished", "failed")
    assert [summary[f"num_{name}"] for name in names] == [5, 1, 1, 1, 1]
    failed = script.log().requests.set_index("request_id").loc["failed"]
    assert (failed["status"], failed["reason"]) == ("failed", "its logits were not finite")
    assert failed["num_output_tokens"] == 0 and len(failed["token_times_ns"]) == 0
    assert (summary["completed"], summary["total_output_tokens"], summary["mean_e2el_ms"]) == (1, 2, 50)
    assert summary["slo_attainment"] == 0.2


def test_a_run_in_which_nothing_finished_has_undefined_latencies_and_no_warnings() -> None:
    script = Script()
    script.arrive("a", 0, 2)
    with np.errstate(all="raise"):
        for log in (Script().log(), script.log()):
            summary = summarize(log, {"ttft": 1.0})
            assert summary["completed"] == 0
            assert math.isnan(summary["p99_ttft_ms"]) and math.isnan(summary["request_throughput"])


def test_percentiles_interpolate_linearly_and_skip_nan() -> None:
    statistics = distribution([10, 20, 30, 40, math.nan], "x", "ms")
    assert statistics == pytest.approx(
        {
            "mean_x_ms": 25,
            "median_x_ms": 25,
            "std_x_ms": math.sqrt(125),
            "p90_x_ms": 37,
            "p95_x_ms": 38.5,
            "p99_x_ms": 39.7,
        }
    )


def test_preemptions_per_request() -> None:
    assert preemptions_per_request(two_requests().log().requests) == {1: 2}


def test_agreement() -> None:
    assert relative_error(11, 10) == pytest.approx(0.1)
    assert relative_error(9, 10) == pytest.approx(-0.1)
    assert relative_error(0, 0) == 0 and relative_error(1, 0) == math.inf
    assert spread([9, 10, 11]) == pytest.approx(0.2)
    assert math.isnan(spread([9])) and spread([0, 0]) == 0
    assert jain_index([1, 1, 1]) == 1 and jain_index([1, 0, 0, 0]) == 0.25


def test_intervals() -> None:
    """The deviation against numpy's within one group, the half-width against a table of Student's t."""
    assert pooled_std([[1.0, 2.0, 4.0]]) == (pytest.approx(np.std([1, 2, 4], ddof=1)), 2)
    assert pooled_std([[0.0, 2.0], [10.0, 14.0]]) == (pytest.approx(math.sqrt((2 + 8) / 2)), 2)
    std, freedom = pooled_std([[1.0], [2.0]])
    assert math.isnan(std) and freedom == 0
    assert half_width(std, freedom, 1, 0.9) == math.inf
    assert half_width(3.0, 2, 9, 0.90) == pytest.approx(2.920, abs=1e-3)
    assert half_width(3.0, 8, 9, 0.95) == pytest.approx(2.306, abs=1e-3)


def test_rankings() -> None:
    a, b = {"x": 1.0, "y": 2.0, "z": 3.0}, {"z": 30.0, "x": 10.0, "y": 20.0}
    assert kendall_tau(a, b) == pytest.approx(1)
    assert kendall_tau(a, {name: -value for name, value in b.items()}) == pytest.approx(-1)
    assert kendall_tau(a, {"x": 2.0, "y": 1.0, "z": 3.0}) == pytest.approx(1 / 3)
    assert math.isnan(kendall_tau({"x": 1.0}, {"x": 1.0}))
    assert kendall_tau(a, {"x": 1.0, "y": 1.0, "z": 3.0}) == pytest.approx(2 / math.sqrt(3 * 2)), "a tie"
    assert math.isnan(kendall_tau(a, dict.fromkeys(a, 1.0))), "nobody is told apart"
    with pytest.raises(ValueError, match="different policies"):
        kendall_tau(a, {"x": 1.0})
    assert winner(a, lower_is_better=True) == "x" and winner(a, lower_is_better=False) == "z"
    assert winner({"b": 1.0, "a": 1.0, "c": math.nan}, lower_is_better=False) == "a"
    with pytest.raises(ValueError, match="no policy has a defined value"):
        winner({"a": math.nan}, lower_is_better=True)


@pytest.mark.parametrize("num_values", [0, 1, 2, 500])
def test_a_pool_of_values_has_the_statistics_of_the_values(num_values: int) -> None:
    rng = np.random.default_rng(num_values)
    values = rng.integers(0, 60, num_values) * MS
    pool = Pool()
    for part in np.array_split(values, 7):
        pool.add(part)
    expected = distribution(values / MS, "itl", "ms")
    assert pool.distribution("itl", "ms", MS) == pytest.approx(expected, nan_ok=True)
