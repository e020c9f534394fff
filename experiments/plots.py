"""Figures of a run and of a comparison: figure objects without pyplot, so that none shares state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from engine.telemetry.latency import latencies
from engine.telemetry.memory import memory_states
from engine.telemetry.runlog import RunLog
from engine.telemetry.series import binned, lengths_ns
from experiments.tables import label as metric_label

Floats = NDArray[np.float64]

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#000000")
"""Okabe and Ito (2008): told apart with any colour vision, and in print."""
KV, WRITTEN, WASTE, FREE = "#0072B2", "#56B4E9", "#E69F00", "#EEEEEE"
GOOD, BAD = "#0072B2", "#D55E00"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
}
DPI = 200
MAX_POINTS = 600
"""Points of a curve over time, about what print resolves; a longer run is averaged over as many stretches."""
LEGEND_CHARACTERS = 95
"""What fits beside one another above a figure, 6 for the line before each label."""
SMALL = 0.25
"""A pool that is never fuller than this is drawn to its peak, not to 100 %."""

QUEUES = ("running", "waiting", "swapped")
LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2E latency"}


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG without the version of the writer in it, so that equal figures are equal files."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def memory_figure(log: RunLog) -> Figure:
    """The device pool over time, by what its slots are used for; below it the queues.

    Ticks above the upper edge mark preemptions. In a long run a point is the mean over its stretch of time.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 4.2), layout="constrained")
        pool, queues = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        states = binned(memory_states(log), MAX_POINTS)
        _pool(pool, states)
        _preemptions(pool, log.steps)
        for name, color, style in zip(QUEUES, PALETTE, ("-", "--", ":"), strict=False):
            if states[f"num_{name}"].any():
                times_s, values = _steps(states, states[f"num_{name}"])
                options: dict[str, Any] = {"linestyle": style, "color": color, "linewidth": 1, "label": name}
                queues.step(times_s, values, where="post", **options)
        queues.set(xlabel="time (s)", ylabel="requests", ylim=(0, None))
        queues.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        queues.grid(axis="y")
        queues.margins(x=0)
        for axes in (pool, queues):
            handles, labels = axes.get_legend_handles_labels()
            if handles:  # from top to bottom, as the areas lie
                axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        title = (
            f"KV pool of {log.capacity.num_blocks:,} blocks of {log.capacity.block_size} tokens, {log.world}"
        )
        if len(states) == MAX_POINTS:
            title += f", means of {lengths_ns(states)[0] / 1e9:.3g} s each"
        figure.suptitle(title, fontsize=9)
        return figure


def _steps(states: pd.DataFrame, values: pd.Series) -> tuple[Floats, Floats]:
    """The corners of a curve that keeps each value from begin_ns to until_ns, in s."""
    times_ns = np.append(states["begin_ns"], states["until_ns"].tail(1))
    return times_ns / 1e9, np.append(values, values.tail(1))


