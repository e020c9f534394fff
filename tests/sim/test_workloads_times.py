"""Stamps: exact whatever they count from, refused with their place, and spread only where they are ticks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import UserError
from sim.streams import stream
from sim.workloads.arrivals import GammaArrivals
from sim.workloads.azure import AzureTrace
from sim.workloads.base import WorkloadError
from sim.workloads.mooncake import MooncakeTrace
from sim.workloads.ticks import detect_tick_ns, spread

MS = 10**6
EPOCH = {"s": 1_700_000_000, "ms": 1_700_000_000_123, "us": 1_700_000_000_123_456}
EPOCH["ns"] = EPOCH["us"] * 1000 + 789


def trace(tmp_path: Path, stamps: Iterable[float]) -> str:
    path = tmp_path / "trace.jsonl"
    rows = ({"timestamp": t, "input_length": 800, "output_length": 20} for t in stamps)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def arrivals(tmp_path: Path, stamps: Iterable[float], **options: Any) -> list[int]:
    specs = MooncakeTrace(trace(tmp_path, stamps), **options).requests(4096)
    return [spec.arrival_ns for spec in specs]


def bursts(num_bursts: int, gap_ms: int = 10_000, in_burst: int = 40) -> list[int]:
    return [gap_ms * burst + i for burst in range(num_bursts) for i in range(in_burst)]


@pytest.mark.parametrize("num_bursts", [4, 30])
def test_bursts_with_stamps_in_milliseconds_are_replayed_as_recorded(tmp_path: Path, num_bursts: int) -> None:
    """A burst of 40 requests in 39 ms, every 10 s: a load of its own, and no artefact of a log."""
    stamps = bursts(num_bursts)
    assert arrivals(tmp_path, stamps) == [t * MS for t in stamps]
    assert MooncakeTrace(trace(tmp_path, stamps)).prepare(4096).notes[1:] == ()


def jittered(tick_ms: int, num_ticks: int, mean: float, seed: int = 0) -> list[int]:
    """Stamps of a log in ticks: some ticks are empty, and each stamp is up to 3 ms beside its tick."""
    rng = stream(seed, "test/ticks")
    counts = rng.poisson(mean, num_ticks)
    at = np.repeat(np.arange(num_ticks) * tick_ms, counts) + 3
    return sorted((at + np.repeat(rng.integers(-3, 4, num_ticks), counts)).tolist())


@pytest.mark.parametrize("mean", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("tick_ms", [500, 1000, 3000, 7000, 60_000])
def test_ticks_are_found_whatever_they_are(tick_ms: int, mean: float) -> None:
    times_ns = np.array(jittered(tick_ms, 1000, mean), np.int64) * MS
    assert detect_tick_ns(times_ns - times_ns[0]) == tick_ms * MS


@given(st.integers(0, 1000), st.sampled_from([1, 20, 300]), st.integers(2, 3000))
def test_arrivals_of_a_generator_have_no_ticks(seed: int, rate: int, num_requests: int) -> None:
    times_ns = GammaArrivals(0.3).times_ns(stream(seed, "test"), num_requests, rate)
    assert detect_tick_ns(times_ns // MS * MS) is None


def test_requests_that_are_paced_have_no_ticks() -> None:
    assert detect_tick_ns(np.arange(100) * 1000 * MS) is None
    assert detect_tick_ns(np.repeat(np.arange(100), 5) * 1000 * MS) == 1000 * MS


def test_what_was_spread_is_said(tmp_path: Path) -> None:
    stamps = jittered(3000, 200, 5.0)
    workload = MooncakeTrace(trace(tmp_path, stamps))
    (note,) = workload.prepare(4096).notes[1:]
    assert "100.0% of the stamps lie at multiples of 3 s" in note and "workload.tick_s=null" in note
    assert workload.read().arrival_ns.tolist() == spread(
        (np.array(stamps) - stamps[0]) * MS, 3000 * MS, stream(0, "workload/ticks")
    ).tolist()  # fmt: skip


def test_a_tick_of_the_user_is_taken_and_said_to_be_none(tmp_path: Path) -> None:
    stamps = bursts(4)
    workload = MooncakeTrace(trace(tmp_path, stamps), tick_s=3.0)
    assert [spec.arrival_ns for spec in workload.requests(4096)] != [t * MS for t in stamps]
    assert "13.8% of the stamps lie at multiples of 3 s" in workload.prepare(4096).notes[1]


@pytest.mark.parametrize("tick_s", [0, -1.0, 1e-12, 1e300, "3 s"])
def test_ticks_that_are_none(tick_s: Any) -> None:
    with pytest.raises(UserError, match="tick_s is"):
        MooncakeTrace("trace.jsonl", tick_s=tick_s)


@pytest.mark.parametrize("first", [0, 5, EPOCH["ms"]])
def test_stamps_count_from_anything(tmp_path: Path, first: int) -> None:
    assert arrivals(tmp_path, [first, first + 1, first + 2500]) == [0, MS, 2500 * MS]


def test_fractions_of_a_millisecond(tmp_path: Path) -> None:
    assert arrivals(tmp_path, [0.25, 1.75, 2999]) == [0, 1_500_000, 2_998_750_000]


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_stamps_in_another_unit_since_1970_are_refused(tmp_path: Path, unit: str) -> None:
    stamps = [EPOCH[unit], EPOCH[unit] + 7]
    message = rf"trace\.jsonl, line 1, column timestamp: {EPOCH[unit]} looks like {unit} since 1970, but ms"
    with pytest.raises(WorkloadError, match=f"{message}.*set workload.time_unit={unit}"):
        arrivals(tmp_path, stamps)
    step_ns = {"s": 10**9, "us": 1000, "ns": 1}[unit]
    assert arrivals(tmp_path, stamps, time_unit=unit) == [0, 7 * step_ns]
    assert arrivals(tmp_path, stamps, time_unit="ms") == [0, 7 * MS]


def test_a_unit_that_is_none() -> None:
    with pytest.raises(UserError, match="time_unit is"):
        MooncakeTrace("trace.jsonl", time_unit="minutes")  # type: ignore[arg-type]


@pytest.mark.parametrize("late", [10**16, 10**18, 2**62, 1e18])
def test_a_stamp_far_from_the_others_is_refused_with_its_place(tmp_path: Path, late: float) -> None:
    message = r"trace\.jsonl, line 3, column timestamp: lies more than 10 years after the earliest .* line 2"
    with pytest.raises(WorkloadError, match=message):
        arrivals(tmp_path, [7, 5, late, 9])


@pytest.mark.parametrize("cell", ['"5"', "-1", "true", "null", "NaN", "Infinity", "1e400", "9" * 400])
def test_stamps_that_are_none(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"timestamp": {cell}, "input_length": 8, "output_length": 2}}\n')
    with pytest.raises(WorkloadError, match=r"line 1, column timestamp: .* is not a time"):
        MooncakeTrace(str(path)).requests(4096)


def azure(tmp_path: Path, *stamps: str) -> AzureTrace:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{t},10,5\n" for t in stamps))
    return AzureTrace(str(path))


@pytest.mark.parametrize("year", [1, 1600, 1970, 2262, 2263, 9999])
def test_every_year_is_exact(tmp_path: Path, year: int) -> None:
    stamps = [f"{year:04d}-05-10 00:00:0{s}.0000001" for s in (1, 3)]
    assert [spec.arrival_ns for spec in azure(tmp_path, *stamps).requests(512)] == [0, 2 * 10**9]


def test_years_apart_are_refused_with_their_place(tmp_path: Path) -> None:
    message = r"trace\.csv, line 3, column TIMESTAMP: lies more than 10 years after the earliest .* line 4"
    with pytest.raises(WorkloadError, match=message):
        azure(tmp_path, "2023-01-01 00:00:00", "2323-01-01 00:00:00", "1970-01-01 00:00:00").requests(512)


@pytest.mark.parametrize(
    ("option", "value"),
    [("rate_per_s", 1e-12), ("rate_per_s", 5e-324), ("time_factor", 1e12), ("time_factor", 1e300)],
)
def test_arrivals_are_not_stretched_beyond_all_times(tmp_path: Path, option: str, value: float) -> None:
    path = azure(tmp_path, "2023-01-01 00:00:00", "2023-01-01 00:00:01").path
    with pytest.raises(
        WorkloadError, match=rf"workload\.{option} is {re.escape(str(value))}: the last request"
    ):
        AzureTrace(path, **{option: value}).requests(512)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [1e-9, 5e-324])
def test_generated_arrivals_end_before_all_times(rate: float) -> None:
    with pytest.raises(WorkloadError, match="years after the first"):
        GammaArrivals().times_ns(stream(0, "test"), 100, rate)
