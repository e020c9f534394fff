"""A run in numbers: the summary, with the field names of `vllm bench serve` where it has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from engine.telemetry.clients import client_metrics
from engine.telemetry.latency import distribution, inter_token_ms, latencies, meets
from engine.telemetry.memory import memory_summary
from engine.telemetry.runlog import RunLog
from engine.telemetry.saturation import saturation
from engine.telemetry.series import span_ns
from engine.telemetry.window import Measure, rates_within, within

NS_PER_S = 1e9

UNSERVED = ("aborted", "rejected", "failed", "unfinished")
"""Statuses of requests that did not finish."""


def summarize(
    log: RunLog, slo_ms: Mapping[str, float] | None = None, measure: Measure | None = None
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
    duration_ns = float(last_ns - first_ns)
    return {
        **request_metrics(log.requests, duration_ns / NS_PER_S, slo_ms or {}),
        **latency_metrics(log.requests),
        **preemption_metrics(log),
        **step_metrics(log.steps, duration_ns),
        **memory_summary(log),
        **client_metrics(log.requests),
        **saturation(log),
    }


def _summarize_window(
    log: RunLog, slo_ms: Mapping[str, float], window_ns: tuple[int, int]
) -> dict[str, float]:
    """The metrics of a part of a run."""
    part, duration_ns = within(log, window_ns), float(window_ns[1] - window_ns[0])
    return {
        **request_metrics(part.requests, duration_ns / NS_PER_S, slo_ms),
        **rates_within(log, window_ns, slo_ms),
        **latency_metrics(part.requests),
        **preemption_metrics(part),
        **step_metrics(part.steps, duration_ns),
        **memory_summary(log, window_ns),
        **client_metrics(part.requests),
        **saturation(log),
    }


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


def latency_metrics(requests: pd.DataFrame) -> dict[str, float]:
    """Distributions of TTFT, TPOT, ITL, E2EL and the stages of a request, and the mean normalized latency."""
    latency = latencies(requests)
    metrics = distribution(latency["ttft_ms"], "ttft", "ms")
    metrics |= distribution(latency["tpot_ms"], "tpot", "ms")
    metrics |= distribution(inter_token_ms(requests), "itl", "ms")
    for name in ("e2el", "queue", "prefill", "decode"):
        metrics |= distribution(latency[f"{name}_ms"], name, "ms")
    metrics["mean_normalized_latency_s"] = float(latency["normalized_latency_s"].mean())
    return metrics


def preemptions_per_request(requests: pd.DataFrame) -> dict[int, int]:
    """How many requests were preempted how often, whichever way they ended."""
    times = requests["num_swap_preemptions"] + requests["num_recompute_preemptions"]
    counts, numbers = np.unique(times.to_numpy(), return_counts=True)
    return dict(zip(counts.tolist(), numbers.tolist(), strict=True))


def preemption_metrics(log: RunLog) -> dict[str, float]:
    """Preemptions by kind and what they cost.

    recompute_tax = recomputed tokens / all tokens computed. swap_tax = transfer time that is not hidden /
    busy time; transfers are swaps and the copies of copy-on-write.
    """
    steps, requests = log.steps, log.requests
    num_swap, num_recompute = (int(steps[f"num_{kind}_preemptions"].sum()) for kind in ("swap", "recompute"))
    times = requests["num_swap_preemptions"] + requests["num_recompute_preemptions"]
    num_lost, num_recomputed = int(steps["num_lost_tokens"].sum()), int(steps["num_recomputed_tokens"].sum())
    return {
        "num_preemptions": num_swap + num_recompute,
        "num_swap_preemptions": num_swap,
        "num_recompute_preemptions": num_recompute,
        "num_fallbacks": int(steps["num_fallbacks"].sum()),
        "num_preempted_requests": int((times > 0).sum()),
        "mean_preemptions_per_request": float(times.mean()),
        "max_preemptions_per_request": float(times.max()),
        "num_lost_tokens": num_lost,
        "lost_tokens_per_preemption": _ratio(num_lost, num_recompute),
        "num_blocks_swapped_out": int(steps["num_blocks_swapped_out"].sum()),
        "num_blocks_swapped_in": int(steps["num_blocks_swapped_in"].sum()),
        "num_blocks_copied": int(steps["num_blocks_copied"].sum()),
        "num_recomputed_tokens": num_recomputed,
        "recompute_tax": _ratio(num_recomputed, int(steps["num_tokens"].sum())),
        "swap_tax": _ratio(float(steps["transfer_ns"].sum()), float(steps["duration_ns"].sum())),
    }


def step_metrics(steps: pd.DataFrame, duration_ns: float) -> dict[str, float]:
    """Steps, their length, and the share of time in which one was executed."""
    return {
        "num_steps": len(steps),
        "mean_step_ms": float(steps["duration_ns"].mean()) / 1e6,
        "mean_tokens_per_step": float(steps["num_tokens"].mean()),
        "mean_seqs_per_step": float(steps["num_seqs"].mean()),
        "busy_share": _ratio(float(steps["duration_ns"].sum()), duration_ns),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else np.nan
