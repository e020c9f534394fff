"""The distributions of the latencies of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from engine.telemetry.latency import latencies
from engine.telemetry.schema import World
from experiments.figures.style import LINE_STYLES, STYLE, Floats, policy_looks, round_ticks

LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2E latency"}
LEGEND_CHARACTERS = 95
"""What fits beside one another below a figure, 6 for the line before each label."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The requests of one run: the policy that served them, and the world."""

    policy: str
    world: World
    requests: pd.DataFrame


def latency_figure(curves: Sequence[Curve], title: str = "") -> Figure:
    """Cumulative distributions of TTFT, TPOT and E2E latency of finished requests, one line a run.

    Colour is the policy, and line style the world: solid measured, dashed simulated. Runs of the same policy
    in the same world are lines of the same look.
    """
    frames = [latencies(curve.requests) for curve in curves]
    looks = policy_looks(curve.policy for curve in curves)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.5), layout="constrained")
        for axes, (column, label) in zip(figure.subplots(1, 3, sharey=True), LATENCIES.items(), strict=True):
            values = [np.sort(frame[column].dropna().to_numpy(dtype=float)) for frame in frames]
            for curve, ms in zip(curves, values, strict=True):
                _distribution(axes, ms, looks[curve.policy], curve.world)
            round_ticks(axes, "x", np.concatenate([*values, np.empty(0)]))
            axes.set(xlabel=f"{label} (ms)", ylim=(0, 1.01))
            axes.grid()
            if not any(map(len, values)):
                axes.set_xticks([])
                axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        figure.axes[0].set_ylabel("share of requests")
        height = 2.4 + _legend(figure, curves, looks) + 0.17 * (1 + title.count("\n")) * bool(title)
        figure.set_figheight(height)
        if title:
            figure.suptitle(title)
        return figure


def _distribution(axes: Axes, ms: Floats, look: Mapping[str, Any], world: World) -> None:
    share = np.arange(1, len(ms) + 1) / max(1, len(ms))
    marks: dict[str, Any] = {"markersize": 4, "markevery": max(1, len(ms) // 6)}
    if len(ms) == 1:
        marks["marker"] = "o"  # a distribution of one has no line
    axes.step(ms, share, where="post", linestyle=LINE_STYLES[world], linewidth=1.2, **{**look, **marks})


def _legend(figure: Figure, curves: Sequence[Curve], looks: Mapping[str, Mapping[str, Any]]) -> float:
    """Policies, then worlds, each only if there are several; the height that it takes, in inches."""
    entries: dict[str, Line2D] = {}
    if len(looks) > 1:
        entries |= {name: Line2D([], [], markersize=4, **look) for name, look in looks.items()}
    worlds = dict.fromkeys(curve.world for curve in curves)
    if len(worlds) > 1:
        for world in worlds:
            entries[str(world)] = Line2D([], [], color="#444444", linestyle=LINE_STYLES[world])
    if not entries:
        return 0.0
    num_fitting = max(1, LEGEND_CHARACTERS // (6 + max(map(len, entries))))
    num_rows = -(-len(entries) // num_fitting)
    ncols = -(-len(entries) // num_rows)  # as few rows as it takes, equally full
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=ncols)
    return 0.2 * num_rows
