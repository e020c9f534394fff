from __future__ import annotations

import pandas as pd

from experiments.figures.residuals import residuals_figure
from experiments.figures.shares import shares_figure


def test_parts_are_stacked_means_a_panel_a_policy() -> None:
    runs = pd.DataFrame(
        {"policy": ["a", "a", "b"], "size": [8, 8, 16], "kv": [0.5, 0.7, 0.9], "empty": [0.1, 0.3, 0.05]}
    )
    parts = {"kv": ("holds KV", "blue"), "empty": ("empty", "red")}
    figure = shares_figure(runs, "size", parts, "block size", "share", "title")
    bars = [
        (axes.get_title(), round(bar.get_y(), 9), round(bar.get_height(), 9))
        for axes in figure.axes
        for bar in axes.patches
    ]
    assert bars == [("a", 0.0, 0.6), ("a", 0.6, 0.2), ("b", 0.0, 0.9), ("b", 0.9, 0.05)]


def test_residuals_have_a_dot_a_repeat_and_a_bar_at_the_mean() -> None:
    residuals = pd.DataFrame(
        {"kind": ["decode", "decode", "mixed"], "num_steps": [10, 20, 5], "residual": [0.01, 0.03, -0.02]}
    )
    figure = residuals_figure([0.04, 0.06], residuals, limit=0.05)
    assert [list(line.get_ydata()) for line in figure.axes[1].lines[:2]] == [[0.01, 0.03], [-0.02]]
    assert [float(bar.get_segments()[0][0][1]) for bar in figure.axes[1].collections] == [0.02, -0.02]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == [
        "decode\n30 steps",
        "mixed\n5 steps",
    ]
