"""The distributions of the latencies of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from engine.telemetry.latency import latencies
from experiments.figures.style import PALETTE, STYLE, Floats

LEGEND_CHARACTERS = 95
"""What fits beside one another above a figure, 6 for the line before each label."""
LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2E latency"}


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
