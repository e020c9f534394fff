"""A request as a server knows it: lengths so far, limits, and one number for its progress."""

from __future__ import annotations

from enum import StrEnum

from engine.core.spec import RequestSpec


class Status(StrEnum):
    """Where a request is: in which queue, and so where its block tables point."""

    WAITING = "waiting"
    """Holds no blocks."""
    RUNNING = "running"
    """Holds device blocks."""
    SWAPPED = "swapped"
    """Holds host blocks."""
    ENDED = "ended"


class Request:
    """One prompt and the `n` sequences sampled from it.

    The sequences advance together, so one pair of numbers describes them all: each has `num_tokens` tokens,
    of which `num_computed_tokens` have their KV in the pool. The request is behind by the difference; a step
    gives it some of that. Positions below `num_prompt_tokens` are computed once and shared; from there on,
    each live sequence has tokens of its own.

    Both numbers move when a step is planned. So tokens of a step in flight count: their number is known,
    their value is not needed here.
    """

    __slots__ = (
        "arrival_ns",
        "effective_priority",
        "id",
        "live",
        "max_computed_tokens",
        "max_num_tokens",
        "max_tokens",
        "n",
        "num_awaited_tokens",
        "num_computed_tokens",
        "num_decode_slots",
        "num_preemptions",
        "num_prefill_tokens",
        "num_prompt_tokens",
        "num_tokens",
        "num_writable_slots",
        "priority",
        "status",
        "tables",
    )

    def __init__(self, spec: RequestSpec) -> None:
        self.id = spec.request_id
        self.arrival_ns = spec.arrival_ns
        self.num_prompt_tokens = spec.num_prompt_tokens
        self.max_tokens = spec.max_tokens
        self.max_num_tokens = spec.num_prompt_tokens + spec.max_tokens
        """Length at which a sequence ends in any case; the model's window may make it less."""
        self.n = spec.n
        self.priority = spec.priority
        self.effective_priority: float = spec.priority
        """What the order's ageing has made of `priority`; lower goes first. Kept by the scheduler."""
        self.status = Status.WAITING
        self.live: tuple[int, ...] = tuple(range(spec.n))
        """Sequences that have not ended."""
        self.num_tokens = spec.num_prompt_tokens
        """Length of each live sequence, prompt included; the newest token has no KV yet."""
        self.num_computed_tokens = 0
        self.num_prefill_tokens = spec.num_prompt_tokens
        """Length at the last admission: below it a chunk is prefill, recomputation included."""
        self.num_preemptions = 0
        self.max_computed_tokens = 0
        """The most that was computed when KV was dropped: below this, computing is computing again."""
        self.num_awaited_tokens = 0
        """Steps in flight that bring it a token, though it has been preempted since: it enters after them."""
        self.num_writable_slots = 0
        """Positions below this lie in blocks that the backend knows of and that no other sequence shares."""
        self.num_decode_slots = 0
        """The same for who decodes, else 0: as long as `num_tokens` is not above it, the next token needs no
        decision.
        """
        self.tables: dict[int, list[int]] = {}
        """Block table of each sequence; one table only until the prompt is computed. Owned by KVCache."""

    @property
    def seqs(self) -> tuple[int, ...]:
        """The sequences that compute the next chunk; within the prompt the first one does it for all."""
        if self.num_computed_tokens < self.num_prompt_tokens:
            return self.live[:1]
        return self.live

    @property
    def num_kv_slots(self) -> int:
        """Slots that hold KV of this request, shared ones counted once."""
        if self.num_computed_tokens <= self.num_prompt_tokens:
            return self.num_computed_tokens
        branch = self.num_computed_tokens - self.num_prompt_tokens
        return self.num_prompt_tokens + branch * len(self.live)

    @property
    def num_behind(self) -> int:
        """Tokens that each of its sequences lacks; up to the end of the prompt while they share that."""
        if len(self.live) > 1 and self.num_computed_tokens < self.num_prompt_tokens:
            return self.num_prompt_tokens - self.num_computed_tokens
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """It has caught up since it was admitted, and lacks the KV of its newest token only."""
        return self.num_computed_tokens + 1 == self.num_tokens > self.num_prefill_tokens

    def __repr__(self) -> str:
        return (
            f"Request({self.id!r}, {self.status.value}, {self.num_computed_tokens}/{self.num_tokens} tokens, "
            f"live={self.live}, tables={self.tables})"
        )
