"""What the errors of step times have in common, and what is left of them by kind of step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.figures.style import FREE, PALETTE, STYLE


def residuals_figure(
    step_bias: Sequence[float], residuals: pd.DataFrame, limit: float, title: str = ""
) -> Figure:
    """Left the step bias, right the residuals with it taken out; a dot a repeat, a bar the mean.

    `residuals` has a row a kind of step and repeat with the columns kind, num_steps and residual. Errors are
    shares of the measured time; `limit` is the largest bias that passes.
    """
    kinds = list(dict.fromkeys(residuals["kind"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.7), layout="constrained")
        common, by_kind = figure.subplots(1, 2, sharey=True, width_ratios=(1, max(2, len(kinds))))
        common.axhspan(-limit, limit, color=FREE, linewidth=0)
        _dots(common, 0, step_bias)
        common.set_xticks([0], ["all steps"])
        common.set(title="step bias", ylabel="priced / measured - 1", xlim=(-1, 1))
        for place, kind in enumerate(kinds):
            _dots(by_kind, place, residuals[residuals["kind"] == kind]["residual"])
        numbers = residuals.groupby("kind")["num_steps"].sum()
        by_kind.set_xticks(range(len(kinds)), [f"{kind}\n{numbers[kind]:,} steps" for kind in kinds])
        by_kind.set(title="residual by kind of step, the bias taken out", xlim=(-0.7, len(kinds) - 0.3))
        for axes in (common, by_kind):
            axes.axhline(0, color="#444444", linewidth=0.8)
            axes.tick_params(axis="x", length=0)
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda share, _: f"{100 * share:+.3g} %" if share else "0")
            )
        if title:
            figure.suptitle(title)
        return figure


def _dots(axes: Axes, place: float, values: Sequence[float] | pd.Series) -> None:
    offsets = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
    axes.plot(place + offsets, list(values), "o", color=PALETTE[0], markersize=4)
    axes.hlines(float(np.mean(values)), place - 0.3, place + 0.3, color="black", linewidth=1.2)
