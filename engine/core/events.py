"""The turns of a request's life, each told once: by the `commit` after it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class EventKind(StrEnum):
    """The turns that a request's life can take."""

    ADDED = "added"
    SCHEDULED = "scheduled"
    """Computed its first token."""
    PREEMPTED = "preempted"
    RESUMED = "resumed"
    """Swapped in, or admitted again to be recomputed."""
    FIRST_TOKEN = "first_token"
    SEQUENCE_FINISHED = "sequence_finished"
    """One sequence of a parallel-sampling request ended, others go on."""
    FINISHED = "finished"
    ABORTED = "aborted"
    REJECTED = "rejected"
    FAILED = "failed"
    """The logits of one of its sequences were not finite."""


ENDINGS = (EventKind.FINISHED, EventKind.ABORTED, EventKind.REJECTED, EventKind.FAILED)
"""A request ends with exactly one of these."""


class Event(NamedTuple):
    """One turn in the life of a request."""

    time_ns: int
    request_id: str
    kind: EventKind
    detail: str
    """Finish reason, preemption kind, or the reason of a rejection."""
    step_id: int = 0
    """The step that is being planned at this moment, or that will be planned next: in its plan, and not
    before, the pools show what has happened.
    """
