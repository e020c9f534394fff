"""Slices, rates, lengths fitted to a window, and the options of Shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import UserError
from engine.core.spec import RequestSpec
from sim.workloads.azure import AzureTrace
from sim.workloads.base import Labels, Rows, WorkloadError, ordered_rows
from sim.workloads.shape import Shape
from sim.workloads.summary import describe
from sim.workloads.transform import at_rate, clip, cut, keep, scale, stretch

LENGTH = st.integers(1, 20_000)
AS_IS = Shape()


def rows_of(*requests: tuple[int, int, int]) -> Rows:
    arrival_ns, prompts, outputs = np.array(requests, np.int64).T
    return ordered_rows(arrival_ns, prompts, outputs)


def specs_of(rows: Rows, shape: Shape = AS_IS, window: int = 512, seed: int = 0) -> list[RequestSpec]:
    return shape.prepare(rows, window, seed, len(rows)).specs


@st.composite
def any_rows(draw: st.DrawFn) -> Rows:
    requests = draw(st.lists(st.tuples(st.integers(0, 10**12), LENGTH, LENGTH), min_size=1, max_size=30))
    return rows_of(*requests)


@given(any_rows(), st.integers(2, 30_000), st.sampled_from([clip, scale]), st.floats(0.01, 1.0))
def test_fitted_lengths_are_at_least_one_and_fit_the_window(
    rows: Rows, window: int, fit: Any, quantile: float
) -> None:
    fitted = fit(rows, window, quantile).rows
    assert fitted.num_prompt_tokens.min() >= 1
    assert fitted.num_output_tokens.min() >= 1
    assert fitted.total_tokens.max() <= window
    assert (fitted.num_prompt_tokens <= rows.num_prompt_tokens).all()
    assert (fitted.num_output_tokens <= rows.num_output_tokens).all()
    assert (fitted.arrival_ns == rows.arrival_ns).all()


@given(any_rows(), st.integers(2, 30_000))
def test_scaling_all_preserves_the_order_of_lengths(rows: Rows, window: int) -> None:
    fitted = scale(rows, window, 1.0).rows
    for before, after in (
        (rows.num_output_tokens, fitted.num_output_tokens),
        (rows.num_prompt_tokens, fitted.num_prompt_tokens),
    ):
        order = np.argsort(before, kind="stable")
        assert (np.diff(after[order]) >= 0).all()


@given(any_rows(), st.floats(0.01, 100.0))
def test_stretching_preserves_the_order_of_arrivals(rows: Rows, factor: float) -> None:
    stretched = stretch(rows, factor)
    assert (np.diff(stretched.arrival_ns) >= 0).all()
    assert (stretched.number == rows.number).all()


def test_scale_shrinks_prompt_and_output_by_one_factor() -> None:
    rows = scale(rows_of((0, 600, 400), (1, 300, 100), (2, 3000, 1000)), 2000, 1.0).rows
    assert rows.num_prompt_tokens.tolist() == [300, 150, 1500]
    assert rows.num_output_tokens.tolist() == [200, 50, 500]


def test_scale_to_a_quantile_clips_what_is_longer() -> None:
    rows = scale(rows_of((0, 600, 400), (1, 300, 100), (2, 3000, 1000)), 500, 0.5).rows
    assert rows.num_prompt_tokens.tolist() == [300, 150, 1]
    assert rows.num_output_tokens.tolist() == [200, 50, 499]


def test_scale_never_makes_a_workload_longer() -> None:
    rows = rows_of((0, 60, 40), (1, 30, 10))
    assert scale(rows, 512, 1.0).rows.total_tokens.tolist() == [100, 40]


def test_clip_cuts_the_prompt_first() -> None:
    rows = clip(rows_of((0, 500, 100), (1, 500, 12), (2, 9, 900)), 512, 1.0).rows
    assert rows.num_prompt_tokens.tolist() == [412, 500, 1]
    assert rows.num_output_tokens.tolist() == [100, 12, 511]


def test_keep_leaves_requests_that_cannot_be_served() -> None:
    rows = rows_of((0, 5000, 100))
    assert keep(rows, 512, 1.0).rows is rows
    (spec,) = specs_of(rows, Shape())
    assert (spec.num_prompt_tokens, spec.max_tokens, spec.num_output_tokens) == (5000, 1, 100)


def test_cut_keeps_the_ids_and_starts_at_time_zero() -> None:
    rows = cut(rows_of((5, 1, 1), (7, 2, 1), (11, 3, 1), (13, 4, 1)), 1, 2)
    assert rows.number.tolist() == [1, 2]
    assert rows.arrival_ns.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("start", "num_requests", "message"),
    [
        (2, None, r"workload\.start is 2, but the trace has 2 requests"),
        (-1, None, r"workload\.start is -1"),
        (1, 2, r"workload\.num_requests is 2, but 1 follow from row 1"),
        (0, 0, r"workload\.num_requests is 0"),
        (0, -5, r"workload\.num_requests is -5"),
    ],
)
def test_slices_that_are_not_there(start: int, num_requests: int | None, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        cut(rows_of((0, 1, 1), (1, 1, 1)), start, num_requests)


def test_rate_is_the_reciprocal_of_the_mean_gap_and_bursts_keep_their_shape() -> None:
    rows = at_rate(rows_of((0, 1, 1), (1000, 1, 1), (1500, 1, 1), (3000, 1, 1)), 2.0)
    assert rows.arrival_ns.tolist() == [0, 500_000_000, 750_000_000, 1_500_000_000]
    alone = rows_of((0, 1, 1))
    assert at_rate(alone, 2.0) is alone


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan")])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(WorkloadError, match=r"workload\.rate_per_s is .*, must be above 0"):
        at_rate(rows_of((0, 1, 1), (9, 1, 1)), rate)


def test_no_rate_for_requests_that_arrive_at_once() -> None:
    with pytest.raises(WorkloadError, match="arrive at once"):
        at_rate(rows_of((0, 1, 1), (0, 1, 1)), 1.0)


def test_time_factor(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:00:00.5,10,5\n2023-11-16 18:00:02.5,10,5\n2023-11-16 18:00:03.5,10,5\n"
    )
    halved = AzureTrace(str(path), time_factor=0.5).requests(512)
    assert [spec.arrival_ns for spec in halved] == [0, 1_000_000_000, 1_500_000_000]
    at_two = AzureTrace(str(path), rate_per_s=2.0, start=1).requests(512)
    assert [spec.arrival_ns for spec in at_two] == [0, 500_000_000]
    assert [spec.request_id for spec in at_two] == ["r00001", "r00002"]
    with pytest.raises(UserError, match=r"time_factor is 0"):
        AzureTrace(str(path), time_factor=0.0).requests(512)
    with pytest.raises(WorkloadError, match="set one of them to null"):
        AzureTrace(str(path), rate_per_s=1.0, time_factor=1.0)


def many(shape: Shape, start: int = 0, seed: int = 0, num_requests: int = 1000) -> list[RequestSpec]:
    numbers = np.arange(1000)
    rows = Rows(numbers, numbers, np.full(1000, 20), np.full(1000, 10))
    return specs_of(cut(rows, start, num_requests), shape, seed=seed)


def test_max_tokens_is_what_the_window_leaves_or_less() -> None:
    assert {spec.max_tokens for spec in many(Shape())} == {492}
    assert {spec.max_tokens for spec in many(Shape(max_tokens=64))} == {64}
    assert {spec.max_tokens for spec in many(Shape(max_tokens=5000))} == {492}
    assert {spec.num_output_tokens for spec in many(Shape(max_tokens=64))} == {10}


def test_parallel_sampling_and_its_parameters() -> None:
    shape = Shape(n=3, temperature=0.8, top_k=40, top_p=0.9, stop_token_ids=[2, 7])
    spec = many(shape)[0]
    sampling = spec.sampling
    assert (spec.n, sampling.temperature, sampling.top_k, sampling.top_p) == (3, 0.8, 40, 0.9)
    assert sampling.stop_token_ids == (2, 7)


def test_each_request_has_a_seed_of_its_own_that_no_slice_changes() -> None:
    all_of_them = many(Shape())
    seeds = [spec.sampling.seed for spec in all_of_them]
    assert len(set(seeds)) == 1000
    assert many(Shape(), start=100, num_requests=200) == [
        # Arrival times start at zero again.
        RequestSpec(**{**fields(spec), "arrival_ns": spec.arrival_ns - 100}) for spec in all_of_them[100:300]
    ]  # fmt: skip
    assert seeds != [spec.sampling.seed for spec in many(Shape(), seed=1)]


def fields(spec: RequestSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in RequestSpec.__dataclass_fields__}


def test_priorities_are_drawn_by_weight_and_no_slice_changes_them() -> None:
    shape = Shape(priorities={0: 3, 5: 1})
    drawn = [spec.priority for spec in many(shape)]
    assert set(drawn) == {0, 5}
    assert drawn.count(5) == pytest.approx(250, abs=50)
    assert [spec.priority for spec in many(shape, start=500, num_requests=100)] == drawn[500:600]


def test_clients_are_drawn_by_weight_and_no_slice_changes_them() -> None:
    shape = Shape(clients={"ann": 3, "bob": 1})
    drawn = [spec.client for spec in many(shape)]
    assert drawn.count("bob") == pytest.approx(250, abs=50) and drawn.count("ann") == 1000 - drawn.count(
        "bob"
    )
    assert [spec.client for spec in many(shape, start=500, num_requests=100)] == drawn[500:600]
    assert {spec.client for spec in many(Shape())} == {None}


def test_labels_of_a_trace_stay_with_their_requests() -> None:
    times, tokens = np.array([30, 10, 20]), np.array([3, 1, 2])
    labels = Labels(["x", "y", "z"], ["ann", None, "bob"], [7, 8, 9], [100, 2, 100])
    rows = cut(ordered_rows(times, tokens, tokens, labels), 1, None)
    specs = Shape().prepare(rows, 50, 0, 3).specs
    told = [(spec.request_id, spec.client, spec.priority, spec.max_tokens) for spec in specs]
    assert told == [("z", "bob", 9, 48), ("x", "ann", 7, 47)]
    first = Shape(priorities={1: 1.0}, max_tokens=40).prepare(cut(rows, 0, 1), 50, 0, 3).specs[0]
    assert (first.request_id, first.priority, first.max_tokens) == ("z", 1, 40)


@pytest.mark.parametrize(
    "bad",
    [
        {"fit_lengths": "squeeze"},
        {"fit_quantile": 0.0},
        {"fit_quantile": 1.5},
        {"max_tokens": 0},
        {"n": 0},
        {"priorities": {}},
        {"priorities": {0: -1.0, 1: 2.0}},
        {"priorities": {0: 0.0}},
        {"priorities": {"high": 1.0}},
        {"clients": {}},
        {"clients": {"ann": 0.0}},
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"stop_token_ids": [3, -1]},
    ],
    ids=str,
)
def test_options_out_of_range_are_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(UserError, match=rf"^(a key of )?(Shape\.|Sampling\.)?{name}(\[\d\]|\.\d)? (is|are) "):
        Shape(**bad)


def test_a_window_of_one_token_is_refused() -> None:
    with pytest.raises(WorkloadError, match="max_model_len is 1"):
        specs_of(rows_of((0, 1, 1)), window=1)


def test_describe() -> None:
    specs = specs_of(rows_of((0, 10, 1), (10**9, 20, 2), (4 * 10**9, 30, 6)))
    row = describe(specs, "three").loc["three"]
    assert row["num_requests"] == 3
    assert row["duration_s"] == 4
    assert row["rate_per_s"] == 0.5
    assert row["interarrival_cv"] == 0.5
    assert row["mean_prompt_tokens"] == 20
    assert row["p50_output_tokens"] == 2
    assert row["p90_total_tokens"] == pytest.approx(22 + 0.8 * 14)
    assert row["max_total_tokens"] == 36


def test_describe_says_what_it_cannot_know() -> None:
    specs = [RequestSpec("a", 0, num_prompt_tokens=4, max_tokens=9)]
    row = describe(specs).loc["workload"]
    assert np.isnan(row["rate_per_s"])
    assert np.isnan(row["interarrival_cv"])
    assert np.isnan(row["mean_output_tokens"])
    assert row["mean_prompt_tokens"] == 4
    with pytest.raises(WorkloadError, match="no requests"):
        describe([])


LONG = ((0, 3000, 600), (10**9, 200, 100), (4 * 10**9, 800, 300))


def figures_of(shape: Shape, window: int) -> dict[str, float]:
    return dict(shape.prepare(rows_of(*LONG), window, 0, 3).figures)


@pytest.mark.parametrize(
    ("fit", "window", "changed", "too_long", "scale_", "tokens"),
    [
        ("none", 4096, 0, 0, 1.0, 5000),
        ("none", 3000, 0, 1, 1.0, 1400),
        ("none", 3500, 1, 0, 1.0, 4900),
        ("clip", 3500, 1, 0, 1.0, 4900),
        ("clip", 1000, 2, 0, 1.0, 2300),
        ("scale", 1800, 3, 0, 0.5, 2500),
    ],
)
def test_what_became_of_the_lengths(
    fit: Any, window: int, changed: int, too_long: int, scale_: float, tokens: int
) -> None:
    assert figures_of(Shape(fit_lengths=fit, fit_quantile=1.0), window) == {
        "offered_rate_per_s": 0.5,
        "workload_num_available": 3,
        "workload_scale": scale_,
        "workload_changed_share": pytest.approx(changed / 3),
        "workload_too_long_share": pytest.approx(too_long / 3),
        "workload_token_share": pytest.approx(tokens / 5000),
    }


def test_a_limit_on_outputs_is_counted() -> None:
    assert figures_of(Shape(max_tokens=200), 4096)["workload_token_share"] == pytest.approx(4500 / 5000)
    assert figures_of(Shape(max_tokens=200), 4096)["workload_changed_share"] == pytest.approx(2 / 3)


def test_lengths_as_they_are_need_no_line() -> None:
    prepared = Shape().prepare(rows_of(*LONG), 4096, 0, 12_031)
    assert prepared.notes == (
        "workload: 3 of 12,031 requests, 0.5 requests/s offered, 1,333 prompt and 333 output tokens on "
        "average",
    )
    assert prepared.warnings == ()


def test_a_workload_that_lost_little_says_so_and_one_that_lost_much_is_a_warning() -> None:
    little = Shape(fit_lengths="clip").prepare(rows_of(*LONG), 3500, 0, 3)
    assert little.notes[1] == (
        "lengths: of 3 requests 1 clipped: 98.0% of their tokens are served in a window of 3,500 "
        "(limits.max_model_len)"
    )
    assert little.warnings == ()
    much = Shape().prepare(rows_of(*LONG), 3000, 0, 3)
    assert len(much.notes) == 1
    assert much.warnings == (
        "lengths: of 3 requests 1 with prompts that fill the window, to be rejected: 28.0% of their "
        "tokens are served in a window of 3,000 (limits.max_model_len); the longest request has 3,600",
    )
    scaled = Shape(fit_lengths="scale", fit_quantile=0.5).prepare(rows_of(*LONG), 550, 0, 3)
    assert "all scaled by 0.5, 1 clipped" in scaled.warnings[0]


def test_a_trace_is_taken_whole_unless_a_limit_says_otherwise_and_then_it_is_said() -> None:
    rows = rows_of(*((i, 1, 1) for i in range(300)))
    assert len(cut(rows, 0, None)) == 300
    assert len(cut(rows, 100, None)) == 200
    assert cut(rows, 0, None).notes == cut(rows, 100, None, 200).notes == cut(rows, 0, 5, 240).notes == ()
    limited = cut(rows, 0, None, 240)
    assert len(limited) == 240
    assert limited.notes == ("only the first 240 of 300 requests: workload.max_requests=null takes all",)
    assert len(cut(rows, 0, 260, 240)) == 260
