"""A user's own policies, which no YAML of conf/ knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.core.policies.victim import Need
from engine.core.request import Request
from engine.core.view import View


@dataclass(frozen=True, slots=True)
class LeastComputed:
    """The victim is the request with the fewest computed tokens."""

    def choose(self, view: View, need: Need) -> Request:
        return min(view.running, key=lambda request: (request.num_computed_tokens, request.id))


@dataclass(slots=True, eq=False)
class TakesTurns:
    """Keeps state: the last and the first of the running requests in turn."""

    num_choices: int = 0

    def choose(self, view: View, need: Need) -> Request:
        self.num_choices += 1
        return view.running[-1] if self.num_choices % 2 else view.running[0]


@dataclass(frozen=True, slots=True)
class Forgetful:
    """A policy whose method has no return."""

    def choose(self, view: View, need: Need) -> Request:  # type: ignore[empty-body]
        pass

    def swaps(self, victim: Request, view: View) -> bool:  # type: ignore[empty-body]
        pass


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The victim is no running request."""

    def choose(self, view: View, need: Need) -> str:
        return view.running[0].id


@dataclass(frozen=True, slots=True)
class Buggy:
    """Raises what numpy raises."""

    def choose(self, view: View, need: Need) -> Request:
        np.zeros(2) + np.zeros(3)
        return view.running[0]
