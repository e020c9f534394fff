"""timeline.json: a run in the Chrome trace format, which Perfetto (ui.perfetto.dev) opens.

One track of steps, counters of queues and memory, and one span for each request with its phases in it.
Times are microseconds; the format is described in "Trace Event Format" (Google, 2016).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator
from itertools import pairwise, takewhile
from pathlib import Path

import pandas as pd

from engine.telemetry.runlog import Log
from engine.telemetry.schema import Phase
from engine.telemetry.series import series_chunks, time_series

TraceEvent = dict[str, object]

MAX_REQUESTS = 1000
MAX_STEPS = 50_000
"""About 30 MB of JSON; viewers become slow beyond."""

STEP_ARGS = (
    "num_tokens", "num_prefill_tokens", "num_decode_tokens", "num_recomputed_tokens", "num_seqs",
    "num_blocks_swapped_out", "num_blocks_swapped_in", "num_blocks_copied", "num_rejections",
)  # fmt: skip
COUNTERS = {
    "requests": ("num_running", "num_waiting", "num_swapped"),
    "free device blocks": ("num_free_blocks",),
    "free host blocks": ("num_free_host_blocks",),
    "KV tokens": ("num_kv_tokens", "num_written_tokens"),
}


def write_timeline(
    log: Log, path: Path, max_requests: int = MAX_REQUESTS, max_steps: int = MAX_STEPS
) -> None:
    """Write the trace; a longer run is cut to its first requests and steps, and `otherData` says so."""
    steps, requests = _head(log.step_chunks(), max_steps), _head(log.request_chunks(), max_requests)
    end_ns = int(steps["end_ns"].max()) if len(steps) else 0
    other = {
        "world": log.world.value,
        "requests": f"first {len(requests)} of {len(log.requests)}",
        "steps": f"first {len(steps)} of {log.num_steps}",
    }
    shown = takewhile(lambda series: series["begin_ns"].iloc[0] <= end_ns, series_chunks(log))
    series = pd.concat([series[series["begin_ns"] <= end_ns] for series in shown] or [time_series(log)])
    events = [*_names(), *_steps(steps), *_counters(series), *_requests(requests, end_ns)]
    trace = {"displayTimeUnit": "ms", "otherData": other, "traceEvents": events}
    path.write_text(json.dumps(trace, separators=(",", ":")) + "\n", encoding="utf-8")


def _head(chunks: Iterable[pd.DataFrame], max_rows: int) -> pd.DataFrame:
    """The first rows."""
    head: list[pd.DataFrame] = []
    for chunk in chunks:
        head.append(chunk.head(max_rows - sum(map(len, head))))
        if sum(map(len, head)) >= max_rows:
            break
    return pd.concat(head, ignore_index=True)


def _event(phase: str, name: str, time_ns: int, **fields: object) -> TraceEvent:
    return {"ph": phase, "name": name, "ts": time_ns / 1000, "pid": 1, "tid": 1, **fields}


def _names() -> Iterator[TraceEvent]:
    yield {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "engine"}}
    yield {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "steps"}}
    yield {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "requests"}}


def _steps(steps: pd.DataFrame) -> Iterator[TraceEvent]:
    parts = [name for name in steps.columns if name.startswith("part_")]
    for row in steps.to_dict("records"):
        args = {name: row[name] for name in STEP_ARGS} | {name: round(row[name]) for name in parts}
        span_us = (row["end_ns"] - row["start_ns"]) / 1000
        yield _event("X", _kind(row), row["start_ns"], dur=span_us, args={"step_id": row["step_id"], **args})


def _kind(step: dict[Hashable, int]) -> str:
    if not step["num_prefill_tokens"]:
        return "decode" if step["num_decode_tokens"] else "moves"
    return "mixed" if step["num_decode_tokens"] else "prefill"


def _counters(series: pd.DataFrame) -> Iterator[TraceEvent]:
    """A value for each moment at which one changes."""
    for name, columns in COUNTERS.items():
        last: dict[Hashable, int] = {}
        rows = zip(series["begin_ns"].tolist(), series[list(columns)].to_dict("records"), strict=True)
        for begin_ns, values in rows:
            if values != last:
                yield _event("C", name, begin_ns, args=values)
            last = values


def _requests(requests: pd.DataFrame, end_ns: int) -> Iterator[TraceEvent]:
    """A span from arrival to end; in it, back to back, its phases; an instant where it was preempted."""
    for row in requests.to_dict("records"):
        about = {"pid": 2, "cat": "request", "id": row["request_id"]}
        phases = list(zip(row["phases"], map(int, row["phase_times_ns"]), strict=True))
        if phases[-1][0] != Phase.ENDED:
            phases.append((Phase.ENDED.value, max(end_ns, phases[-1][1])))
        args = {name: row[name] for name in ("status", "reason", "num_prompt_tokens", "num_output_tokens")}
        yield _event("b", row["request_id"], phases[0][1], args=args, **about)
        for (phase, begin_ns), (following, finish_ns) in pairwise(phases):
            yield _event("b", phase, begin_ns, **about)
            yield _event("e", phase, finish_ns, **about)
            if phase == Phase.RUNNING and following != Phase.ENDED:
                kind = "swap" if following == Phase.SWAPPED else "recompute"
                yield _event("n", f"preempted ({kind})", finish_ns, **about)
        yield _event("e", row["request_id"], phases[-1][1], **about)
