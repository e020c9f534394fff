from __future__ import annotations

import io
import math

from rich.console import Console
from rich.table import Table

from engine.telemetry.metrics import summarize
from experiments.tables import label, number, percent, summary_table
from tests.telemetry.scripted import two_requests


def piped(table: Table, width: int = 100) -> str:
    """The table as it looks in a file or a pipe."""
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(first)]
    return line.split()


def test_labels_and_numbers() -> None:
    assert label("p90_ttft_ms") == "TTFT p90" and label("median_e2el_ms") == "E2E latency p50"
    assert label("num_blocks_swapped_out") == "blocks swapped out"
    assert number("recompute_tax", 0.1234) == "12.3"
    assert number("num_preemptions", 1234) == "1,234" and number("num_preemptions", 150.26) == "150.3"
    assert number("mean_ttft_ms", 12345.6) == "12,346" and number("mean_tpot_ms", 2.5) == "2.500"
    assert number("swap_tax", math.nan) == "-"
    assert percent(0.051, signed=True) == "+5.1" and percent(math.inf) == "-"


def test_summary_table_fits_a_pipe_of_100_columns_without_colours() -> None:
    summary = summarize(two_requests().log())
    text = piped(summary_table({"simulated": summary, "measured": summary}, "a run"))
    assert "\x1b" not in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert cells(text, "TTFT mean") == ["TTFT", "mean", "12.50", "12.50", "ms"]
    assert cells(text, "recompute tax") == ["recompute", "tax", "30.4", "30.4", "%"]
    assert "request goodput" not in text
