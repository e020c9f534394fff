"""How far the measured steps went, and what a run asks for beyond that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import gt
from typing import Any, NamedTuple

from engine.core.errors import UserError
from sim.cost.base import Beyond, StepFeatures

REACH = 2
"""A fit is trusted up to this multiple of the largest value that was measured."""


class Range(NamedTuple):
    """The smallest and the largest value of a feature in the measured steps."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Ranges:
    """The range of every feature, by its name."""

    of: Mapping[str, Range] = field(hash=False)
    reach: tuple[int, ...] = field(init=False, repr=False)
    """For each feature, up to where its costs are believed; 0 if no measured step had it."""

    def __post_init__(self) -> None:
        reach = tuple(REACH * self.of[name].high for name in StepFeatures._fields)
        object.__setattr__(self, "reach", reach)

    @classmethod
    def measured(cls, steps: Iterable[StepFeatures]) -> Ranges:
        """The ranges of some steps, at least one."""
        columns = zip(*steps, strict=True)
        return cls(
            {
                name: Range(min(column), max(column))
                for name, column in zip(StepFeatures._fields, columns, strict=True)
            }
        )

    @classmethod
    def of_json(cls, values: Any, where: str) -> Ranges:
        """Pairs of numbers, one for each feature; UserError, naming the key, otherwise."""
        names = set(StepFeatures._fields)
        if not isinstance(values, dict) or values.keys() != names:
            raise UserError(f"{where}: the keys must be {', '.join(sorted(names))}: calibrate again")
        for name, pair in values.items():
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)):
                raise UserError(f"{where}: {name} is {pair!r}, must be two whole numbers: calibrate again")
        return cls({name: Range(*pair) for name, pair in values.items()})

    def beyond(self, step: StepFeatures) -> Mapping[str, Beyond]:
        """The features of a step beyond twice their range; nearly always none, and so without a loop."""
        if not any(map(gt, step, self.reach)):
            return {}
        return {
            name: Beyond(value, self.of[name].high)
            for name, value, reach in zip(StepFeatures._fields, step, self.reach, strict=True)
            if value > reach
        }
