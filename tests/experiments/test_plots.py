from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from engine.core.backend import Capacity
from engine.telemetry.metrics import summarize
from engine.telemetry.runlog import RunLog
from engine.telemetry.series import time_mean, time_series
from experiments.plots import calibration_figure, comparison_figure, latency_figure, memory_figure, save
from tests.telemetry.scripted import Script, two_requests
from tests.telemetry.test_series import uneven, with_gaps

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
    areas = ["free", "allocated, empty", "being written", "holds KV"]
    marks = ["preemptions by\nrecompute: 1", "preemptions by\nswap: 1"]
    assert sorted(labels(figure, 0)) == sorted(areas + marks)
    assert labels(figure, 1) == ["running", "waiting", "swapped"]
    assert figure.axes[1].get_xlabel() == "time (s)"


@pytest.mark.parametrize("make_log", [with_gaps, uneven])
def test_memory_figure_is_empty_in_idle_gaps_and_has_the_means_of_the_summary(
    make_log: Callable[[], RunLog],
) -> None:
    """Few steps, and more than a figure has points."""
    log, summary = make_log(), summarize(make_log())
    figure = memory_figure(log)
    (running,) = figure.axes[1].lines
    times_s, values = running.get_data()
    assert len(times_s) <= 601
    assert min(values) == 0 and values[-1] in (0, values[-2])
    mean = np.sum(np.diff(times_s) * values[:-1]) / (times_s[-1] - times_s[0])
    assert mean == pytest.approx(time_mean(time_series(log), time_series(log)["num_running"]), rel=1e-9)
    areas = dict(zip(labels(figure, 0), figure.axes[0].collections, strict=True))
    duration_s = times_s[-1] - times_s[0]
    for label, metric in {"holds KV": "token_states", "being written": "written", "free": "free"}.items():
        share = area_of(areas[label]) / duration_s
        assert share == pytest.approx(summary[f"mean_{metric}_share"], rel=1e-6), label


def area_of(area: Any) -> float:
    """By the shoelace formula, over all polygons."""
    total = 0.0
    for path in area.get_paths():
        x, y = path.vertices.T
        total += abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2
    return total


def test_memory_figure_of_a_pool_that_is_hardly_used_shows_what_is_used() -> None:
    log = with_gaps()
    roomy = replace(log, capacity=Capacity(800, 4, 4), steps=log.steps.assign(num_free_blocks=792))
    assert memory_figure(log).axes[0].get_ylim() == (0, 1)
    assert memory_figure(roomy).axes[0].get_ylim() == (0, pytest.approx(1.25 * 8 / 800))


def test_latency_figure_shows_every_run_and_its_legend_fits() -> None:
    requests = two_requests().log().requests
    names = [f"contender {number}, measured-1" for number in range(11)]
    figure = latency_figure(dict.fromkeys(names, requests))
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(looks)) == 11
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


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
