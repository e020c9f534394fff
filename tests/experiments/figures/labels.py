"""What a figure says."""

from __future__ import annotations

from matplotlib.figure import Figure


def labels(figure: Figure, axes: int) -> list[str]:
    return [str(label) for label in figure.axes[axes].get_legend_handles_labels()[1]]


def labels_of_legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]
