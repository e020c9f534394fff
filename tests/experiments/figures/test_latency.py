from __future__ import annotations

from experiments.figures.latency import latency_figure
from tests.telemetry.scripted import two_requests


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
