"""The words spoken across the seam: a scheduler plans a step, a backend executes it, the scheduler commits.

Everything here is inert data. A plan names blocks and token positions, never tensors, clocks or token values,
so the same plan can be priced by a simulator, run by an engine, written to a journal and compared byte for
byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, overload


class Chunk(NamedTuple):
    """Some consecutive tokens of one request, computed in one step.

    There are no prefill and decode phases: a decode is the chunk of one token that brings a request up to
    date. Until its prompt is computed, a request with several sequences (parallel sampling) computes as one;
    from then on each of its live sequences computes the same positions with tokens of its own.
    """

    request_id: str
    start: int
    """Position of the first token; KV of all positions below it is in the pool."""
    num_tokens: int
    """Tokens to compute for each sequence: positions start to start + num_tokens - 1."""
    seqs: tuple[int, ...]
    """The sequences that compute this chunk."""
    samples: tuple[int, ...]
    """The sequences that get their next token from the chunk's last position; empty if more of it is to
    come.
    """


class Batch(Sequence[Chunk]):
    """The chunks of a step, in batch order, kept as columns: a sum over a column costs far less than one over
    objects.

    Iteration and indexing give `Chunk`s.
    """

    __slots__ = ("counted", "num_tokens", "request_ids", "samples", "seqs", "starts")

    def __init__(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        num_tokens: Sequence[int],
        seqs: Sequence[tuple[int, ...]],
        samples: Sequence[tuple[int, ...]],
    ) -> None:
        self.request_ids = request_ids
        self.starts = starts
        self.num_tokens = num_tokens
        self.seqs = seqs
        self.samples = samples
        self.counted: object = None
        """What engine.core.work has counted here, for the next who asks: a batch does not change."""

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> Batch:
        """The columns of some chunks."""
        rows = list(chunks)
        return cls(*zip(*rows, strict=True)) if rows else cls((), (), (), (), ())

    @property
    def columns(self) -> tuple[Sequence[Any], ...]:
        """The fields of a Chunk, one column each."""
        return self.request_ids, self.starts, self.num_tokens, self.seqs, self.samples

    def __add__(self, other: Batch) -> Batch:
        """The chunks of both, those of `other` last."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Batch(*([*mine, *theirs] for mine, theirs in pairs))

    def __len__(self) -> int:
        return len(self.request_ids)

    def __iter__(self) -> Iterator[Chunk]:
        return map(Chunk._make, zip(*self.columns, strict=True))

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice) -> list[Chunk]: ...

    def __getitem__(self, index: int | slice) -> Chunk | list[Chunk]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and list(map(list, self.columns)) == list(map(list, other.columns))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Batch.of({list(self)})"


class TableUpdate(NamedTuple):
    """The block table of one sequence, from entry `first` to its end, is now `block_ids`.

    Covers admission and swap-in (first = 0), growth, and copy-on-write (the last entry replaced). A backend
    that does `del table[first:]; table.extend(block_ids)` on its own copy has the tables of the block manager
    for every chunk of the plan.
    """

    request_id: str
    seq: int
    first: int
    block_ids: tuple[int, ...]


class TransferKind(StrEnum):
    """Which way blocks move."""

    SWAP_OUT = "swap_out"
    """Device blocks to host blocks."""
    SWAP_IN = "swap_in"
    """Host blocks to device blocks."""
    COPY = "copy"
    """Device blocks to device blocks: copy-on-write."""


class Transfer(NamedTuple):
    """Whole blocks to move before the step computes, src[i] to dst[i].

    Transfers take effect in the order of the plan, so a block freed by one may be the target of a later one.
    """

    kind: TransferKind
    request_id: str
    src: tuple[int, ...]
    dst: tuple[int, ...]


class PreemptionKind(StrEnum):
    """What becomes of a victim's KV."""

    SWAP = "swap"
    RECOMPUTE = "recompute"


class Preemption(NamedTuple):
    """A running request lost its device blocks in this step."""

    request_id: str
    kind: PreemptionKind
    num_tokens: int
    """Tokens with KV at that moment, summed over its sequences: kept by a swap, lost by recomputation."""
    fell_back: bool
    """A swap was wanted, but the host pool had no room for it."""


class Recomputed(NamedTuple):
    """A request computes positions in this step that it had computed before it was preempted."""

    request_id: str
    num_tokens: int
    """Of its chunk, summed over the sequences."""


class Rejection(NamedTuple):
    """A request that can never run to its end under the limits in force, and why."""

    request_id: str
    reason: str


class PoolState(NamedTuple):
    """Queue lengths (requests) and memory after `schedule`, before the step is executed."""

    num_running: int
    num_waiting: int
    num_swapped: int
    num_free_blocks: int
    num_free_host_blocks: int
    num_kv_tokens: int
    """Token slots of the device pool that hold KV; a slot shared by several sequences counts once."""


class StepPlan(NamedTuple):
    """One step: what to move, what to compute, and what was decided about whom."""

    step_id: int
    """Number of the plan, from 0."""
    chunks: Batch
    """In batch order; at most one a request."""
    updates: tuple[TableUpdate, ...]
    transfers: tuple[Transfer, ...]
    preemptions: tuple[Preemption, ...]
    """In the order in which the victims were taken."""
    admitted: tuple[str, ...]
    """Requests that left the waiting queue, the once recomputed among them."""
    resumed: tuple[str, ...]
    """Requests swapped in."""
    rejections: tuple[Rejection, ...]
    num_tokens: int
    """Tokens computed in this step, over all chunks and sequences."""
    after: PoolState
    recomputed: tuple[Recomputed, ...] = ()
    """In batch order; nearly always nobody."""


class FinishReason(StrEnum):
    """Why a sequence, or a whole request, came to its end."""

    STOP = "stop"
    """A stop token was sampled."""
    LENGTH = "length"
    """The length that the trace recorded, max_tokens or the model's window was reached."""
    NOT_FINITE = "its logits were not finite"
    """NaN or infinite: there is no distribution to draw from. The whole request has failed."""


class Finish(NamedTuple):
    """A sequence that ended in this step; decided behind the seam.

    With the token that it sampled, or, if its logits were not finite, without one.
    """

    request_id: str
    seq: int
    reason: FinishReason


NO_PARTS: Mapping[str, float] = MappingProxyType({})


class StepResult(NamedTuple):
    """What became of a plan.

    Every sequence in a chunk's `samples` has gained one token, but for those of a request that failed: it
    ends with this step, all its sequences together, and nothing of the step is served to it.
    """

    duration_ns: int
    """Measured or modelled."""
    finished: tuple[Finish, ...] = ()
    """In batch order."""
    token_ids: Mapping[tuple[str, int], int] | None = None
    """The token sampled for each (request, sequence); None in simulation, where only numbers are known."""
    parts_ns: Mapping[str, float] = NO_PARTS
    """The duration as a named sum (linear, attention, transfers, ...), where the backend can tell."""
    transfer_ns: int = 0
    """The part of the duration that the plan's transfers took."""
