"""What all figures have in common: colours, line styles, fonts, axes, and how one is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from engine.telemetry.schema import World

Floats = NDArray[np.float64]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
"""Okabe and Ito (2008): told apart with any colour vision, and in print; the darker ones first."""
LINE_STYLES: dict[World, Any] = {World.MEASURED: "-", World.SIMULATED: (0, (4, 1.5))}
MARKERS = ("", "o", "s", "^")
"""Tell the policies apart of which there are more than colours."""
FREE = "#EEEEEE"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
}
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
DPI = 200
DECADES = 1.5
"""Spread of positive values, as log10(max / min), from which an axis is logarithmic."""


def policy_looks(policies: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The colour, and beyond eight policies the marker, of each policy.

    They depend on the order of the names alone, so all figures of a run that name the same policies in the
    same order show each in the same colour.
    """
    looks = {}
    for index, policy in enumerate(dict.fromkeys(policies)):
        marker = MARKERS[index // len(PALETTE) % len(MARKERS)]
        looks[policy] = {"color": PALETTE[index % len(PALETTE)], "marker": marker}
    return looks


def round_ticks(axes: Axes, which: Literal["x", "y"], values: Floats) -> None:
    """Ticks at round numbers that do not collide; a logarithmic axis where the values ask for one.

    `values` are those that the axis shows. Positive ones that span 1.5 decades or more get a logarithmic
    axis, with ticks at decades, and at 3 times these where there are few.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = _decades(values)
    if decades < DECADES:
        axis.set_major_locator(MaxNLocator(4 if which == "x" else 6, steps=[1, 2, 5, 10]))
    else:
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 3) if decades < 2.5 else (1,), numticks=6))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _decades(values: Floats) -> float:
    """log10(max / min) of values that are all positive, otherwise 0."""
    if not len(values) or values.min() <= 0:
        return 0.0
    return float(np.log10(values.max() / values.min()))


def short(value: float) -> str:
    """A tick label: 0.05, 2000, 30k, 1.5M."""
    factor, suffix = next((pair for pair in UNITS if abs(value) >= 10 * pair[0]), (1, ""))
    return f"{value / factor:g}{suffix}"


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG without the version of the writer in it, so that equal figures are equal files."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
