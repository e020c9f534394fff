"""What a batching program is written in; implemented by engine.core.step.Step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from engine.core.request import Request
from engine.core.view import View


class Verbs(Protocol):
    """Whom a program may go through, what it may do with them, what it may ask of the step so far."""

    view: View

    @property
    def batch(self) -> Sequence[Request]:
        """Those that compute something in this step so far, in batch order."""
        ...

    @property
    def is_all_decode(self) -> bool:
        """Each of them computes its newest token and gets one more."""
        ...

    @property
    def num_preemptions(self) -> int:
        """Victims of this step, so far."""
        ...

    @property
    def admitted(self) -> Sequence[Request]:
        """Those that have entered in this step."""
        ...

    @property
    def resumed(self) -> Sequence[Request]:
        """Those that have come back from the host pool."""
        ...

    def clip(self, request: Request) -> int:
        """What the token budget allows of what a request is behind by."""
        ...

    def keeps(self, victim: Request) -> bool:
        """Its KV would be kept if it were preempted now."""
        ...

    def running(self) -> Iterator[Request]:
        """In queue order, those who need a decision; a decode that has its block gets its token unasked."""
        ...

    def swapped(self) -> Iterator[Request]:
        """In queue order."""
        ...

    def waiting(self) -> Iterator[Request]:
        """In queue order."""
        ...

    def advance(self, request: Request, *, headroom_per_seq: int | None = None) -> bool:
        """A running request gets what it is behind by; where memory is short, others are preempted. False,
        and nothing, if it is itself the victim.
        """
        ...

    def resume(self, request: Request, num_tokens: int) -> bool:
        """A swapped request comes back and computes. False if it has to wait."""
        ...

    def admit(self, request: Request, num_tokens: int) -> bool:
        """A waiting request enters and computes. False if it has to wait."""
        ...

    def preempt(self, victim: Request) -> None:
        """A running request loses its blocks, and what it was given in this step."""
        ...

    def lay_out(self, place: Callable[[Request], int], queue_place: Callable[[Request], int]) -> None:
        """Sort the batch, and the running queue until it is put in order."""
        ...
