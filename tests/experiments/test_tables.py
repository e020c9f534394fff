from __future__ import annotations

import io
import math

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from engine.telemetry.metrics import summarize
from experiments.tables import comparison_table, label, number, percent, summary_table, winners_table
from tests.telemetry.scripted import two_requests


def piped(table: Table, width: int = 100) -> str:
    """The table as it looks in a file or a pipe."""
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def comparison() -> pd.DataFrame:
    rows = [
        ("swap", "output_throughput", 110.0, 100.0, 0.10, 0.02, 0.10, True),
        ("swap", "recompute_tax", 0.0, 0.0, 0.0, math.nan, 0.10, True),
        ("recompute", "output_throughput", 120.0, 90.0, 1 / 3, 0.05, 0.10, False),
        ("recompute", "recompute_tax", 0.25, 0.2, 0.25, 0.2, 0.4, True),
    ]
    columns = ["policy", "metric", "simulated", "measured", "error", "spread", "allowed", "holds"]
    return pd.DataFrame(rows, columns=columns)


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


def test_comparison_table_says_what_is_off() -> None:
    text = piped(comparison_table(comparison(), "recompute"))
    assert cells(text, "output") == [
        "output",
        "throughput",
        "120.0",
        "90.00",
        "tokens/s",
        "+33.3",
        "5.0",
        "10.0",
        "OFF",
    ]
    assert cells(text, "recompute tax") == [
        "recompute",
        "tax",
        "25.0",
        "20.0",
        "%",
        "+25.0",
        "20.0",
        "40.0",
        "ok",
    ]
    assert cells(piped(comparison_table(comparison(), "swap")), "recompute tax")[-3:] == ["-", "10.0", "ok"]
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100


def test_winners_table_compares_the_worlds() -> None:
    text = piped(
        winners_table(comparison(), {"output_throughput": False, "recompute_tax": True, "absent": True})
    )
    # Simulated: 120 against 110; measured: 100 against 90.
    assert cells(text, "output")[2:] == ["recompute", "9.1", "swap", "11.1", "-1.00", "DIFFERENT"]
    assert cells(text, "recompute tax")[2:] == ["swap", "100.0", "swap", "100.0", "+1.00", "same"]
    assert "absent" not in text


@pytest.mark.parametrize("width", [100, 120])
def test_tables_keep_their_headers_on_one_line(width: int) -> None:
    for table in (comparison_table(comparison(), "swap"), winners_table(comparison())):
        header = piped(table, width).splitlines()[2]
        assert "simulated" in header and "measured" in header
