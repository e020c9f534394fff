"""What a figure says."""

from __future__ import annotations

from matplotlib.figure import Figure


def labels(figure: Figure, axes: int) -> list[str]:
    return [str(label) for label in figure.axes[axes].get_legend_handles_labels()[1]]
