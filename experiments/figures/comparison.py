"""The errors of a simulation, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.figures.style import FREE, STYLE
from experiments.tables import label as metric_label

GOOD, BAD = "#0072B2", "#D55E00"


def comparison_figure(comparison: pd.DataFrame, metrics: Sequence[str], title: str = "") -> Figure:
    """The error of the simulation, metric by metric, one column a policy, over the band that passes.

    `comparison` has a row for each policy and metric with the columns policy, metric, error, spread,
    allowed, all three relative to the measured value. The dark bar is the spread of the measured runs. An
    error that is undefined or infinite has no dot.
    """
    policies = list(dict.fromkeys(comparison["policy"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 1.2 + 0.22 * len(metrics)), layout="constrained")
        if title:
            figure.suptitle(title)
        columns = np.atleast_1d(figure.subplots(1, len(policies), sharex=True, sharey=True))
        for axes, policy in zip(columns, policies, strict=True):
            rows = comparison[comparison["policy"] == policy].set_index("metric").loc[list(metrics)]
            _errors(axes, rows)
            axes.set_title(policy)
            axes.set_xlabel("simulated / measured - 1 (%)")
        columns[0].set_yticks(range(len(metrics)), [metric_label(metric) for metric in metrics])
        columns[0].invert_yaxis()
        finite = comparison[["error", "allowed"]].replace([np.inf, -np.inf], np.nan).abs()
        columns[0].set_xlim(*(np.array([-1.08, 1.08]) * np.nanmax(finite.to_numpy())))
        handles, labels = columns[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return figure


def _errors(axes: Axes, rows: pd.DataFrame) -> None:
    height = np.arange(len(rows))
    axes.barh(height, 2 * rows["allowed"], left=-rows["allowed"], height=0.8, color=FREE, label="allowed")
    spread = rows["spread"].fillna(0)
    axes.barh(height, spread, left=-spread / 2, height=0.35, color="#AAAAAA", label="spread of measured runs")
    good = (rows["error"].abs() <= rows["allowed"]).to_numpy()
    for mine, color, label in ((good, GOOD, "error"), (~good, BAD, "error, too large")):
        axes.plot(rows["error"][mine], height[mine], "o", color=color, markersize=4.5, label=label)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * error:+.3g}" if error else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
