"""How much slower than its cost model says a simulated step goes: a machine's drift, or its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from engine.core.work import Work
from sim.cost.kinds import kind

Pace = Callable[[Work], float]
"""Asked once a step, in order: time of the step / what the cost model says."""


def steady(factor: float) -> Pace:
    """Every step is slower by the same factor."""
    return lambda step: factor


class Rerun:
    """The ratios measured / fitted of other steps, kind by kind, in the order in which they were measured.

    Each kind starts at a place of its own, drawn at random, and goes round. So a simulated run gets not only
    the spread of the measured steps but their drift too: neighbours are slow together.
    """

    def __init__(self, ratios: Mapping[str, Sequence[float]], rng: np.random.Generator) -> None:
        self._ratios: dict[str, Iterator[float]] = {
            name: islice(cycle(values), int(rng.integers(len(values))), None)
            for name, values in ratios.items()
            if values
        }

    def __call__(self, step: Work) -> float:
        """The next ratio of this kind; 1 for a kind that was not measured."""
        ratios = self._ratios.get(kind(step))
        return 1.0 if ratios is None else next(ratios)
