from __future__ import annotations

import math

import pandas as pd

from experiments.figures.comparison import comparison_figure

COLUMNS = ["load", "policy", "metric", "error", "unbiased", "half", "limit", "answer"]


def comparison() -> pd.DataFrame:
    rows = [
        (load, policy, metric, error, unbiased, half, 0.03, answer)
        for load in (0.7, 1.5)
        for policy, metric, error, unbiased, half, answer in (
            ("swap", "output_throughput", 0.02, 0.01, 0.005, "holds"),
            ("swap", "mean_ttft_ms", math.inf, math.nan, math.inf, "unclear"),
            ("recompute", "output_throughput", -0.20, -0.15, 0.01, "off"),
            ("recompute", "mean_ttft_ms", 0.15, 0.02, 0.004, "holds"),
        )
    ]
    rows.append((1.5, "swap", "num_preemptions", 7.0, 7.0, 1.0, math.nan, ""))
    return pd.DataFrame(rows, columns=COLUMNS)


def test_comparison_figure_has_a_panel_for_each_policy_and_load() -> None:
    figure = comparison_figure(comparison())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["swap, load 0.7", "recompute, load 0.7", "swap, load 1.5", "recompute, load 1.5"]
    low, high = figure.axes[0].get_xlim()
    assert low == -high and 0.2 < high < 0.25, "what is not judged sets no scale"
    assert len(figure.axes[0].get_yticks()) == 2


def test_comparison_figure_tells_answers_apart() -> None:
    panel = comparison_figure(comparison()).axes[3]
    rings, *dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert rings.get_xdata().tolist() == [-0.20, 0.15] and rings.get_fillstyle() == "none"
    assert [dot.get_xdata().tolist() for dot in dots] == [[0.02], [-0.15]]
    assert len({dot.get_color() for dot in dots}) == 2


def test_a_workload_as_it_is_has_no_load_in_the_title() -> None:
    frame = comparison().iloc[:4].assign(load=math.nan)
    assert [axes.get_title() for axes in comparison_figure(frame).axes] == ["swap", "recompute"]
