from __future__ import annotations

import pandas as pd

from experiments.figures.lines import lines_figure

RUNS = pd.DataFrame(
    {
        "policy": ["swap", "swap", "swap", "recompute", "recompute", "recompute"] * 2,
        "pool.num_blocks": [100, 200, 400] * 4,
        "seed": [0] * 6 + [1] * 6,
        "tax": [0.3, 0.2, 0.1, 0.6, 0.5, 0.4, 0.5, 0.4, 0.3, 0.8, 0.7, 0.6],
    }
)


def test_a_line_is_the_mean_over_seeds_and_its_band_their_range() -> None:
    figure = lines_figure(RUNS, "pool.num_blocks", {"tax": "tax (%)"}, "blocks", "azure_like")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["swap", "recompute"]
    assert [round(y, 6) for y in axes.lines[0].get_ydata()] == [0.4, 0.3, 0.2]
    assert axes.collections[0].get_paths()[0].get_extents().ymax == 0.5
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == [100, 200, 400]
    assert (axes.get_ylabel(), figure.get_suptitle()) == ("tax (%)", "azure_like")
