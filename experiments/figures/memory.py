"""The device pool, the queues and the preemptions of a run over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from engine.telemetry.memory import binned_states
from engine.telemetry.runlog import Log
from engine.telemetry.series import lengths_ns
from experiments.figures.style import FREE, STYLE, Floats

LAYERS = {
    "holds KV": ("U", "#0072B2"),
    "being written": ("S", "#56B4E9"),
    "allocated, empty": ("W", "#E69F00"),
}
"""What slots are used for, from below: the column of `memory_states`, and its colour."""
RUNNING, WAITING, SWAPPED = "#000000", "#777777", "#CC79A7"
PREEMPTIONS = {"recompute": "#D55E00", "swap": SWAPPED}
MAX_POINTS = 600
"""Points of a curve over time, about what print resolves; a longer run is averaged over as many stretches."""
NUM_BARS = 80
"""Stretches of time in which preemptions are counted: a single one is wide enough to be seen."""
SMALL = 0.25
"""A pool that is never fuller than this is drawn to its peak, not to 100 %."""


def memory_figure(log: Log, title: str = "") -> Figure:
    """The device pool over time, by what its slots are used for; below it queues and preemptions.

    Queues that are never used have no panel: requests that wait, and those that are swapped out, have one
    of their own, since a long queue would hide a short one. In a long run a point is the mean over its
    stretch of time.
    """
    states, preemptions = binned_states(log, MAX_POINTS), _preempted(log)
    panels = [name for name in ("waiting", "swapped") if states[f"num_{name}"].any()]
    preempting = [kind for kind in PREEMPTIONS if preemptions[f"num_{kind}_preemptions"].any()]
    heights = [3.0, *[1.2] * (1 + len(panels)), *[1.2] * bool(preempting)]
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 1.0 + 0.75 * sum(heights)), layout="constrained")
        pool, running, *rest = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        _pool(pool, states)
        _queue(running, states, "running", RUNNING)
        for axes, name in zip(rest, panels, strict=False):
            _queue(axes, states, name, WAITING if name == "waiting" else SWAPPED)
        if preempting:
            _preemptions(rest[-1], preemptions, preempting, *pool.get_xlim())
        figure.axes[-1].set_xlabel("time (s)")
        figure.align_ylabels()
        size = f"KV pool: {log.capacity.num_blocks:,} blocks of {log.capacity.block_size} tokens"
        figure.suptitle("\n".join(filter(None, [title or log.world, size + _resolution(states)])))
        return figure


def _preempted(log: Log) -> pd.DataFrame:
    """When how many requests were preempted; the steps in which some were."""
    columns = [f"num_{kind}_preemptions" for kind in PREEMPTIONS]
    chunks = [chunk[["start_ns", *columns]] for chunk in log.step_chunks("start_ns", *columns)]
    return pd.concat([chunk[chunk[columns].any(axis=1)] for chunk in chunks])


def _resolution(states: pd.DataFrame) -> str:
    """How long a stretch is that a point stands for, if the run is too long for one a step."""
    return f"; means of {lengths_ns(states)[0] / 1e9:.2g} s" if len(states) == MAX_POINTS else ""


def _steps(states: pd.DataFrame, values: pd.Series) -> tuple[Floats, Floats]:
    """The corners of a curve that keeps each value from begin_ns to until_ns, in s."""
    times_ns = np.append(states["begin_ns"], states["until_ns"].tail(1))
    return times_ns / 1e9, np.append(values, values.tail(1))


def _pool(axes: Axes, states: pd.DataFrame) -> None:
    """Areas on top of one another; the upper edge of each is a curve."""
    top, upper = pd.Series(0.0, index=states.index), pd.Series(1.0, index=states.index)
    areas = []
    for label, (share, color) in LAYERS.items():
        areas.append((top, top + states[share], color, label))
        top = top + states[share]
    areas.append((top, upper, FREE, "free"))
    for low, high, color, label in reversed(areas):
        times_s, lows = _steps(states, low)
        highs = _steps(states, high)[1]
        axes.fill_between(times_s, lows, highs, step="post", linewidth=0, color=color, label=label)
    peak = float(top.max()) if len(top) else 0.0
    axes.set(ylabel="share of\nthe pool", ylim=(0, 1.25 * peak if 0 < peak < SMALL else 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    axes.margins(x=0)
    _legend(axes)


def _queue(axes: Axes, states: pd.DataFrame, name: str, color: str) -> None:
    """How many requests are in one of the queues."""
    times_s, values = _steps(states, states[f"num_{name}"])
    axes.step(times_s, values, where="post", color=color, linewidth=1)
    axes.fill_between(times_s, values, step="post", linewidth=0, color=color, alpha=0.25)
    axes.set(ylabel=f"requests\n{name}", ylim=(0, 1.1 * max([1, *values])))
    _counts(axes)


def _preemptions(axes: Axes, steps: pd.DataFrame, kinds: list[str], begin_s: float, end_s: float) -> None:
    """How many requests were preempted in each stretch of time, by what was done with their KV."""
    edges_s = np.linspace(begin_s, end_s, NUM_BARS + 1)
    bottom = np.zeros(NUM_BARS)
    for kind in kinds:
        numbers = steps[f"num_{kind}_preemptions"]
        counts, _ = np.histogram(steps["start_ns"] / 1e9, edges_s, weights=numbers)
        bars: dict[str, Any] = {"width": np.diff(edges_s), "align": "edge", "color": PREEMPTIONS[kind]}
        axes.bar(edges_s[:-1], counts, bottom=bottom, label=f"by {kind}: {numbers.sum():,}", **bars)
        bottom += counts
    axes.set_ylabel("preemp-\ntions")
    _counts(axes)
    _legend(axes)


def _counts(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    axes.margins(x=0)


def _legend(axes: Axes) -> None:
    """To the right, from top to bottom as the areas lie."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05))
