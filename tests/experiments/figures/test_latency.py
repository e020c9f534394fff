from __future__ import annotations

from itertools import product

from engine.telemetry.schema import World
from experiments.figures.latency import Curve, latency_figure
from tests.experiments.figures.labels import labels_of_legend
from tests.telemetry.scripted import two_requests


def curves(policies: list[str], worlds: list[World]) -> list[Curve]:
    requests = two_requests().log().requests
    return [Curve(policy, world, requests) for policy, world in product(policies, worlds)]


def test_colour_is_the_policy_and_line_style_the_world() -> None:
    figure = latency_figure(curves(["swap", "recompute"], [World.MEASURED, World.SIMULATED, World.MEASURED]))
    for axes in figure.axes:
        colors = [line.get_color() for line in axes.lines]
        assert colors[:3] == [colors[0]] * 3 and colors[3:] == [colors[3]] * 3 and colors[0] != colors[3]
        assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-"] * 2
    assert labels_of_legend(figure) == ["swap", "recompute", "measured", "simulated"]


def test_eleven_policies_are_told_apart_and_the_legend_fits() -> None:
    policies = [f"contender {number} of many" for number in range(11)]
    figure = latency_figure(curves(policies, [World.SIMULATED, World.MEASURED]), "one line\nand another")
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 22
    figure.draw_without_rendering()
    box, title = figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert title.y1 <= figure.bbox.y1 and all(axes.get_tightbbox().y0 > box.y1 for axes in figure.axes)


def test_latency_figure_reaches_one_for_every_run() -> None:
    figure = latency_figure(curves(["swap", "recompute"], [World.SIMULATED]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["TTFT (ms)", "TPOT (ms)", "E2E latency (ms)"]
    for axes in figure.axes:
        assert [line.get_ydata()[-1] for line in axes.lines] == [1.0, 1.0]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [10.0, 15.0]


def test_a_run_in_which_nothing_finished_says_so() -> None:
    requests = two_requests().log().requests
    unfinished = requests.assign(status="rejected")
    figure = latency_figure([Curve("swap", World.SIMULATED, unfinished)])
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["none"] * 3
