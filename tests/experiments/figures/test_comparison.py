from __future__ import annotations

import math

import pandas as pd

from experiments.figures.comparison import comparison_figure


def comparison() -> pd.DataFrame:
    rows = [
        ("swap", "output_throughput", 0.02, 0.03, 0.10),
        ("swap", "recompute_tax", math.inf, math.nan, 0.10),
        ("recompute", "output_throughput", -0.20, 0.01, 0.10),
        ("recompute", "recompute_tax", 0.15, 0.10, 0.20),
    ]
    return pd.DataFrame(rows, columns=["policy", "metric", "error", "spread", "allowed"])


def test_comparison_figure_marks_errors_that_are_too_large() -> None:
    figure = comparison_figure(comparison(), ["output_throughput", "recompute_tax"])
    assert [axes.get_title() for axes in figure.axes] == ["swap", "recompute"]
    good, bad = figure.axes[1].lines[:2]
    assert good.get_xdata().tolist() == [0.15] and bad.get_xdata().tolist() == [-0.20]
    low, high = figure.axes[0].get_xlim()
    assert low == -high and 0.2 < high < 0.25
