"""How much slower than its cost model says a simulated step goes: a machine's drift, or its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from engine.core.work import Work
from sim.cost.base import CostModel
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


class Followed:
    """The changing speed of the machine in one measured run: measured / priced, by stretches of priced work.

    Where the simulated run has done as much work as the measured one had, its steps are as much slower. What
    is left of an error is then no matter of speed, but part of what is wrong with the price of one kind of
    step against another is gone too, the more the shorter the stretches: at one step all of it.
    """

    def __init__(
        self,
        steps: Sequence[Work],
        periods_ns: Sequence[int],
        cost: CostModel,
        stretch_ns: float,
    ) -> None:
        priced_ns = np.array([_price_ns(cost, step) for step in steps])
        stretch = ((np.cumsum(priced_ns) - priced_ns) // stretch_ns).astype(np.int64)
        sums = [np.bincount(stretch, values) for values in (np.asarray(periods_ns, np.float64), priced_ns)]
        overall = sums[0].sum() / sums[1].sum()
        # A stretch within which no step began has no speed of its own.
        self._ratios = [m / p if p else overall for m, p in zip(*sums, strict=True)]
        self._cost = cost
        self._stretch_ns = stretch_ns
        self._done_ns = 0.0

    def __call__(self, step: Work) -> float:
        """The ratio where this step begins; beyond the end of the measured run, that of its last stretch."""
        at = min(int(self._done_ns // self._stretch_ns), len(self._ratios) - 1)
        self._done_ns += _price_ns(self._cost, step)
        return float(self._ratios[at])


def _price_ns(cost: CostModel, step: Work) -> float:
    return sum(cost.parts_ns(step).values())
