"""The part of a run that is measured: without its warm-up and its drain, if they are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd

from engine.core.fields import AtLeast, Below, check_fields
from engine.telemetry.latency import latencies, meets
from engine.telemetry.runlog import Log
from engine.telemetry.series import span_ns

Part = Annotated[float, AtLeast(0), Below(0.5)]


@dataclass(frozen=True, slots=True)
class Measure:
    """Which shares of the requests, by arrival, are left out: the first, which find an empty system, and the
    last, which are served while it drains.

    The window opens when the first request that counts arrives, and closes when the first of the last ones
    does, so what is served after the last arrival is left out too as soon as `cool_down` leaves anything out.
    """

    warm_up: Part = 0.0
    cool_down: Part = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def window_ns(self, log: Log) -> tuple[int, int]:
        """When the window opens and closes; all of `span_ns` if nothing is left out."""
        begin_ns, end_ns = span_ns(log)
        arrivals = np.sort(log.requests["arrival_ns"].to_numpy())
        num_first, num_last = (int(share * len(arrivals)) for share in (self.warm_up, self.cool_down))
        if num_first:
            begin_ns = int(arrivals[num_first])
        if num_last:
            end_ns = int(arrivals[-num_last])
        return begin_ns, end_ns

    def leaves_out(self, log: Log) -> bool:
        """Whether the window is less than the run."""
        return self.window_ns(log) != span_ns(log)


def requests_within(log: Log, window_ns: tuple[int, int]) -> pd.DataFrame:
    """The requests that arrived while the window was open."""
    return log.requests[is_inside(log.requests["arrival_ns"], window_ns)]


def rates_within(log: Log, window_ns: tuple[int, int], slo_ms: Mapping[str, float]) -> dict[str, float]:
    """Throughput in a window: what left the system in it, whenever it arrived, over its length.

    Counted are requests whose last token, output tokens that, and prompts whose first token came while the
    window was open; of finished requests only. Goodput counts requests as throughput does.
    """
    duration_s = (window_ns[1] - window_ns[0]) / 1e9
    finished = log.requests[log.requests["status"] == "finished"].set_index("request_id")
    if not duration_s or finished.empty:
        return {}
    ended = is_inside(finished["last_token_ns"], window_ns)
    num_output = sum(
        _num_tokens(chunk, window_ns) for chunk in log.request_chunks("status", "token_times_ns")
    )
    begun = is_inside(finished["first_token_ns"], window_ns)
    num_input = int(finished["num_prompt_tokens"][begun].sum())
    rates = {
        "request_throughput": int(ended.sum()) / duration_s,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
    }
    if slo_ms:
        rates["request_goodput"] = int((meets(latencies(log.requests), slo_ms) & ended).sum()) / duration_s
    return rates


def _num_tokens(requests: pd.DataFrame, window_ns: tuple[int, int]) -> int:
    """Output tokens of finished requests that came in the window."""
    times_ns = [*requests["token_times_ns"][requests["status"] == "finished"]]
    return int(is_inside(pd.Series(np.concatenate(times_ns)), window_ns).sum()) if times_ns else 0


def clipped(series: pd.DataFrame, window_ns: tuple[int, int]) -> pd.DataFrame:
    """The part of a time series (begin_ns, until_ns) that lies in the window."""
    inside = series.assign(
        begin_ns=series["begin_ns"].clip(*window_ns), until_ns=series["until_ns"].clip(*window_ns)
    )
    return inside[inside["begin_ns"] < inside["until_ns"]]


def is_inside(times_ns: pd.Series, window_ns: tuple[int, int]) -> pd.Series:
    """Which of some times lie in the window."""
    return (times_ns >= window_ns[0]) & (times_ns < window_ns[1])
