"""What a cost model answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from engine.core.errors import UserError
from engine.core.policies.restore import CostEstimator
from engine.core.work import Work


class Beyond(NamedTuple):
    """A feature that a cost model has to extrapolate far."""

    value: int
    calibrated: int
    """The largest value in the steps that the model was fitted to."""


class CostModel(CostEstimator, Protocol):
    """Prices a step, and answers what a policy asks that weighs swapping against recomputation."""

    def parts_ns(self, step: Work) -> dict[str, float]:
        """The duration of the step as a named sum, so that an error can be traced to a part."""
        ...


@runtime_checkable
class MeasuredCostModel(CostModel, Protocol):
    """A cost model that was fitted to measured steps, and so knows how far they went."""

    def beyond(self, step: Work) -> Mapping[str, Beyond]:
        """The features of the step of which the model knows too little to be believed, by name."""
        ...

    @property
    def caveat(self) -> str | None:
        """Why none of its prices should be trusted much, in one line; None if the measurement was good."""
        ...


class Extrapolation:
    """Counts the steps that a cost model priced beyond what it was calibrated for."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_beyond = 0
        self.farthest: dict[str, Beyond] = {}

    def note(self, beyond: Mapping[str, Beyond]) -> None:
        """Count a step; `beyond` as the cost model tells."""
        self.num_steps += 1
        if beyond:
            self.num_beyond += 1
            for name, at in beyond.items():
                self.farthest[name] = max(at, self.farthest.get(name, at))

    def remark(self) -> str | None:
        """One line for whoever reads the figures of the run; None if all steps were in range."""
        if not self.num_beyond:
            return None
        share = self.num_beyond / self.num_steps
        features = ", ".join(
            f"{name} up to {at.value:,} (calibrated up to {at.calibrated:,})"
            for name, at in sorted(self.farthest.items())
        )
        return (
            f"{share:.0%} of the steps ({self.num_beyond:,} of {self.num_steps:,}) lie beyond twice the "
            f"calibrated range of the cost model: {features}"
        )


def unmeasured() -> CostModel:
    """The cost model of an engine that nobody has calibrated: whoever asks for it is told so."""
    raise UserError(
        "no costs are known here. Measure this engine with `python -m experiments.calibrate`, then give "
        "cost=fitted cost.path=.../cost_model.json"
    )
