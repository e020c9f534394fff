"""A run in numbers: the summary, with the field names of `vllm bench serve` where it has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from engine.telemetry.clients import client_metrics
from engine.telemetry.latency import Pool, distribution, inter_token_ns, latencies, meets
from engine.telemetry.memory import memory_summary
from engine.telemetry.runlog import Log
from engine.telemetry.saturation import saturation
from engine.telemetry.series import span_ns
from engine.telemetry.window import Measure, is_inside, rates_within, requests_within

NS_PER_S = 1e9

UNSERVED = ("aborted", "rejected", "failed", "unfinished")
"""Statuses of requests that did not finish."""

TOTALLED = (
    "duration_ns", "transfer_ns", "num_tokens", "num_seqs", "num_recomputed_tokens", "num_lost_tokens",
    "num_swap_preemptions", "num_recompute_preemptions", "num_fallbacks", "num_blocks_swapped_out",
    "num_blocks_swapped_in", "num_blocks_copied",
)  # fmt: skip
"""Columns of steps.parquet that metrics need the sum of, and nothing else."""


def summarize(
    log: Log, slo_ms: Mapping[str, float] | None = None, measure: Measure | None = None
) -> dict[str, float]:
    """All metrics of a run by name; NaN where one is undefined.

    Latencies in ms and throughputs (requests or tokens a second) count finished requests only; aborted,
    rejected, failed and unfinished ones are counted by their own names. `duration` is in s, from the first
    arrival to the end of the last step. With limits in `slo_ms` (ttft, tpot, e2el) there are
    `request_goodput`, the requests a second that meet all of them, and `slo_attainment`, their share of all
    requests that arrived. If requests have clients there are `num_clients` and `jain_index`
    (see engine.telemetry.clients). `saturated` is explained in engine.telemetry.saturation.

    `measure` leaves warm-up and drain out. Then `duration` is the length of the window that is left; counts,
    totals, latencies and SLO attainment are those of the requests that arrived in it, though they may end
    after it; throughput and goodput are what was finished in it (see `rates_within`); steps, preemptions and
    what they cost those of the steps that began in it; memory is averaged over it. `saturated` is always of
    the whole run.
    """
    if measure is not None and measure.leaves_out(log):
        return _summarize_window(log, slo_ms or {}, measure.window_ns(log))
    first_ns, last_ns = span_ns(log)
    duration_ns, steps = float(last_ns - first_ns), step_totals(log)
    return {
        **request_metrics(log.requests, duration_ns / NS_PER_S, slo_ms or {}),
        **latency_metrics(log.requests, token_gaps(log)),
        **preemption_metrics(log.requests, steps),
        **step_metrics(steps, duration_ns),
        **memory_summary(log),
        **client_metrics(log.requests),
        **saturation(log),
    }


def _summarize_window(log: Log, slo_ms: Mapping[str, float], window_ns: tuple[int, int]) -> dict[str, float]:
    """The metrics of a part of a run."""
    requests, duration_ns = requests_within(log, window_ns), float(window_ns[1] - window_ns[0])
    steps = step_totals(log, window_ns)
    return {
        **request_metrics(requests, duration_ns / NS_PER_S, slo_ms),
        **rates_within(log, window_ns, slo_ms),
        **latency_metrics(requests, token_gaps(log, window_ns)),
        **preemption_metrics(requests, steps),
        **step_metrics(steps, duration_ns),
        **memory_summary(log, window_ns),
        **client_metrics(requests),
        **saturation(log),
    }


def step_totals(log: Log, window_ns: tuple[int, int] | None = None) -> Mapping[str, int]:
    """The columns TOTALLED over all steps, or those that began in a window, and `num_steps`."""
    totals = dict.fromkeys(("num_steps", *TOTALLED), 0)
    for chunk in log.step_chunks("start_ns", *TOTALLED):
        steps = chunk if window_ns is None else chunk[is_inside(chunk["start_ns"], window_ns)]
        totals["num_steps"] += len(steps)
        for name in TOTALLED:
            totals[name] += int(steps[name].sum())
    return totals


def token_gaps(log: Log, window_ns: tuple[int, int] | None = None) -> Pool:
    """The gaps between tokens in ns, of all requests or of those that arrived in a window."""
    gaps = Pool()
    for chunk in log.request_chunks("status", "arrival_ns", "seq_num_output_tokens", "token_times_ns"):
        inside = chunk if window_ns is None else chunk[is_inside(chunk["arrival_ns"], window_ns)]
        gaps.add(inter_token_ns(inside))
    return gaps


def request_metrics(
    requests: pd.DataFrame, duration_s: float, slo_ms: Mapping[str, float]
) -> dict[str, float]:
    """How many requests and tokens, and how many a second."""
    statuses = requests["status"].value_counts()
    finished = requests[requests["status"] == "finished"]
    num_input, num_output = (int(finished[f"num_{side}_tokens"].sum()) for side in ("prompt", "output"))
    metrics: dict[str, float] = {
        "num_requests": len(requests),
        "completed": len(finished),
        **{f"num_{name}": int(statuses.get(name, 0)) for name in UNSERVED},
        "duration": duration_s,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": _ratio(len(finished), duration_s),
        "output_throughput": _ratio(num_output, duration_s),
        "total_token_throughput": _ratio(num_input + num_output, duration_s),
    }
    if slo_ms:
        num_good = int(meets(latencies(requests), slo_ms).sum())
        metrics["request_goodput"] = _ratio(num_good, duration_s)
        metrics["slo_attainment"] = _ratio(num_good, len(requests))
    return metrics


def latency_metrics(requests: pd.DataFrame, gaps: Pool) -> dict[str, float]:
    """Distributions of TTFT, TPOT, ITL, E2EL and the stages of a request, and the mean normalized latency."""
    latency = latencies(requests)
    metrics = distribution(latency["ttft_ms"], "ttft", "ms")
    metrics |= distribution(latency["tpot_ms"], "tpot", "ms")
    metrics |= gaps.distribution("itl", "ms", 1e6)
    for name in ("e2el", "queue", "prefill", "decode"):
        metrics |= distribution(latency[f"{name}_ms"], name, "ms")
    metrics["mean_normalized_latency_s"] = float(latency["normalized_latency_s"].mean())
    return metrics


def preemptions_per_request(requests: pd.DataFrame) -> dict[int, int]:
    """How many requests were preempted how often, whichever way they ended."""
    times = requests["num_swap_preemptions"] + requests["num_recompute_preemptions"]
    counts, numbers = np.unique(times.to_numpy(), return_counts=True)
    return dict(zip(counts.tolist(), numbers.tolist(), strict=True))


def preemption_metrics(requests: pd.DataFrame, steps: Mapping[str, int]) -> dict[str, float]:
    """Preemptions by kind and what they cost.

    recompute_tax = recomputed tokens / all tokens computed. swap_tax = transfer time that is not hidden /
    busy time; transfers are swaps and the copies of copy-on-write.
    """
    num_swap, num_recompute = (steps[f"num_{kind}_preemptions"] for kind in ("swap", "recompute"))
    times = requests["num_swap_preemptions"] + requests["num_recompute_preemptions"]
    num_lost, num_recomputed = steps["num_lost_tokens"], steps["num_recomputed_tokens"]
    return {
        "num_preemptions": num_swap + num_recompute,
        "num_swap_preemptions": num_swap,
        "num_recompute_preemptions": num_recompute,
        "num_fallbacks": steps["num_fallbacks"],
        "num_preempted_requests": int((times > 0).sum()),
        "mean_preemptions_per_request": float(times.mean()),
        "max_preemptions_per_request": float(times.max()),
        "num_lost_tokens": num_lost,
        "lost_tokens_per_preemption": _ratio(num_lost, num_recompute),
        "num_blocks_swapped_out": steps["num_blocks_swapped_out"],
        "num_blocks_swapped_in": steps["num_blocks_swapped_in"],
        "num_blocks_copied": steps["num_blocks_copied"],
        "num_recomputed_tokens": num_recomputed,
        "recompute_tax": _ratio(num_recomputed, steps["num_tokens"]),
        "swap_tax": _ratio(steps["transfer_ns"], steps["duration_ns"]),
    }


def step_metrics(steps: Mapping[str, int], duration_ns: float) -> dict[str, float]:
    """Steps, their length, and the share of time in which one was executed."""
    return {
        "num_steps": steps["num_steps"],
        "mean_step_ms": _ratio(steps["duration_ns"], steps["num_steps"]) / 1e6,
        "mean_tokens_per_step": _ratio(steps["num_tokens"], steps["num_steps"]),
        "mean_seqs_per_step": _ratio(steps["num_seqs"], steps["num_steps"]),
        "busy_share": _ratio(steps["duration_ns"], duration_ns),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else np.nan
