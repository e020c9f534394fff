"""How well a cost model prices the steps that it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from experiments.figures.style import PALETTE, STYLE, Floats


def calibration_figure(measured_ns: Sequence[float], predicted: pd.DataFrame, kinds: Sequence[str]) -> Figure:
    """Predicted against measured step times, and what the prediction is made of.

    `predicted` has a row for each measured step and a column of ns for each part; `kinds` (decode, prefill,
    mixed) names what each step did.
    """
    measured_ms, predicted_ms = np.asarray(measured_ns) / 1e6, predicted.sum(axis=1).to_numpy() / 1e6
    kind = np.asarray(kinds)
    names = list(dict.fromkeys(sorted(kinds)))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.0), layout="constrained")
        scatter, bars = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, color in zip(names, PALETTE, strict=False):
            mine = kind == name
            label = f"{name}, n = {mine.sum()}"
            points: dict[str, Any] = {"markersize": 2.5, "markeredgewidth": 0, "alpha": 0.5}
            scatter.plot(measured_ms[mine], predicted_ms[mine], "o", color=color, label=label, **points)
        _identity(scatter, np.concatenate([measured_ms, predicted_ms]))
        error = np.abs(predicted_ms / measured_ms - 1)
        scatter.set_title(f"median error {np.median(error):.1%}, p90 {np.percentile(error, 90):.1%}")
        _parts(bars, predicted / 1e6, measured_ms, kind, names)
        return figure


def _identity(axes: Axes, values: Floats) -> None:
    limits = (values.min() / 1.2, values.max() * 1.2)
    axes.plot(limits, limits, color="#444444", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="measured step (ms)", ylabel="predicted step (ms)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axes.grid()
    axes.legend(loc="upper left", handletextpad=0.1, markerscale=1.6)


def _parts(
    axes: Axes, parts_ms: pd.DataFrame, measured_ms: Floats, kind: NDArray[np.str_], names: list[str]
) -> None:
    """Mean predicted parts, stacked, for each kind of step; a mark at the measured mean."""
    means = parts_ms.loc[:, parts_ms.any()].groupby(kind).mean().loc[names]
    bottom = np.zeros(len(names))
    for part, color in zip(means.columns, cycle(PALETTE), strict=False):
        axes.bar(names, means[part], bottom=bottom, color=color, width=0.6, label=part)
        bottom += means[part].to_numpy()
    measured = [measured_ms[kind == name].mean() for name in names]
    x = np.arange(len(names))
    axes.hlines(measured, x - 0.4, x + 0.4, color="black", linewidth=1.2)
    axes.tick_params(axis="x", labelsize="small")
    axes.set(ylabel="mean step (ms)", ylim=(0, 1.15 * max(*bottom, *measured)))
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color="black"))
    labels.append("measured")
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
