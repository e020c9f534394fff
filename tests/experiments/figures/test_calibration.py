from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.figures.calibration import calibration_figure
from tests.experiments.figures.labels import labels


def test_calibration_figure_stacks_the_parts_that_matter() -> None:
    predicted = pd.DataFrame(
        {"linear": [1e6, 2e6, 4e6], "attention": [1e6, 1e6, 1e6], "transfers": [0.0] * 3}
    )
    figure = calibration_figure([2e6, 3e6, 5.5e6], predicted, ["decode", "decode", "prefill"])
    assert labels(figure, 0) == ["decode, n = 2", "prefill, n = 1"]
    assert labels(figure, 1) == ["linear", "attention"]
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    np.testing.assert_allclose(heights, [1.5, 4.0, 1.0, 1.0])
    assert figure.axes[0].get_title() == "median error 0.0%, p90 7.3%"
