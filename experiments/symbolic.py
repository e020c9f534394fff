"""A backend that computes nothing: each slot of its memory names the token whose KV would lie there.

A slot holds one integer, made of the life of a request (a new one whenever its KV is lost), the sequence (0:
the prompt, which all share) and the position. A step reads back every position that its attention would read.
If swaps, copies, recomputation and block tables are right, each slot names the token that belongs there (law
8). Of tables it learns from `StepPlan.updates` alone, as an engine does.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from itertools import chain

from engine.core.laws import LawBroken
from engine.core.plan import Chunk, Finish, FinishReason, PreemptionKind, StepPlan, StepResult, TransferKind
from engine.core.spec import Capacity, RequestSpec

MAX_POSITIONS = 1 << 16
MAX_SEQS = 1 << 8
UNWRITTEN = None


@dataclass(slots=True)
class _Sequences:
    """One request: what a backend knows of it."""

    num_prompt_tokens: int
    max_len: int
    n: int
    live: tuple[int, ...]
    length: int
    life: int
    num_known: int
    """Tokens whose value is there; those of steps in flight are not."""

    def symbols(self, seq: int, first: int, last: int) -> list[int]:
        """Names of the tokens at positions first to last - 1 of a sequence."""
        prompt = self.life * MAX_SEQS * MAX_POSITIONS
        own = prompt + (seq + 1) * MAX_POSITIONS
        parted = self.num_prompt_tokens
        return [
            *range(prompt + first, prompt + min(last, parted)),
            *range(own + max(first, parted), own + last),
        ]


class SymbolicBackend:
    """Executes plans on named slots; raises LawBroken 8 when a chunk would read what is not its own.

    A sequence ends when `stop` was asked for, or at the length that its spec and the window allow.
    """

    def __init__(self, capacity: Capacity, max_model_len: int) -> None:
        if max_model_len > MAX_POSITIONS:
            raise ValueError(f"max_model_len is {max_model_len}, and symbols tell {MAX_POSITIONS} apart")
        self._capacity = capacity
        self._max_model_len = max_model_len
        block: list[int | None] = [UNWRITTEN] * capacity.block_size
        self.device = [list(block) for _ in range(capacity.num_blocks)]
        self.host = [list(block) for _ in range(capacity.num_host_blocks)]
        self.tables: dict[tuple[str, int], list[int]] = {}
        self.requests: dict[str, _Sequences] = {}
        self._num_lives = 0
        self._stops: dict[tuple[str, int], FinishReason] = {}
        self.tally: Counter[str] = Counter()
        self._in_flight: deque[StepPlan] = deque()

    @property
    def capacity(self) -> Capacity:
        """As it was made."""
        return self._capacity

    def add(self, spec: RequestSpec) -> None:
        """Learn of a request. Raises ValueError if it is known, or has too many sequences to name."""
        if spec.request_id in self.requests or spec.n >= MAX_SEQS:
            raise ValueError(f"request {spec.request_id!r} is known already, or n = {spec.n} is too many")
        max_len = spec.length_limit(self._max_model_len)
        self.requests[spec.request_id] = _Sequences(
            spec.num_prompt_tokens,
            max_len,
            spec.n,
            tuple(range(spec.n)),
            spec.num_prompt_tokens,
            self._new_life(),
            spec.num_prompt_tokens,
        )

    def drop(self, request_id: str) -> None:
        """Forget a request. Raises KeyError if it is not known: each is dropped once.

        Raises LawBroken 8 if a step in flight names it: that would read what is forgotten.
        """
        for plan in self._in_flight:
            if request_id in plan.chunks.request_ids:
                raise LawBroken(8, f"{request_id} is dropped, and step {plan.step_id} in flight names it")
        for seq in range(self.requests.pop(request_id).n):
            self._forget(request_id, seq)

    def stop(self, request_id: str, seq: int, reason: FinishReason = FinishReason.STOP) -> None:
        """Let a sequence end with the next token that it samples, or fail to."""
        self._stops[request_id, seq] = reason

    def submit(self, plan: StepPlan) -> StepPlan:
        """Move, write, and read back."""
        for preemption in plan.preemptions:
            if preemption.kind is PreemptionKind.RECOMPUTE:
                self.requests[preemption.request_id].life = self._new_life()
        for request_id, seq, first, block_ids in plan.updates:
            table = self.tables.setdefault((request_id, seq), [])
            table[first:] = block_ids
        self._move(plan)
        for chunk in plan.chunks:
            self._check_place(chunk)
            self._write(chunk)
        for chunk in plan.chunks:
            self._read(chunk)
            self.requests[chunk.request_id].length += bool(chunk.samples)
        self._in_flight.append(plan)
        return plan

    def collect(self, ticket: object) -> StepResult:
        """One token for each sequence that samples; those ends that are due."""
        assert isinstance(ticket, StepPlan)
        assert self._in_flight.popleft() is ticket, "steps end in the order in which they began"
        finished: list[Finish] = []
        for chunk in ticket.chunks:
            request = self.requests[chunk.request_id]
            length = chunk.start + chunk.num_tokens + 1
            request.num_known += bool(chunk.samples)
            for seq in chunk.samples:
                if seq not in request.live:
                    continue  # it ended while this step, planned before, was in flight
                reason = self._stops.get((chunk.request_id, seq))
                if reason is None and length >= request.max_len:
                    reason = FinishReason.LENGTH
                if reason is not None:
                    finished.append(Finish(chunk.request_id, seq, reason))
        for request_id, seq, reason in finished:
            request = self.requests[request_id]
            request.live = tuple(other for other in request.live if other != seq)
            self._forget(request_id, seq)
            if reason is FinishReason.NOT_FINITE:
                request.live = ()
        return StepResult(len(ticket.chunks), tuple(finished))

    def wipe(self, device: list[int], host: list[int]) -> None:
        """Make the contents of free blocks unreadable, so that a use after free does not go unseen."""
        for pool, block_ids in ((self.device, device), (self.host, host)):
            for block_id in block_ids:
                pool[block_id] = [UNWRITTEN] * self._capacity.block_size

    def _move(self, plan: StepPlan) -> None:
        """Transfers, in the order of the plan."""
        sides = {
            TransferKind.SWAP_OUT: (self.device, self.host),
            TransferKind.SWAP_IN: (self.host, self.device),
            TransferKind.COPY: (self.device, self.device),
        }
        for kind, _, src, dst in plan.transfers:
            source, target = sides[kind]
            for one, other in zip(src, dst, strict=True):
                target[other] = list(source[one])
            self.tally[f"blocks {kind}"] += len(src)

    def _check_place(self, chunk: Chunk) -> None:
        """Its tokens exist, its sequences have them, and it samples when it is the last."""
        request = self.requests[chunk.request_id]
        end = chunk.start + chunk.num_tokens
        parts = len(request.live) > 1 and chunk.start < request.num_prompt_tokens
        known = request.num_prompt_tokens if parts else request.length
        seqs = request.live[:1] if parts else request.live
        samples = request.live if end == request.length else ()
        if end > known or chunk.seqs != seqs or chunk.samples != samples:
            raise LawBroken(8, f"{chunk} is not the next of {request}")
        if end > request.num_known and chunk.num_tokens > 1:
            raise LawBroken(8, f"{chunk} computes again what a step in flight is yet to bring: {request}")
        num_slots = self._capacity.block_size * min(
            len(self.tables.get((chunk.request_id, seq), ())) for seq in chunk.seqs
        )
        if end > num_slots:
            raise LawBroken(8, f"{chunk} goes beyond the {num_slots} slots that the backend was told of")
        self.tally["forks"] += parts and end == request.num_prompt_tokens

    def _write(self, chunk: Chunk) -> None:
        request, block_size = self.requests[chunk.request_id], self._capacity.block_size
        first, last = chunk.start, chunk.start + chunk.num_tokens
        for seq in chunk.seqs:
            table = self.tables[chunk.request_id, seq]
            for position, symbol in enumerate(request.symbols(seq, first, last), start=first):
                block, offset = divmod(position, block_size)
                self.device[table[block]][offset] = symbol

    def _read(self, chunk: Chunk) -> None:
        request, end = self.requests[chunk.request_id], chunk.start + chunk.num_tokens
        for seq in chunk.seqs:
            blocks = [self.device[block_id] for block_id in self.tables[chunk.request_id, seq]]
            found, wanted = list(chain.from_iterable(blocks))[:end], request.symbols(seq, 0, end)
            if found != wanted:
                wrong = [at for at in range(end) if at >= len(found) or found[at] != wanted[at]]
                raise LawBroken(8, f"{chunk}: sequence {seq} reads other KV than its own at {wrong}")

    def _new_life(self) -> int:
        self._num_lives += 1
        return self._num_lives

    def _forget(self, request_id: str, seq: int) -> None:
        self.tables.pop((request_id, seq), None)
        self._stops.pop((request_id, seq), None)