def _pool(axes: Axes, states: pd.DataFrame) -> None:
    """Areas on top of one another; the upper edge of each is a curve."""
    layers = {"holds KV": "U", "being written": "S", "allocated, empty": "W"}
    top, upper = pd.Series(0.0, index=states.index), pd.Series(1.0, index=states.index)
    areas = []
    for (label, share), color in zip(layers.items(), (KV, WRITTEN, WASTE), strict=True):
        areas.append((top, top + states[share], color, label))
        top = top + states[share]
    areas.append((top, upper, FREE, "free"))
    for low, high, color, label in reversed(areas):
        times_s, lows = _steps(states, low)
        highs = _steps(states, high)[1]
        axes.fill_between(times_s, lows, highs, step="post", linewidth=0, color=color, label=label)
    peak = float(top.max()) if len(top) else 0.0
    axes.set(ylabel="share of the pool", ylim=(0, 1.25 * peak if 0 < peak < SMALL else 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    axes.margins(x=0)


def _preemptions(axes: Axes, steps: pd.DataFrame) -> None:
    for kind, color, height in (("recompute", PALETTE[3], 1.03), ("swap", PALETTE[4], 1.06)):
        times_s = steps["start_ns"][steps[f"num_{kind}_preemptions"] > 0] / 1e9
        if len(times_s):
            count = int(steps[f"num_{kind}_preemptions"].sum())
            label = f"preemptions by\n{kind}: {count}"
            marks: dict[str, Any] = {"markersize": 4, "markeredgewidth": 0.7, "clip_on": False}
            marks["transform"] = axes.get_xaxis_transform()  # heights in units of the axis
            axes.plot(times_s, np.full(len(times_s), height), "|", color=color, label=label, **marks)


def latency_figure(requests: Mapping[str, pd.DataFrame]) -> Figure:
    """Cumulative distributions of TTFT, TPOT and E2E latency of finished requests, one line a run."""
    frames = {name: latencies(frame) for name, frame in requests.items()}
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.5), layout="constrained")
        for axes, (column, label) in zip(figure.subplots(1, 3, sharey=True), LATENCIES.items(), strict=True):
            for (name, frame), (style, color) in zip(frames.items(), _line_looks(), strict=False):
                values = np.sort(frame[column].dropna().to_numpy())
                share = np.arange(1, len(values) + 1) / max(1, len(values))
                line: dict[str, Any] = {"color": color, "linestyle": style, "linewidth": 1.2}
                axes.step(values, share, where="post", label=name, **line)
            _scale(axes, np.concatenate([frame[column].dropna() for frame in frames.values()]))
            axes.set(xlabel=f"{label} (ms)", ylim=(0, 1.01))
            axes.grid()
        figure.axes[0].set_ylabel("share of requests")
        if len(frames) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            num_fitting = max(1, LEGEND_CHARACTERS // (6 + max(map(len, labels))))
            ncols = -(-len(labels) // -(-len(labels) // num_fitting))  # as few rows as it takes, equally full
            figure.set_figheight(2.3 + 0.2 * -(-len(labels) // ncols))
            figure.legend(handles, labels, loc="outside upper center", ncols=ncols)
        return figure


def _line_looks() -> Iterator[tuple[str, str]]:
    """Line styles and colours without end; of two neighbours that coincide, both still show."""
    return zip(cycle(("-", "--", ":")), cycle(PALETTE), strict=False)


def _scale(axes: Axes, values: Floats) -> None:
    """A logarithmic axis where values differ by more than a factor of 30."""
    positive = values[values > 0]
    if len(positive) == len(values) > 0 and positive.max() > 30 * positive.min():
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def comparison_figure(comparison: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """The error of the simulation, metric by metric, one column a policy, over the band that passes.

    `comparison` has a row for each policy and metric with the columns policy, metric, error, spread,
    allowed, all three relative to the measured value. The dark bar is the spread of the measured runs. An
    error that is undefined or infinite has no dot.
    """
    policies = list(dict.fromkeys(comparison["policy"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 0.9 + 0.22 * len(metrics)), layout="constrained")
        columns = np.atleast_1d(figure.subplots(1, len(policies), sharex=True, sharey=True))
        for axes, policy in zip(columns, policies, strict=True):
            rows = comparison[comparison["policy"] == policy].set_index("metric").loc[list(metrics)]
            _errors(axes, rows)
            axes.set_title(policy)
        columns[0].set_yticks(range(len(metrics)), [metric_label(metric) for metric in metrics])
        columns[0].invert_yaxis()
        finite = comparison[["error", "allowed"]].replace([np.inf, -np.inf], np.nan).abs()
        columns[0].set_xlim(*(np.array([-1.08, 1.08]) * np.nanmax(finite.to_numpy())))
        figure.supxlabel("simulated / measured - 1 (%)", fontsize=9)
        handles, labels = columns[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
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
