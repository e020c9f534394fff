"""The axes along which schedulers differ: one protocol each.

A policy is a small frozen dataclass. It sees the state of the scheduler, changes nothing, and decides from
what has happened so far. Whatever it sorts by ends in the request id, so that no tie is left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from engine.core.errors import UserError
from engine.core.fields import check_fields
from engine.core.kv_cache import KVCache
from engine.core.request import Request
from engine.core.spec import Limits

QueueName = Literal["waiting", "running", "swapped"]


class State(Protocol):
    """What a policy may look at."""

    @property
    def kv(self) -> KVCache:
        """Block tables and pools."""
        ...

    @property
    def limits(self) -> Limits:
        """What a step and a request may not exceed."""
        ...

    @property
    def running(self) -> Sequence[Request]:
        """The running queue."""
        ...

    @property
    def batch(self) -> Sequence[Request]:
        """All that run, those that entered in this very step included."""
        ...

    @property
    def is_busy(self) -> bool:
        """Some request runs, those that entered in this very step included."""
        ...


class Order(Protocol):
    """Who is next in a queue."""

    @property
    def sorts(self) -> tuple[str, ...]:
        """The queues ("waiting", "running", "swapped") kept in the order of `key`; others stay as they
        came.
        """
        ...

    @property
    def ages(self) -> bool:
        """The key depends on the time, so that queues are sorted anew in each step."""
        ...

    def key(self, request: Request, now_ns: int) -> tuple[float | str, ...]:
        """Lowest first; the last element is the request id."""
        ...


@runtime_checkable
class AgeingOrder(Order, Protocol):
    """An order in which priorities change as requests wait."""

    def effective_priority(self, request: Request, now_ns: int) -> float:
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

    @property
    def screens_arrivals(self) -> bool:
        """Ask `never` when a request arrives, not only when it is at the head of the queue."""
        ...

    def never(self, request: Request, state: State) -> str | None:
        """Why the request could not even enter an empty pool; None if it could.

        The limits on what a request is (window, sequences) are the scheduler's own business.
        """
        ...

    def enter(self, request: Request, num_new_tokens: int, state: State) -> bool:
        """A waiting request may start; the pool has at least the blocks of its first chunk."""
        ...

    def resume(self, num_blocks: int, state: State) -> bool:
        """A swapped request may come back, which takes `num_blocks`."""
        ...


class Verbs(Protocol):
    """What a batching program is written in; implemented by engine.core.step.Step."""

    @property
    def running(self) -> Sequence[Request]:
        """The running queue; who enters in this step joins it at the end."""
        ...

    @property
    def num_swapped(self) -> int:
        """Requests still swapped out."""
        ...

    @property
    def is_busy(self) -> bool:
        """Some request runs."""
        ...

    @property
    def num_chunks(self) -> int:
        """Requests that compute something in this step, so far."""
        ...

    @property
    def num_preemptions(self) -> int:
        """Victims of this step, so far."""
        ...

    def continue_running(self, *, until_self_preempted: bool = False) -> None:
        """Running requests get what they are behind by; where memory is short, others are preempted.

        Where the one in need must itself go, those behind it have their turn, unless `until_self_preempted`.
        """
        ...

    def resume_swapped(self, *, whole: bool = False) -> None:
        """Swapped requests come back and compute in the same step, clipped to the token budget unless
        `whole`.
        """
        ...

    def admit_waiting(self) -> None:
        """Waiting requests enter, head of the queue first, until one does not fit."""
        ...

    def put_prefills_first(self) -> None:
        """Lay the batch out as vLLM 0.4.2 does with chunked prefill."""
        ...


class Batching(Protocol):
    """How the token budget of a step is shared: a short program over the three verbs."""

    @property
    def splits_prompts(self) -> bool:
        """A prompt may be spread over steps (chunked prefill)."""
        ...

    def fill(self, step: Verbs) -> None:
        """Run the program for one step."""
        ...


class Victim(Protocol):
    """Whom to preempt when a running request finds no block."""

    def choose(self, running: Sequence[Request]) -> Request:
        """One of the running requests, which come in queue order; it may be the one in need.

        A policy that goes by priority looks at `Request.effective_priority`, as the order does.
        """
        ...


class Restore(Protocol):
    """How a victim comes back."""

    def swaps(self, victim: Request, state: State) -> bool:
        """Keep its KV in the host pool (True), or drop it and compute it again (False).

        If the host pool has no room for it, it is recomputed whatever is answered here.
        """
        ...


class Reservation(Protocol):
    """How much memory is set aside ahead of need."""

    def num_tokens(self, request: Request, num_tokens: int, state: State) -> int:
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
