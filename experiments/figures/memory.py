"""The device pool and the queues of a run over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from engine.telemetry.memory import memory_states
from engine.telemetry.runlog import RunLog
from engine.telemetry.series import binned, lengths_ns
from experiments.figures.style import FREE, PALETTE, STYLE, Floats

KV, WRITTEN, WASTE = "#0072B2", "#56B4E9", "#E69F00"
MAX_POINTS = 600
"""Points of a curve over time, about what print resolves; a longer run is averaged over as many stretches."""
SMALL = 0.25
"""A pool that is never fuller than this is drawn to its peak, not to 100 %."""
QUEUES = ("running", "waiting", "swapped")


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
