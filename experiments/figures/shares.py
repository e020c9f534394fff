"""What something is made of, against one number that is varied: stacked bars, a panel a policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.figures.style import STYLE, short


def shares_figure(
    runs: pd.DataFrame,
    x: str,
    parts: Mapping[str, tuple[str, str]],
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Figure:
    """Parts of a whole, from below, as means over the runs of a policy with the same value of `x`.

    `runs` has the columns policy and `x`, and one for each of `parts`, which gives it a label and a colour.
    """
    policies = list(dict.fromkeys(runs["policy"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.6 * len(policies), 2.9), layout="constrained")
        panels = np.ravel(figure.subplots(1, len(policies), sharey=True))
        for axes, policy in zip(panels, policies, strict=True):
            means = runs[runs["policy"] == policy].groupby(x)[list(parts)].mean()
            bottom, places = np.zeros(len(means)), np.arange(len(means))
            for part, (label, color) in parts.items():
                axes.bar(places, means[part], bottom=bottom, color=color, width=0.75, label=label)
                bottom += means[part].to_numpy()
            axes.set_xticks(places, [short(value) for value in means.index])
            axes.tick_params(axis="x", length=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
            axes.set(title=policy, xlabel=xlabel)
            axes.grid(axis="y")
        panels[0].set_ylabel(ylabel)
        handles, labels = panels[0].get_legend_handles_labels()
        panels[-1].legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
        if title:
            figure.suptitle(title)
        return figure
