"""Metrics against one number that is varied, a line a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from engine.telemetry.schema import World
from experiments.figures.style import LINE_STYLES, STYLE, Floats, policy_looks, round_ticks, short

MARKERS = "osD^vP"
"""A second sign of the policy beside its colour: lines often lie on one another."""


def lines_figure(
    runs: pd.DataFrame,
    x: str,
    panels: Mapping[str, str],
    xlabel: str,
    title: str = "",
    world: World = World.SIMULATED,
    reference: tuple[str, Callable[[Floats], Floats]] | None = None,
) -> Figure:
    """A panel a metric: the mean over seeds at each value of `x`, and the range of the seeds as a band.

    `runs` has the columns policy, `x` and the metrics, a row a run (`experiments.analysis.over`). `panels`
    gives each metric its label. Colour is the policy and line style the world. `reference` is what the first
    metric should be, by a rule: its label, and a function of `x`.
    """
    looks = policy_looks(runs["policy"])
    with rc_context(STYLE):
        figure = Figure(figsize=(max(4.4, 2.5 * len(panels)), 2.9), layout="constrained")
        columns = np.ravel(figure.subplots(1, len(panels)))
        for axes, (metric, label) in zip(columns, panels.items(), strict=True):
            for place, (policy, look) in enumerate(looks.items()):
                above = len(looks) - 1 - place  # drawn over this line, which shows beside them
                points = runs[runs["policy"] == policy].groupby(x)[metric].agg(["mean", "min", "max"])
                band: dict[str, Any] = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(points.index, points["min"], points["max"], **band)
                line: dict[str, Any] = {
                    "color": look["color"], "linestyle": LINE_STYLES[world], "linewidth": 1.2 + 0.9 * above,
                    "marker": MARKERS[place % len(MARKERS)], "markersize": 3.5 + 1.5 * above,
                }  # fmt: skip
                axes.plot(points.index, points["mean"], label=policy, **line)
            number_axes(axes, runs[x].to_numpy(dtype=float), runs[metric].dropna().to_numpy(dtype=float))
            axes.set(xlabel=xlabel, ylabel=label)
        if reference is not None:
            values = np.unique(runs[x].to_numpy(dtype=float))
            rule: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.0, "zorder": 5}
            columns[0].plot(values, reference[1](values), label=reference[0], **rule)
        handles, labels = columns[0].get_legend_handles_labels()
        ncols = 3 if len(panels) == 1 else 5
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
        if title:
            figure.suptitle(title)
        return figure


def number_axes(axes: Axes, x: Floats, y: Floats) -> None:
    """Ticks, limits and grid for the values of a number that is varied, and those of a metric."""
    round_ticks(axes, "y", y)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    values = np.unique(x)
    if len(values) > 2 and values[0] > 0 and np.allclose(values[1:] / values[:-1], values[1] / values[0]):
        axes.set_xscale("log")  # a geometric series: each value has its tick
        axes.xaxis.set_major_locator(FixedLocator(values.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    else:
        round_ticks(axes, "x", values)
    axes.grid()
