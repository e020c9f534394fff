"""What a workload says of a request, and the sizes that a run is given: memory and limits.

The true length of an output is known here and behind the seam only. The scheduler sees a `Request`
(engine.core.request), which holds what a server can know.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from engine.core.errors import UserError
from engine.core.fields import Count, Natural, NonNegative, Share, check_fields


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy. Sequence i of a request draws from the stream seed +
    i.

    Raises:
        UserError: a value is out of its range; the message names the field.
    """

    temperature: NonNegative = 0.0
    top_k: Natural = 0
    """0: off."""
    top_p: Share = 1.0
    seed: int = 0
    stop_token_ids: tuple[Natural, ...] = ()

    def __post_init__(self) -> None:
        if not self._is_plainly_right():
            check_fields(self)

    def _is_plainly_right(self) -> bool:
        """A look that spares nearly all the check: a workload makes one of these for each request."""
        return (
            type(self.temperature) is float
            and 0 <= self.temperature < inf
            and type(self.top_k) is type(self.seed) is int
            and self.top_k >= 0
            and type(self.top_p) is float
            and 0 < self.top_p <= 1
            and self.stop_token_ids == ()
        )


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request of a workload.

    `num_output_tokens` is the oracle: the length that the trace recorded, at which the backend ends each
    sequence. None leaves the end to stop tokens and `max_tokens`. `prompt_token_ids` None marks a trace of
    lengths only.
    """

    request_id: str
    arrival_ns: int
    num_prompt_tokens: int
    max_tokens: int
    num_output_tokens: int | None = None
    n: int = 1
    """Sequences sampled in parallel from the one prompt."""
    priority: int = 0
    """Lower goes first."""
    prompt_token_ids: tuple[int, ...] | None = None
    sampling: Sampling = Sampling()
    client: str | None = None
    """On whose behalf; whom a fair policy would tell apart, and metrics do."""

    def __post_init__(self) -> None:
        for name in ("num_prompt_tokens", "max_tokens", "n"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"request {self.request_id}: {name} is {getattr(self, name)}, must be at least 1"
                )
        if self.num_output_tokens is not None and self.num_output_tokens < 1:
            raise UserError(f"request {self.request_id}: num_output_tokens must be at least 1")
        if self.arrival_ns < 0:
            raise UserError(
                f"request {self.request_id}: arrival_ns is {self.arrival_ns}, must not be negative"
            )
        if self.prompt_token_ids is not None and len(self.prompt_token_ids) != self.num_prompt_tokens:
            raise UserError(
                f"request {self.request_id}: {len(self.prompt_token_ids)} prompt token ids, "
                f"but num_prompt_tokens is {self.num_prompt_tokens}"
            )

    def length_limit(self, max_model_len: int) -> int:
        """Tokens, prompt included, at which a sequence of this request ends if no stop token ends it
        before.
        """
        num_output_tokens = self.max_tokens if self.num_output_tokens is None else self.num_output_tokens
        return min(self.num_prompt_tokens + min(num_output_tokens, self.max_tokens), max_model_len)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The memory that a backend found at start-up. It does not change afterwards."""

    num_blocks: Natural
    """Device blocks; none is an error that says what to do."""
    num_host_blocks: Natural
    block_size: Count
    """Tokens a block."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_blocks < 1:
            raise UserError(
                "the KV pool has no room for a single block: raise the memory budget or lower the block size"
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and a request may not exceed."""

    max_num_seqs: Count
    """Sequences that run at the same time."""
    max_num_batched_tokens: Count
    """Token budget of a step."""
    max_model_len: Count
    """Tokens of a sequence, prompt included: the model's window. A sequence ends when it is as long, so the
    longest that is computed has one token less.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UserError(
                f"limits.max_num_batched_tokens ({self.max_num_batched_tokens}) is less than "
                f"limits.max_num_seqs ({self.max_num_seqs}): a step could not give every sequence one token"
            )
