"""One policy an axis: all that two schedulers differ in.

Each axis is a protocol, at the top of the file that has its policies. A policy is a small frozen dataclass.
It looks at the scheduler through a `View`, changes nothing, and decides from what has happened so far.
Whatever it sorts by ends in the request id, so that no tie is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from engine.core.errors import UserError
from engine.core.events import Event
from engine.core.fields import check_fields
from engine.core.policies.admission import Admission
from engine.core.policies.batching import Batching
from engine.core.policies.order import Order
from engine.core.policies.reservation import Reservation
from engine.core.policies.restore import Restore
from engine.core.policies.victim import Victim
from engine.core.spec import Limits


@runtime_checkable
class Learning(Protocol):
    """A policy of any axis that keeps state: it is told every event as it happens, in order.

    What it decides may depend on these and on what a `View` shows, on nothing else: so a replay of the
    journal with a fresh policy gives the same plans (law 9).
    """

    def observe(self, event: Event) -> None:
        """Something has happened."""
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

    @property
    def learning(self) -> list[Learning]:
        """Those that keep state, in the order of the axes; one that serves two axes is told once."""
        chosen = {id(policy): policy for policy in (getattr(self, field.name) for field in fields(self))}
        return [policy for policy in chosen.values() if isinstance(policy, Learning)]

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
