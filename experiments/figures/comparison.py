"""The errors of a simulation, metric by metric."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.figures.style import FREE, STYLE
from experiments.tables import label as metric_label

COLORS = {"holds": "#0072B2", "unclear": "#E69F00", "off": "#D55E00"}
WORDS = {"holds": "within limit", "unclear": "unclear", "off": "beyond limit"}


def comparison_figure(comparison: pd.DataFrame) -> Figure:
    """The errors of what is judged, one column a policy, one row a load, over the band that passes.

    `comparison` is that of experiments.compare. A dot with its 90 % interval is the error with the step bias
    taken out, a ring the error as it is. What lies beyond the axis is cut off; an error that is undefined has
    no dot.
    """
    judged = comparison[comparison["answer"] != ""]
    metrics = list(dict.fromkeys(judged["metric"]))
    policies = list(dict.fromkeys(judged["policy"]))
    loads = list(dict.fromkeys(judged["load"].fillna(-1)))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 1.0 + (0.5 + 0.18 * len(metrics)) * len(loads)), layout="constrained")
        grid = figure.subplots(len(loads), len(policies), sharex=True, sharey=True, squeeze=False)
        for row, load in zip(grid, loads, strict=True):
            for axes, policy in zip(row, policies, strict=True):
                mine = (judged["policy"] == policy) & (judged["load"].fillna(-1) == load)
                _errors(axes, judged[mine].set_index("metric").loc[metrics])
                axes.set_title(policy if load == -1 else f"{policy}, load {load:g}")
        grid[0, 0].set_yticks(range(len(metrics)), [metric_label(metric) for metric in metrics])
        grid[0, 0].invert_yaxis()
        shown = judged[["error", "unbiased", "limit"]].replace([np.inf, -np.inf], np.nan).abs().to_numpy()
        grid[0, 0].set_xlim(*(np.array([-1.15, 1.15]) * np.nanmax(shown)))
        for axes in grid[-1]:
            axes.set_xlabel("simulated / measured - 1 (%)")
        handles = {
            text: handle
            for axes in grid.flat
            for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
        return figure


def _errors(axes: Axes, rows: pd.DataFrame) -> None:
    height = np.arange(len(rows))
    axes.barh(height, 2 * rows["limit"], left=-rows["limit"], height=0.8, color=FREE, label="limit")
    axes.plot(
        rows["error"], height, "o", color="#888888", markersize=5, fillstyle="none", label="error as it is"
    )
    for answer, color in COLORS.items():
        mine = (rows["answer"] == answer).to_numpy()
        if mine.any():
            half = rows["half"][mine].replace(np.inf, 10.0)  # beyond any axis
            label = f"bias out, {WORDS[answer]}"
            axes.errorbar(
                rows["unbiased"][mine], height[mine], xerr=half, fmt="o", color=color, markersize=4,
                elinewidth=1.2, label=label,
            )  # fmt: skip
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * error:+.3g}" if error else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
