from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from engine.telemetry.timeline import write_timeline
from tests.telemetry.scripted import two_requests
from tests.telemetry.test_series import with_gaps


def trace(tmp_path: Path, **limits: int) -> dict[str, Any]:
    path = tmp_path / "timeline.json"
    write_timeline(two_requests().log(), path, **limits)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_every_begin_has_its_end_and_spans_nest(tmp_path: Path) -> None:
    open_spans: dict[str, list[tuple[str, float]]] = {}
    num_spans = 0
    for event in trace(tmp_path)["traceEvents"]:
        if event["ph"] == "b":
            open_spans.setdefault(event["id"], []).append((event["name"], event["ts"]))
            num_spans += 1
        elif event["ph"] == "e":
            name, begin_us = open_spans[event["id"]].pop()
            assert name == event["name"] and begin_us <= event["ts"]
    assert open_spans == {"a": [], "b": []}
    assert num_spans == 2 + 4 + 4


def test_steps_are_complete_events_in_microseconds(tmp_path: Path) -> None:
    steps = [event for event in trace(tmp_path)["traceEvents"] if event["ph"] == "X"]
    assert [(step["ts"], step["dur"]) for step in steps[:2]] == [(0, 10_000), (10_000, 10_000)]
    assert [step["name"] for step in steps] == ["prefill", "mixed", *["decode"] * 3, "prefill", "prefill"]
    assert steps[1]["args"]["num_tokens"] == 7 and steps[1]["args"]["part_linear_ns"] == 7_000_000


def test_phases_preemptions_and_counters(tmp_path: Path) -> None:
    events = trace(tmp_path)["traceEvents"]
    assert all({"ph", "name", "pid"} <= event.keys() for event in events)
    swapped = [event for event in events if event["name"] == "swapped"]
    assert [(event["ph"], event["ts"], event["id"]) for event in swapped] == [
        ("b", 20_000, "a"),
        ("e", 40_000, "a"),
    ]
    marks = [(event["name"], event["id"], event["ts"]) for event in events if event["ph"] == "n"]
    assert marks == [("preempted (swap)", "a", 20_000), ("preempted (recompute)", "b", 50_000)]
    free = [event["args"]["num_free_blocks"] for event in events if event["name"] == "free device blocks"]
    assert free == [6, 4, 6, 4, 6, 7, 6, 8]
    assert Counter(event["ph"] for event in events)["M"] == 3


def test_counters_drop_to_nothing_in_idle_gaps(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    write_timeline(with_gaps(), path)
    counters: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for event in json.loads(path.read_text())["traceEvents"]:
        for name, value in event["args"].items() if event["ph"] == "C" else ():
            counters.setdefault((event["name"], name), []).append((event["ts"] / 1000, value))
    assert counters["requests", "num_running"] == [(0, 0), (1, 1), (13, 0), (90, 1), (100, 0)]
    assert counters["free device blocks", "num_free_blocks"] == [(0, 8), (1, 0), (13, 8), (90, 0), (100, 8)]
    held = [(0, 0), (1, 0), (10, 4), (13, 0), (90, 0), (95, 4), (100, 0)]
    assert counters["KV tokens", "num_kv_tokens"] == held


def test_a_long_run_is_cut_and_says_so(tmp_path: Path) -> None:
    cut = trace(tmp_path, max_requests=1, max_steps=3)
    assert cut["otherData"] == {"world": "simulated", "requests": "first 1 of 2", "steps": "first 3 of 7"}
    assert {event["id"] for event in cut["traceEvents"] if event["ph"] == "b"} == {"a"}
    assert sum(event["ph"] == "X" for event in cut["traceEvents"]) == 3


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_timeline(two_requests().log(), first)
    write_timeline(two_requests().log(), second)
    assert first.read_bytes() == second.read_bytes()
