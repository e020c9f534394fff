"""Metrics by client, and how fairly the clients were served."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.telemetry.agreement import jain_index
from engine.telemetry.latency import PERCENTILES, latencies

OUTPUT_WEIGHT = 2
"""What an output token counts where a prompt token counts 1, as in Sheng et al., "Fairness in Serving Large
Language Models", OSDI 2024, section 3."""

LATENCIES = ("ttft", "tpot", "e2el")


def client_table(requests: pd.DataFrame) -> pd.DataFrame:
    """One row for each client, by name; none if no request names one. Requests without a client are left out.

    `num_requests` and `completed` count requests; the tokens are those of all of them, however they ended:
    the prompt from the first output token on, and each output token. Latencies in ms count finished requests,
    as in the summary. `service` = prompt + 2 x output tokens; `backlog_s` is the time during which some
    request of the client had arrived and not ended; `service_rate` = service / backlog, NaN without one.
    """
    named = requests[requests["client"].notna()]
    rows = {str(client): _client(group) for client, group in named.groupby("client", sort=True)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS)).rename_axis("client")


COLUMNS = (
    "num_requests", "completed", "total_input_tokens", "total_output_tokens",
    *(f"{statistic}_{name}_ms" for name in LATENCIES for statistic in ("mean", "p99")),
    "service", "backlog_s", "service_rate",
)  # fmt: skip


def client_metrics(requests: pd.DataFrame) -> dict[str, float]:
    """`num_clients`, and `jain_index` over their service rates; nothing if no request names a client.

    A rate of service, not the service itself: a client that comes seldom is not treated unfairly. Below
    saturation all get what they ask for, and the index shows how unequal that is: compare policies above it.
    Who had no backlog (all its requests were rejected at once) has no rate and is left out.
    """
    table = client_table(requests)
    if not len(table):
        return {}
    return {"num_clients": len(table), "jain_index": jain_index(table["service_rate"].dropna().tolist())}


def _client(requests: pd.DataFrame) -> dict[str, float]:
    latency = latencies(requests)
    num_output = int(requests["num_output_tokens"].sum())
    num_input = int(requests.loc[requests["num_output_tokens"] > 0, "num_prompt_tokens"].sum())
    service, backlog_s = num_input + OUTPUT_WEIGHT * num_output, _backlog_ns(requests) / 1e9
    row: dict[str, float] = {"num_requests": len(requests), "completed": len(latency)}
    row |= {"total_input_tokens": num_input, "total_output_tokens": num_output}
    for name in LATENCIES:
        values = latency[f"{name}_ms"].dropna().to_numpy()
        row[f"mean_{name}_ms"] = float(values.mean()) if len(values) else np.nan
        row[f"p99_{name}_ms"] = float(np.percentile(values, PERCENTILES[-1])) if len(values) else np.nan
    return row | {
        "service": service,
        "backlog_s": backlog_s,
        "service_rate": service / backlog_s if backlog_s else np.nan,
    }


def _backlog_ns(requests: pd.DataFrame) -> int:
    """The length of the union of the times from arrival to end; one that has not ended: to its last token."""
    ends = requests["end_ns"].fillna(requests["last_token_ns"]).fillna(requests["arrival_ns"])
    order = np.argsort(requests["arrival_ns"].to_numpy(), kind="stable")
    begin_ns = requests["arrival_ns"].to_numpy()[order]
    until_ns = np.maximum.accumulate(ends.to_numpy(dtype=np.int64)[order])
    fresh = np.maximum(begin_ns, np.append(begin_ns[0], until_ns[:-1]))
    return int(np.maximum(until_ns - fresh, 0).sum())
