"""Measured steps: what a cost model is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.backend import RequestSpec
from engine.core.plan import Event, StepPlan, StepResult
from sim.cost.base import CostModel, StepFeatures, features


class StepSamples:
    """An observer that keeps the features and the period of each step (engine.core.serving.Observer).

    The period is that of the driver, from one step's beginning to the next one's: planning, execution and
    bookkeeping together. That is what a simulated step must take.
    """

    def __init__(self) -> None:
        self.steps: list[StepFeatures] = []
        self.periods_ns: list[int] = []

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """Nothing to note."""

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """Keep a step that computed or moved something."""
        if plan.num_tokens or plan.transfers:
            self.steps.append(features(plan))
            self.periods_ns.append(end_ns - start_ns)

    def total_error(self, cost: CostModel) -> float:
        """(priced - measured) / measured of all periods together: what a cost model makes of these steps."""
        priced_ns = sum(sum(cost.parts_ns(step).values()) for step in self.steps)
        return priced_ns / sum(self.periods_ns) - 1
