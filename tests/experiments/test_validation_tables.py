from __future__ import annotations

import math

import pandas as pd
import pytest

from experiments.validation_tables import bias_table, comparison_table, median_errors, winners_table
from tests.experiments.test_tables import cells, piped

COLUMNS = (
    "load", "policy", "metric", "simulated", "measured", "error", "error_half", "unbiased", "half",
    "undrifted", "followed", "followed_half", "spread", "ensemble", "limit", "answer",
)  # fmt: skip


def comparison(load: float | None = 1.5) -> pd.DataFrame:
    nan = math.nan
    throughput, tax = "output_throughput", "recompute_tax"
    rows = [
        (
            load,
            "swap",
            throughput,
            110.0,
            100.0,
            0.1,
            0.02,
            0.01,
            0.005,
            0.02,
            0.004,
            0.003,
            0.02,
            0.01,
            0.03,
            "holds",
        ),
        (load, "swap", tax, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, nan, nan, nan, ""),
        (
            load,
            "recompute",
            throughput,
            120.0,
            90.0,
            1 / 3,
            0.02,
            0.3,
            0.01,
            0.31,
            0.29,
            0.02,
            0.05,
            0.01,
            0.03,
            "off",
        ),
        (load, "recompute", tax, 0.25, 0.2, 0.25, 0.1, 0.2, 0.1, 0.2, 0.2, 0.1, 0.2, 0.1, nan, ""),
        (
            0.7,
            "swap",
            throughput,
            60.0,
            50.0,
            0.2,
            0.02,
            0.0,
            0.1,
            0.0,
            0.0,
            0.1,
            0.02,
            0.01,
            0.03,
            "unclear",
        ),
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_comparison_table_has_each_error_with_its_interval() -> None:
    text = piped(comparison_table(comparison(), 1.5, "recompute"), 110)
    assert "recompute at load 1.5: errors in %, limits 3.0" in text
    assert cells(text, "tokens/s")[1:] == [
        "120.0", "90.00", "+33.3", "2.0", "+30.0", "1.0", "+31.0", "+29.0", "5.0", "1.0", "OFF",
    ]  # fmt: skip
    assert cells(text, "recompute tax")[3:] == ["25.0", "20.0", *"------", "20.0", "10.0"], "not judged"
    other = piped(comparison_table(comparison(), 0.7, "swap"), 110)
    assert cells(other, "tokens/s")[-1] == "unclear" and "recompute" not in other
    assert "\x1b" not in text and "…" not in text and max(map(len, text.splitlines())) <= 110


def test_median_errors_are_those_of_what_is_judged() -> None:
    """Of three throughputs; the taxes are not judged, and there is no percentile."""
    assert median_errors(comparison()) == (
        "median size of the errors: of 3 means 20.0 % as they are, 1.0 % without the step bias, "
        "0.4 % without the speed"
    )


def test_winners_table_compares_the_worlds() -> None:
    text = piped(
        winners_table(comparison(), 1.5, {"output_throughput": False, "recompute_tax": True, "absent": True})
    )
    # Simulated: 120 against 110; measured: 100 against 90.
    assert cells(text, "output")[2:] == ["recompute", "9.1", "swap", "11.1", "-1.00", "DIFFERENT"]
    assert cells(text, "recompute tax")[2:] == ["swap", "100.0", "swap", "100.0", "+1.00", "same"]
    assert "absent" not in text


def test_a_workload_as_it_is_has_no_load() -> None:
    as_it_is = comparison(None).iloc[:4]
    assert cells(piped(comparison_table(as_it_is, None, "swap"), 110), "tokens/s")[-1] == "holds"
    assert "load" not in piped(winners_table(as_it_is, None))


def test_bias_table_has_each_repeat_and_kind() -> None:
    rows = [("decode", 1, 100, 0.02), ("decode", 2, 110, 0.04), ("transfer", 2, 5, -0.5)]
    residuals = pd.DataFrame(rows, columns=["kind", "repeat", "num_steps", "residual"])
    text = piped(bias_table({1: -0.03, 2: -0.01}, residuals))
    # Student's t of one degree of freedom is 6.314 at 90 %; std 0.01414 / sqrt(2) = 0.01.
    assert cells(text, "all: the step bias")[-5:] == ["215", "-3.0", "-1.0", "-2.0", "6.3"]
    assert cells(text, "decode, bias out")[-5:] == ["210", "+2.0", "+4.0", "+3.0", "6.3"]
    assert cells(text, "transfer, bias out")[-4:] == ["-", "-50.0", "-50.0", "-"], "not seen in the first"


@pytest.mark.parametrize("width", [110, 130])
def test_tables_keep_their_headers_on_one_line(width: int) -> None:
    for table in (comparison_table(comparison(), 1.5, "swap"), winners_table(comparison(), 1.5)):
        header = piped(table, width).splitlines()[2]
        assert "simulated" in header and "measured" in header
