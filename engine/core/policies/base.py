"""The axes along which schedulers differ: one protocol each.

A policy is a small frozen dataclass. It looks at the scheduler through a `View`, changes nothing, and decides
from what has happened so far. Whatever it sorts by ends in the request id, so that no tie is left to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from engine.core.errors import UserError
from engine.core.fields import check_fields
from engine.core.request import Request
from engine.core.spec import Limits
from engine.core.view import View

QueueName = Literal["waiting", "running", "swapped"]


class Order(Protocol):
    """Who is next in a queue."""

    @property
    def sorts(self) -> Sequence[str]:
        """The queues ("waiting", "running", "swapped") kept in the order of `key`; others stay as they
        came.
        """
        ...

    def key(self, request: Request, view: View) -> tuple[float | str, ...]:
        """Lowest first; the last element is the request id. Asked when the request joins a queue, or when the
        queue is put in order.
        """
        ...


@runtime_checkable
class ChangingOrder(Order, Protocol):
    """An order in which a key may change while its request stands in a queue."""

    def has_changed(self, view: View) -> bool:
        """Whether the queue at hand must be put in order anew."""
        ...


@runtime_checkable
class AgeingOrder(Order, Protocol):
    """An order in which priorities change as requests wait."""

    def effective_priority(self, request: Request) -> float:
        """What has become of `request.priority`; lower goes first. Only differences count."""
        ...


class Admission(Protocol):
    """May a request take memory now: on entering, on growing, on coming back."""

    @property
    def headroom_per_seq(self) -> int:
        """Free blocks that each sequence of a request must find before it goes on, even if it needs
        fewer.
        """
        ...

    def screen(self, request: Request, view: View) -> str | None:
        """Why an arriving request is rejected at once; None if it may wait.

        The limits on what a request is (window, sequences) are the scheduler's own business.
        """
        ...

    def never(self, request: Request, view: View) -> str | None:
        """Why the request at the head of the queue could not even enter an empty pool; None if it could."""
        ...

    def enter(self, request: Request, num_tokens: int, view: View) -> bool:
        """A waiting request may start with so many tokens."""
        ...

    def resume(self, request: Request, num_blocks: int, view: View) -> bool:
        """A swapped request may come back, which takes `num_blocks`."""
        ...


class Verbs(Protocol):
    """What a batching program is written in; implemented by engine.core.step.Step."""

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


class Batching(Protocol):
    """How the token budget of a step is shared: a short program over requests."""

    @property
    def splits_prompts(self) -> bool:
        """A prompt may be spread over steps (chunked prefill)."""
        ...

    def fill(self, step: Verbs) -> None:
        """Run the program for one step."""
        ...


class Need(NamedTuple):
    """Why somebody has to go."""

    request: Request
    """It runs, and finds too few blocks."""
    num_blocks: int
    """Free blocks that it wants."""


class Victim(Protocol):
    """Whom to preempt when a running request finds no block."""

    def choose(self, view: View, need: Need) -> Request:
        """One of `view.running`, which is in queue order; it may be the one in need."""
        ...


class Restore(Protocol):
    """How a victim comes back."""

    def swaps(self, victim: Request, view: View) -> bool:
        """Keep its KV in the host pool (True), or drop it and compute it again (False).

        If the host pool has no room for it, it is recomputed whatever is answered here.
        """
        ...


class Reservation(Protocol):
    """How much memory is set aside ahead of need."""

    def tokens(self, request: Request, num_tokens: int, view: View) -> int:
        """Tokens to hold blocks for when `num_tokens` are about to be computed; not fewer."""
        ...


class CostEstimator(Protocol):
    """What work costs in the world that a policy runs in; a policy that weighs costs takes one as `cost`."""

    def recompute_ns(self, num_tokens: int) -> int:
        """What computing the KV of `num_tokens` tokens from position 0 adds to a step."""
        ...

    def transfer_ns(self, num_blocks: int) -> int:
        """Moving blocks between device and host, one way."""
        ...


@dataclass(frozen=True, slots=True)
class Policies:
    """One choice for each axis: all that two schedulers differ in."""

    order: Order
    admission: Admission
    batching: Batching
    victim: Victim
    restore: Restore
    reservation: Reservation

    def __post_init__(self) -> None:
        check_fields(self)  # each has the members of its axis

    def check(self, limits: Limits) -> None:
        """Whether a scheduler can work under these limits.

        Raises:
            UserError: prompts are not split, and the token budget is below the longest that a request may be
                when it is computed in one step: its prompt, or all it has after a preemption.
        """
        longest = limits.max_model_len - 1
        if not self.batching.splits_prompts and limits.max_num_batched_tokens < longest:
            raise UserError(
                f"limits.max_num_batched_tokens is {limits.max_num_batched_tokens}, and batching "
                f"{type(self.batching).__name__} does not split prompts: a request of up to {longest} tokens "
                f"(limits.max_model_len - 1) must fit into one step. Raise max_num_batched_tokens, lower "
                f"max_model_len, or choose a batching that splits prompts"
            )
