"""A sweep: metrics over the first number that was varied, a line a choice; bars where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform, offset_copy

from experiments.figures.lines import MARKERS, number_axes
from experiments.figures.style import STYLE, Floats, policy_looks, round_ticks
from experiments.repeats import by, is_numeric, point_axes, points
from experiments.tables import label, unit

MAX_PANELS = 3
MAX_LEGEND_CHARACTERS = 90
POINTS_ASIDE = 3


def sweep_figure(table: pd.DataFrame, metrics: Sequence[str], title: str = "") -> Figure | None:
    """Up to three metrics of a gathered sweep, with 95 % intervals where points have several seeds.

    None if nothing was completed. What varies beside the axis is one line a combination of values.
    """
    shown = [metric for metric in metrics if metric in table and table[metric].notna().any()][:MAX_PANELS]
    if not shown:
        return None
    means = points(table, shown).dropna(subset=["mean"])
    axes_names = point_axes(table)
    x = next((axis for axis in axes_names if is_numeric(table[axis])), None)
    lines = by(means, [axis for axis in axes_names if axis != x])
    looks = policy_looks([_name(key) for key in lines])
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.6, 2.5 * len(shown)), 3.1), layout="constrained")
        figure.suptitle(title)
        for axes, metric in zip(np.ravel(figure.subplots(1, len(shown))), shown, strict=True):
            factor = 100.0 if unit(metric) == "%" else 1.0
            for index, (key, rows) in enumerate(lines.items()):
                mine = rows[rows["metric"] == metric]
                y, half = (factor * mine[column].to_numpy(dtype=float) for column in ("mean", "half"))
                error = None if np.isnan(half).all() else np.nan_to_num(half)
                look = looks[_name(key)] | {"marker": MARKERS[index % len(MARKERS)]}
                if x is None:
                    _bar(axes, index, y, error, _name(key), look["color"])
                else:
                    if error is not None:
                        look["transform"] = _aside(axes, index - (len(lines) - 1) / 2)
                    _line(axes, mine[x].to_numpy(dtype=float), y, error, _name(key), look)
            _finish(axes, means[means["metric"] == metric], x, factor)
            axes.set_ylabel(f"{label(metric)} ({unit(metric)})" if unit(metric) else label(metric))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if any(labels):
            ncols = max(1, min(4, MAX_LEGEND_CHARACTERS // (6 + max(map(len, labels)))))
            figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
        return figure


def _name(key: Sequence[str]) -> str:
    return " ".join(filter(None, key))


def _line(axes: Axes, x: Floats, y: Floats, error: Floats | None, name: str, look: dict[str, Any]) -> None:
    order = np.argsort(x)
    bars = None if error is None else error[order]
    options: dict[str, Any] = {"markersize": 3.5, "linewidth": 1.2, "capsize": 2, "elinewidth": 0.9}
    axes.errorbar(x[order], y[order], yerr=bars, label=name, **options, **look)


def _aside(axes: Axes, steps: float) -> Transform:
    """Lines often lie on one another: moved apart by some points, the intervals of each show."""
    return offset_copy(axes.transData, axes.get_figure(root=True), POINTS_ASIDE * steps, units="points")


def _bar(axes: Axes, index: int, y: Floats, error: Floats | None, name: str, color: str) -> None:
    options: dict[str, Any] = {"capsize": 3, "error_kw": {"elinewidth": 0.9}}
    axes.bar(np.full(len(y), index), y, yerr=error, color=color, width=0.7, label=name, **options)


def _finish(axes: Axes, rows: pd.DataFrame, x: str | None, factor: float) -> None:
    mean, half = (rows[column].to_numpy(dtype=float) for column in ("mean", "half"))
    y = factor * np.append(mean - np.nan_to_num(half), mean + np.nan_to_num(half))
    if x is None:
        axes.set_xticks([])
        round_ticks(axes, "y", np.append(y, 0.0))  # bars begin at 0, so never on a logarithmic axis
        axes.grid(axis="y")
    else:
        values = rows[x].to_numpy(dtype=float)
        axes.plot(np.tile(values, 2), y, linestyle="none")  # lines that are moved do not count for the limits
        number_axes(axes, values, y)
        if axes.get_yscale() == "linear":
            axes.set_ylim(0, 1.06 * y.max())
        axes.set_xlabel(x)
