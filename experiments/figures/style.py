"""What all figures have in common: colours, fonts, and how one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#000000")
"""Okabe and Ito (2008): told apart with any colour vision, and in print."""
FREE = "#EEEEEE"
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


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG without the version of the writer in it, so that equal figures are equal files."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
