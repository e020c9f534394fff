"""How far the measured steps went, and what a run asks for beyond that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from operator import gt
from typing import Any, NamedTuple

from engine.core.errors import UserError
from engine.core.work import Work
from sim.cost.base import Beyond
from sim.cost.terms import FEATURES

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
    reach: tuple[float, ...] = field(init=False, repr=False)
    """For each field of `Work`, up to where its costs are believed; 0 if no measured step had any of it, and
    no bound to what is no feature.
    """

    def __post_init__(self) -> None:
        reach = tuple(REACH * self.of[name].high if name in self.of else inf for name in Work._fields)
        object.__setattr__(self, "reach", reach)

    @classmethod
    def measured(cls, steps: Iterable[Work]) -> Ranges:
        """The ranges of some steps, at least one."""
        columns = dict(zip(Work._fields, zip(*steps, strict=True), strict=True))
        return cls({name: Range(min(columns[name]), max(columns[name])) for name in FEATURES})

    @classmethod
    def of_json(cls, values: Any, where: str) -> Ranges:
        """Pairs of numbers, one for each feature; UserError, naming the key, otherwise."""
        names = set(FEATURES)
        if not isinstance(values, dict) or values.keys() != names:
            raise UserError(f"{where}: the keys must be {', '.join(sorted(names))}: calibrate again")
        for name, pair in values.items():
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)):
                raise UserError(f"{where}: {name} is {pair!r}, must be two whole numbers: calibrate again")
        return cls({name: Range(*pair) for name, pair in values.items()})

    def beyond(self, step: Work) -> Mapping[str, Beyond]:
        """The features of a step beyond twice their range; nearly always none, and so without a loop."""
        if not any(map(gt, step, self.reach)):
            return {}
        return {
            name: Beyond(value, self.of[name].high)
            for name, value, reach in zip(Work._fields, step, self.reach, strict=True)
            if value > reach
        }
