"""Tables that a person reads at the end of a run: rich, but complete without colours and at 100 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

Summary = Mapping[str, float]

SECTIONS = {
    "requests": ("completed", "num_rejected", "num_failed", "num_aborted", "num_unfinished", "duration"),
    "throughput": ("request_throughput", "output_throughput", "total_token_throughput", "request_goodput"),
    "TTFT": ("mean_ttft_ms", "median_ttft_ms", "p90_ttft_ms", "p99_ttft_ms"),
    "TPOT": ("mean_tpot_ms", "median_tpot_ms", "p90_tpot_ms", "p99_tpot_ms"),
    "ITL": ("mean_itl_ms", "median_itl_ms", "p90_itl_ms", "p99_itl_ms"),
    "E2E latency": ("mean_e2el_ms", "median_e2el_ms", "p90_e2el_ms", "p99_e2el_ms"),
    "preemption": (
        "num_preemptions", "num_fallbacks", "num_preempted_requests", "lost_tokens_per_preemption",
        "num_blocks_swapped_out", "recompute_tax", "swap_tax",
    ),
    "memory": (
        "mean_block_usage", "mean_token_usage", "mean_written_share", "mean_reserved_share",
        "mean_internal_share", "mean_tail_waste_tokens", "sharing_saving",
    ),
    "clients": ("num_clients", "jain_index"),
}  # fmt: skip
"""What the summary table shows, by the names of summary.json."""

MAX_CLIENTS = 10
CLIENT_COLUMNS = {
    "requests": "num_requests",
    "completed": "completed",
    "output tokens": "total_output_tokens",
    "TTFT ms": "mean_ttft_ms",
    "p99": "p99_ttft_ms",
    "TPOT ms": "mean_tpot_ms",
    "TPOT p99": "p99_tpot_ms",
    "service/s": "service_rate",
}
"""What the table by client shows; clients.csv has everything."""

UNITS = {
    "offered_rate_per_s": "requests/s",
    "duration": "s",
    "request_throughput": "requests/s",
    "request_goodput": "requests/s",
    "output_throughput": "tokens/s",
    "total_token_throughput": "tokens/s",
    "lost_tokens_per_preemption": "tokens",
    "mean_tail_waste_tokens": "tokens",
}
SHARE_ENDINGS = ("_tax", "_share", "_usage", "_saving", "_attainment")
STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "std": "std"}
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E latency"}


def label(metric: str) -> str:
    """`p90_ttft_ms` as `TTFT p90`, `num_blocks_swapped_out` as `blocks swapped out`."""
    statistic, _, rest = metric.partition("_")
    if statistic in STATISTICS and rest.endswith("_ms"):
        name = rest.removesuffix("_ms")
        return f"{NAMES.get(name, name)} {STATISTICS[statistic]}"
    return metric.removeprefix("num_").removesuffix("_per_s").replace("_", " ")


def unit(metric: str) -> str:
    """The unit in which `number` shows a metric; empty for counts."""
    if metric.endswith("_ms"):
        return "ms"
    return "%" if metric.endswith(SHARE_ENDINGS) else UNITS.get(metric, "")


def number(metric: str, value: float) -> str:
    """A value in the unit of its metric, four digits or so; a dash where it is undefined."""
    if math.isnan(value):
        return "-"
    if unit(metric) == "%":
        return f"{100 * value:.1f}"
    if float(value).is_integer() and not unit(metric):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def percent(value: float, *, signed: bool = False) -> str:
    """A share as percent; a dash where it is undefined."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def summary_table(summaries: Mapping[str, Summary], title: str = "") -> Table:
    """One column a run, one row a metric; metrics that no run has are left out."""
    table = plain_table(title, "metric", *summaries, "unit")
    for metrics in SECTIONS.values():
        for metric in metrics:
            values = [summary.get(metric, math.nan) for summary in summaries.values()]
            if not all(map(math.isnan, values)):
                table.add_row(label(metric), *(number(metric, value) for value in values), unit(metric))
        table.add_section()
    return table


def clients_table(clients: pd.DataFrame) -> Table:
    """One row a client, those with the most requests first, at most MAX_CLIENTS; see telemetry.clients."""
    shown = clients.sort_values("num_requests", ascending=False, kind="stable").head(MAX_CLIENTS)
    rest = len(clients) - len(shown)
    table = plain_table(
        f"by client, {rest:,} more in clients.csv" if rest else "by client", "client", *CLIENT_COLUMNS
    )
    for name, row in shown.iterrows():
        figures = (number(metric, row[metric]) for metric in CLIENT_COLUMNS.values())
        table.add_row(escape(str(name)), *figures)
    return table


def plain_table(title: str, first: str, *columns: str) -> Table:
    """Title and columns may be names that a user chose: no part of them is markup."""
    table = Table(title=escape(title) or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        left = column in ("unit", "")
        table.add_column(escape(column), justify="left" if left else "right", no_wrap=left)
    return table
