from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.plots import calibration_figure, comparison_figure, latency_figure, memory_figure, save
from tests.telemetry.scripted import Script, two_requests

PNG = b"\x89PNG\r\n\x1a\n"


def comparison() -> pd.DataFrame:
    rows = [
        ("swap", "output_throughput", 0.02, 0.03, 0.10),
        ("swap", "recompute_tax", math.inf, math.nan, 0.10),
        ("recompute", "output_throughput", -0.20, 0.01, 0.10),
        ("recompute", "recompute_tax", 0.15, 0.10, 0.20),
    ]
    return pd.DataFrame(rows, columns=["policy", "metric", "error", "spread", "allowed"])


def labels(figure: Figure, axes: int) -> list[str]:
    return [str(label) for label in figure.axes[axes].get_legend_handles_labels()[1]]


def test_memory_figure_shows_the_pool_the_queues_and_the_preemptions() -> None:
    figure = memory_figure(two_requests().log())
    pool = ["free", "allocated, empty", "holds KV", "preemptions by\nrecompute: 1", "preemptions by\nswap: 1"]
    assert labels(figure, 0) == pool
    assert labels(figure, 1) == ["running", "waiting", "swapped"]
    assert figure.axes[1].get_xlabel() == "time (s)"


def test_latency_figure_reaches_one_for_every_run() -> None:
    requests = two_requests().log().requests
    figure = latency_figure({"swap": requests, "recompute": requests})
    assert [axes.get_xlabel() for axes in figure.axes] == ["TTFT (ms)", "TPOT (ms)", "E2E latency (ms)"]
    for axes in figure.axes:
        assert [line.get_ydata()[-1] for line in axes.lines] == [1.0, 1.0]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [10.0, 15.0]


def test_comparison_figure_marks_errors_that_are_too_large() -> None:
    figure = comparison_figure(comparison(), ["output_throughput", "recompute_tax"])
    assert [axes.get_title() for axes in figure.axes] == ["swap", "recompute"]
    good, bad = figure.axes[1].lines[:2]
    assert good.get_xdata().tolist() == [0.15] and bad.get_xdata().tolist() == [-0.20]
    low, high = figure.axes[0].get_xlim()
    assert low == -high and 0.2 < high < 0.25


def test_calibration_figure_stacks_the_parts_that_matter() -> None:
    predicted = pd.DataFrame(
        {"linear": [1e6, 2e6, 4e6], "attention": [1e6, 1e6, 1e6], "transfers": [0.0] * 3}
    )
    figure = calibration_figure([2e6, 3e6, 5.5e6], predicted, ["decode", "decode", "prefill"])
    assert labels(figure, 0) == ["decode, n = 2", "prefill, n = 1"]
    assert labels(figure, 1) == ["linear", "attention"]
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    np.testing.assert_allclose(heights, [1.5, 4.0, 1.0, 1.0])
    assert figure.axes[0].get_title() == "median error 0.0%, p90 7.3%"


@pytest.mark.parametrize("script", [two_requests(), Script()], ids=["two requests", "empty"])
def test_equal_figures_are_equal_files(script: Script, tmp_path: Path) -> None:
    log = script.log()
    for draw in (memory_figure, lambda log: latency_figure({"run": log.requests})):
        first, second = (save(draw(log), tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
        assert first[:8] == PNG and first == second


def test_plotting_leaves_pyplot_alone() -> None:
    code = "import sys, experiments.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
