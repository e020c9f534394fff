from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.core.spec import Capacity
from engine.telemetry.metrics import summarize
from engine.telemetry.runlog import RunLog
from engine.telemetry.series import time_series
from experiments.figures.memory import memory_figure
from tests.experiments.figures.labels import labels
from tests.telemetry.scripted import time_mean, two_requests
from tests.telemetry.test_series import uneven, with_gaps


def test_memory_figure_shows_the_pool_the_queues_and_the_preemptions() -> None:
    figure = memory_figure(two_requests().log(), "swap, azure_like")
    assert labels(figure, 0) == ["free", "allocated, empty", "being written", "holds KV"]
    panels = ["share of\nthe pool", "requests\nrunning", "requests\nwaiting", "requests\nswapped"]
    assert [axes.get_ylabel() for axes in figure.axes] == [*panels, "preemp-\ntions"]
    assert labels(figure, -1) == ["by recompute: 1", "by swap: 1"]
    assert sum(bar.get_height() for bar in figure.axes[-1].patches) == 2
    assert figure.axes[-1].get_xlabel() == "time (s)"
    assert figure.get_suptitle().startswith("swap, azure_like\nKV pool: 8 blocks of 4 tokens")


def test_queues_and_preemptions_that_never_were_have_no_panel() -> None:
    log = two_requests().log()
    never = ["num_waiting", "num_swapped", "num_swap_preemptions", "num_recompute_preemptions"]
    calm = replace(log, steps=log.steps.assign(**dict.fromkeys(never, 0)))
    assert [axes.get_ylabel() for axes in memory_figure(calm).axes] == [
        "share of\nthe pool",
        "requests\nrunning",
    ]


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
