from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import figures
from experiments.figures.latency import Curve, latency_figure
from experiments.figures.memory import memory_figure
from experiments.figures.style import DPI, policy_looks, round_ticks, save, short
from tests.telemetry.scripted import Script, two_requests

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("script", [two_requests(), Script()], ids=["two requests", "empty"])
def test_equal_figures_are_equal_files(script: Script, tmp_path: Path) -> None:
    log = script.log()
    for draw in (memory_figure, lambda log: latency_figure([Curve("", log.world, log.requests)])):
        first, second = (save(draw(log), tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
        assert first[:8] == PNG and first == second


def test_plotting_leaves_pyplot_alone() -> None:
    modules = ", ".join(f"experiments.figures.{path.stem}" for path in Path(figures.__path__[0]).glob("*.py"))
    code = f"import sys, {modules}; print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"


@pytest.mark.parametrize("values", [[3, 4], [30, 11_000], [0.2, 900], [1e3, 4e5], [1, 3e6], [0, 7e5], [5.0]])
def test_ticks_do_not_collide_at_the_size_of_a_small_panel(values: list[float]) -> None:
    figure = Figure(figsize=(2.2, 2.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot(values, values)
    round_ticks(axes, "x", np.array(values))
    assert axes.get_xscale() == ("log" if min(values) and max(values) > 32 * min(values) else "linear")
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_short_labels() -> None:
    assert [short(value) for value in (0.05, 2000, 30_000, 1.5e7)] == ["0.05", "2000", "30k", "15M"]


def test_a_policy_has_the_same_colour_in_every_figure_that_names_the_same_policies() -> None:
    once, twice = policy_looks(["swap", "recompute"]), policy_looks(["swap", "swap", "recompute"])
    assert once == twice and once["swap"]["color"] != once["recompute"]["color"]
