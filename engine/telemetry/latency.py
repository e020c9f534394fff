"""Latencies of requests, as `vllm bench serve` defines them, counted from the scheduled arrival."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from engine.core.errors import UserError

Ints = NDArray[np.int64]

PERCENTILES = (90, 95, 99)


def distribution(values: ArrayLike, name: str, unit: str) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles as `mean_<name>_<unit>` and so on.

    NaN values (undefined) are left out; without values every statistic is NaN. Percentiles interpolate
    linearly and the deviation is the population's: the defaults of numpy, as in `vllm bench serve`.
    """
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if not len(sample):
        sample = np.array([np.nan])
    statistics = {"mean": sample.mean(), "median": np.median(sample), "std": sample.std()}
    statistics |= {f"p{q}": np.percentile(sample, q, method="linear") for q in PERCENTILES}
    return {f"{statistic}_{name}_{unit}": float(value) for statistic, value in statistics.items()}


def latencies(requests: pd.DataFrame) -> pd.DataFrame:
    """One row for each finished request, indexed by request_id: ttft_ms, tpot_ms, e2el_ms and their stages.

    TTFT = first token - arrival; E2EL = last token - arrival; TPOT = (E2EL - TTFT) / (output tokens - 1),
    NaN for a single token; queue time = first scheduled - arrival; prefill time = first token - first
    scheduled; decode time = last - first token; normalized latency = E2EL / output tokens, in s a token
    (Orca; vLLM, section 6.1). A request with several sequences counts the output tokens of the longest: its
    sequences advance together.
    """
    finished = requests[requests["status"] == "finished"]
    times = {
        name: finished[f"{name}_ns"].to_numpy(dtype=np.int64)
        for name in ("arrival", "first_scheduled", "first_token", "last_token")
    }
    num_tokens = np.array([counts.max() for counts in finished["seq_num_output_tokens"]], dtype=np.float64)
    decode_ms = (times["last_token"] - times["first_token"]) / 1e6
    e2el_ms = (times["last_token"] - times["arrival"]) / 1e6
    gaps = np.where(num_tokens > 1, num_tokens - 1, np.nan)
    columns = {
        "ttft_ms": (times["first_token"] - times["arrival"]) / 1e6,
        "tpot_ms": decode_ms / gaps,
        "e2el_ms": e2el_ms,
        "queue_ms": (times["first_scheduled"] - times["arrival"]) / 1e6,
        "prefill_ms": (times["first_token"] - times["first_scheduled"]) / 1e6,
        "decode_ms": decode_ms,
        "normalized_latency_s": e2el_ms / 1e3 / num_tokens,
    }
    return pd.DataFrame(columns, index=pd.Index(finished["request_id"], name="request_id"), dtype="float64")


def inter_token_ns(requests: pd.DataFrame) -> Ints:
    """ITL: the gaps between consecutive tokens of each sequence, pooled over all finished requests."""
    finished = requests[requests["status"] == "finished"]
    if not len(finished):
        return np.empty(0, dtype=np.int64)
    times_ns = np.concatenate([np.asarray(times, dtype=np.int64) for times in finished["token_times_ns"]])
    num_tokens = np.concatenate([np.asarray(counts) for counts in finished["seq_num_output_tokens"]])
    gaps_ns = np.diff(times_ns)
    within = np.ones(len(gaps_ns), dtype=bool)
    # The gap before the first token of every sequence but the first is no gap of a sequence.
    begins = np.cumsum(num_tokens)[:-1]
    within[begins[(begins > 0) & (begins < len(times_ns))] - 1] = False
    return gaps_ns[within]


class Pool:
    """Values of which many are equal, as the gaps of all tokens of a step are: each is kept once."""

    def __init__(self) -> None:
        self._values = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[Ints, Ints]] = []
        self._num_pending = 0

    def add(self, values: Ints) -> None:
        """Some more values."""
        unique, counts = np.unique(values, return_counts=True)
        self._pending.append((unique, counts))
        self._num_pending += len(unique)
        if 4 * self._num_pending > len(self._values):  # so that time stays nearly linear
            self._merge()

    def distribution(self, name: str, unit: str, size: float) -> dict[str, float]:
        """As `latency.distribution` of the values in units of `size`."""
        self._merge()
        values, counts, num = self._values / size, self._counts, int(self._counts.sum())
        if not num:
            return distribution(values, name, unit)
        mean = float((values * counts).sum()) / num
        statistics = {"mean": mean, "median": self._quantile(0.5) / size}
        statistics["std"] = float(np.sqrt(((values - mean) ** 2 * counts).sum() / num))
        statistics |= {f"p{q}": self._quantile(q / 100) / size for q in PERCENTILES}
        return {f"{statistic}_{name}_{unit}": value for statistic, value in statistics.items()}

    def _quantile(self, share: float) -> float:
        """Interpolated linearly between the values at the places around share x (number - 1)."""
        ends = np.cumsum(self._counts)
        place = share * (int(ends[-1]) - 1)
        around = np.floor(place), np.ceil(place)
        low, high = (self._values[np.searchsorted(ends, at, "right")] for at in around)
        return float(low + (high - low) * (place - np.floor(place)))

    def _merge(self) -> None:
        """Take in what is pending; into sorted arrays, since sorting all again would take more memory."""
        if not self._pending:
            return
        pending, pending_counts = (np.concatenate(columns) for columns in zip(*self._pending, strict=True))
        self._pending, self._num_pending = [], 0
        values, places = np.unique(pending, return_inverse=True)
        counts = np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, places, pending_counts)
        at = np.searchsorted(self._values, values)
        is_known = np.append(self._values, -1)[at] == values  # gaps are not negative
        self._counts[at[is_known]] += counts[is_known]
        self._values = np.insert(self._values, at[~is_known], values[~is_known])
        self._counts = np.insert(self._counts, at[~is_known], counts[~is_known])


def meets(latency: pd.DataFrame, slo_ms: Mapping[str, float]) -> pd.Series:
    """Which finished requests keep every limit of `slo_ms`, by name: ttft, tpot, e2el.

    A request of one token has no TPOT and so keeps any limit on it.

    Raises:
        ValueError: a limit has another name.
    """
    good = pd.Series(True, index=latency.index)
    for name, limit_ms in slo_ms.items():
        if name not in ("ttft", "tpot", "e2el"):
            raise UserError(f"SLO {name!r} is not known: use ttft, tpot or e2el, in ms")
        good &= ~(latency[f"{name}_ms"] > limit_ms)
    return good
