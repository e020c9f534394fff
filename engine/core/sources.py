"""Where requests come from: a list of arrivals and aborts, or sessions whose turns follow upon answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from types import MappingProxyType
from typing import NamedTuple

from engine.core.errors import UserError
from engine.core.events import ENDINGS, Event
from engine.core.serving import Serving
from engine.core.spec import RequestSpec

NO_ABORTS: Mapping[str, int] = MappingProxyType({})


class _Agenda:
    """What is known to come, in order of time; arrivals before aborts (which have no spec), then by id."""

    def __init__(self) -> None:
        self._to_come: list[tuple[int, bool, str, int, RequestSpec | None]] = []
        self._num_entries = 0
        """Tells two with the same id apart: they keep the order in which they were put in."""

    def next_ns(self) -> int | None:
        """When the next one is due."""
        return self._to_come[0][0] if self._to_come else None

    def deliver(self, now_ns: int, serving: Serving) -> None:
        """All that is due enters or is aborted; who has not come, or has ended, cannot be aborted."""
        while self._to_come and self._to_come[0][0] <= now_ns:
            _, _, request_id, _, spec = heappop(self._to_come)
            if spec is None:
                serving.abort(request_id, now_ns)
            elif not serving.try_arrive(spec, now_ns):
                self._ended(request_id, now_ns)

    def _put(self, time_ns: int, request_id: str, spec: RequestSpec | None) -> None:
        heappush(self._to_come, (time_ns, spec is None, request_id, self._num_entries, spec))
        self._num_entries += 1

    def _ended(self, request_id: str, time_ns: int) -> None:
        """A request is over."""


class Listed(_Agenda):
    """Requests that arrive at the times in their specs; `aborts_ns` says when clients of some go away."""

    def __init__(self, specs: Iterable[RequestSpec], aborts_ns: Mapping[str, int] = NO_ABORTS) -> None:
        super().__init__()
        for spec in sorted(specs, key=lambda spec: (spec.arrival_ns, spec.request_id)):
            self._put(spec.arrival_ns, spec.request_id, spec)
        for request_id, time_ns in aborts_ns.items():
            self._put(time_ns, request_id, None)

    def told(self, events: Sequence[Event]) -> None:
        """Nobody here waits for an answer."""


class Turn(NamedTuple):
    """One request of a session."""

    spec: RequestSpec
    """Its `arrival_ns` is that of the session if it is the first turn, and else of no account."""
    delay_ns: int = 0
    """From the end of the turn before to its arrival: what the client takes to read, think and write."""


class Sessions(_Agenda):
    """A closed loop: the next turn of a session arrives `delay_ns` after the last one has ended.

    However that ended: a turn that was rejected, refused or aborted is followed by the next one too.

    Raises:
        UserError: an id is used twice, or a delay is negative.
    """

    def __init__(self, sessions: Iterable[Sequence[Turn]]) -> None:
        super().__init__()
        self._rest: dict[str, deque[Turn]] = {}
        """The turns to come of a session, by the id of the one before them."""
        ids: set[str] = set()
        for turns in sessions:
            for turn in turns:
                _check(turn, ids)
                ids.add(turn.spec.request_id)
            if turns:
                self._arrives(deque(turns), turns[0].spec.arrival_ns)

    def told(self, events: Sequence[Event]) -> None:
        """The clients of requests that have ended go on."""
        for event in events:
            if event.kind in ENDINGS:
                self._ended(event.request_id, event.time_ns)

    def _ended(self, request_id: str, time_ns: int) -> None:
        rest = self._rest.pop(request_id, None)
        if rest:
            self._arrives(rest, time_ns + rest[0].delay_ns)

    def _arrives(self, turns: deque[Turn], time_ns: int) -> None:
        """The first of these turns does, then."""
        spec = replace(turns.popleft().spec, arrival_ns=time_ns)
        self._rest[spec.request_id] = turns
        self._put(time_ns, spec.request_id, spec)


def _check(turn: Turn, ids: set[str]) -> None:
    """Refuse a turn that could not come, or whose end could not be told from another's."""
    request_id = turn.spec.request_id
    if request_id in ids:
        raise UserError(f"request {request_id}: the sessions have this id twice; give each turn its own")
    if turn.delay_ns < 0:
        raise UserError(f"request {request_id}: delay_ns is {turn.delay_ns}, must not be negative")
