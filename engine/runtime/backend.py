"""TorchBackend: executes plans with a transformers model on a paged KV pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import torch
from pagedkv import KVLayout, PagedAttention, Piece, StepLimits

from engine.core.errors import UserError
from engine.core.fields import Count, Natural, Share
from engine.core.plan import Chunk, Finish, FinishReason, StepPlan, StepResult, Transfer
from engine.core.spec import Capacity, Limits, RequestSpec
from engine.runtime.kernels import Kernels, Reference
from engine.runtime.memory import device_memory, peak_bytes
from engine.runtime.model import LoadedModel
from engine.runtime.pools import Pools, check_room
from engine.runtime.profiling import (
    PROFILED_TRANSFERS,
    MemoryProfile,
    budget_bytes,
    largest_steps,
    profiled_draws,
    profiled_pieces,
)
from engine.runtime.sampler import Draw, finish_reason
from engine.runtime.sequences import Sequences
from engine.runtime.timing import timed

REFERENCE = Reference()


class TorchBackend:
    """The real backend (engine.core.backend.Backend); one plan after another on a thread of its own.

    The pool has `num_blocks` blocks; or as many as there is room for once the weights and the largest step
    are paid for, out of `memory_bytes`, or out of the share `utilization` of the device's memory. On the host
    there are `num_host_blocks`; None: as many as on the device. `seed` names the streams of token ids for
    traces that have lengths only. A CPU works with `num_threads` threads; None leaves torch's choice.
    `attention` says which kernels attend and copy blocks.

    Raises:
        UserError: not one of num_blocks, memory_bytes and utilization is given, the pool has no room for a
            single block, or takes more than is free, the model does not know max_model_len positions, or the
            kernels cannot run here.
    """

    def __init__(
        self,
        model: LoadedModel,
        limits: Limits,
        *,
        block_size: Count = 16,
        num_blocks: Natural | None = None,
        memory_bytes: Count | None = None,
        utilization: Share | None = None,
        num_host_blocks: Natural | None = 0,
        seed: Natural = 0,
        num_threads: Count | None = None,
        attention: Kernels = REFERENCE,
    ) -> None:
        if (num_blocks, memory_bytes, utilization).count(None) != 2:
            raise UserError("give one of num_blocks, memory_bytes and utilization: how large the KV pool is")
        if utilization is not None and not 0 < utilization <= 1:
            raise UserError(f"utilization is {utilization}: give a share, above 0 and at most 1")
        if model.max_positions is not None and limits.max_model_len > model.max_positions:
            raise UserError(
                f"max_model_len is {limits.max_model_len}, {model.name} knows {model.max_positions} positions"
            )
        if num_threads is not None and num_threads < 1:
            raise UserError(f"num_threads is {num_threads}: give 1 or more, or null for torch's choice")
        self.model = model
        self.limits = limits
        shape = model.attention_shape
        self.layout = KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, block_size)
        self._kernels = attention
        self.sequences = Sequences(model.vocab_size, seed)
        threads = torch.get_num_threads() if num_threads is None else num_threads
        device = next(model.module.parameters()).device  # with its index
        self._worker = ThreadPoolExecutor(
            1, "torch-backend", initializer=_prepare_thread, initargs=(threads, device)
        )
        if utilization is not None:
            memory_bytes = budget_bytes(device_memory(model.device), utilization, model.weight_bytes)
        self.profile: MemoryProfile | None = None
        """Where the memory went; None if num_blocks was given."""
        if memory_bytes is not None:
            # Where the steps are to run: memory is kept by thread, and threads may have devices of their own.
            step_bytes = self._worker.submit(peak_bytes, self._largest_steps, model.device).result()
            self.profile = MemoryProfile(memory_bytes, model.weight_bytes, step_bytes)
            num_blocks = self._num_blocks_in(self.profile.pool_bytes, num_host_blocks)
        assert num_blocks is not None
        if num_host_blocks is None:
            num_host_blocks = num_blocks
        self._capacity = Capacity(num_blocks, num_host_blocks, block_size)
        self.pools, self._attention = self._worker.submit(self._allocate, self._capacity).result()

    @property
    def capacity(self) -> Capacity:
        """Blocks of both pools."""
        return self._capacity

    def add(self, spec: RequestSpec) -> None:
        """Take in a request; see `Sequences.add`."""
        self.sequences.add(spec)

    def drop(self, request_id: str) -> None:
        """Forget a request."""
        self.sequences.drop(request_id)

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """Start a plan, after those submitted before it."""
        return self._worker.submit(self._execute, plan)

    def collect(self, ticket: object) -> StepResult:
        """Wait for a plan; whatever went wrong in it is raised here."""
        assert isinstance(ticket, Future)
        result: StepResult = ticket.result()
        return result

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> StepResult:
        times = [perf_counter_ns()]
        self.sequences.update(plan.updates)
        transfer_ns = self._transfer(plan.transfers)
        times.append(perf_counter_ns())
        draws: list[Draw] = []
        drawn: list[int | None] = []
        if plan.chunks:
            flat = self.sequences.flatten(plan.chunks)
            draws, kept_rows = self._draws(plan.chunks, flat.last_rows)
            logits = self._forward(flat.token_ids, flat.pieces, kept_rows, self._attention)
            times.append(perf_counter_ns())
            drawn = self._kernels.sample(logits, draws)
        token_ids, finished = self._append(draws, drawn)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        times.append(perf_counter_ns())
        duration_ns = times[-1] - times[0]
        return StepResult(
            duration_ns, finished, token_ids, self._parts_ns(times), min(transfer_ns(), duration_ns)
        )

    def _transfer(self, transfers: Sequence[Transfer]) -> Callable[[], int]:
        """Queue the copies of a step; the time that they took, once the device has been synchronized."""
        if not transfers:
            return lambda: 0
        return timed(self.model.device, partial(self.pools.execute, transfers))

    def _draws(
        self, chunks: Sequence[Chunk], last_rows: Mapping[tuple[str, int], int]
    ) -> tuple[list[Draw], list[int]]:
        """The tokens to sample, in batch order, and the rows of the flat batch whose logits they need.

        While a prompt is computed by one sequence for all, all draw from that one's last row.
        """
        draws: list[Draw] = []
        kept_rows: list[int] = []
        for chunk in chunks:
            spec = self.sequences.specs[chunk.request_id]
            if chunk.samples:
                first_row = len(kept_rows)
                kept_rows += [last_rows[chunk.request_id, seq] for seq in chunk.seqs]
            for seq in chunk.samples:
                if self.sequences.has_ended(chunk.request_id, seq):
                    continue  # the step was planned before that was known
                row = first_row + (chunk.seqs.index(seq) if len(chunk.seqs) > 1 else 0)
                draws.append(Draw(chunk.request_id, seq, row, chunk.start + chunk.num_tokens, spec.sampling))
        return draws, kept_rows

    def _forward(
        self,
        token_ids: Sequence[int],
        pieces: Sequence[Piece],
        kept_rows: Sequence[int],
        attention: PagedAttention[Any],
    ) -> torch.Tensor:
        """Run the model over a flat batch; logits of the kept rows, `(len(kept_rows), vocab_size)`."""
        batch = attention.prepare(pieces)
        return self.model.decoder.logits(
            token_ids, batch.positions, kept_rows, partial(attention.attend, batch)
        )

    def _append(
        self, draws: Sequence[Draw], drawn: Sequence[int | None]
    ) -> tuple[dict[tuple[str, int], int], tuple[Finish, ...]]:
        """Add the sampled tokens to their sequences; tokens and ends, in batch order.

        A request of which a row of logits was not finite gets none of them: it has failed.
        """
        failed = {draw.request_id for draw, token_id in zip(draws, drawn, strict=True) if token_id is None}
        token_ids: dict[tuple[str, int], int] = {}
        finished: list[Finish] = []
        for (request_id, seq, *_), token_id in zip(draws, drawn, strict=True):
            if token_id is None:
                finished.append(Finish(request_id, seq, FinishReason.NOT_FINITE))
                for one in range(self.sequences.specs[request_id].n):
                    self.sequences.end(request_id, one)
            elif request_id not in failed:
                token_ids[request_id, seq] = token_id
                num_tokens = self.sequences.append(request_id, seq, token_id)
                spec = self.sequences.specs[request_id]
                reason = finish_reason(spec, token_id, num_tokens, self.limits.max_model_len)
                if reason is not None:
                    finished.append(Finish(request_id, seq, reason))
                    self.sequences.end(request_id, seq)
        return token_ids, tuple(finished)

    def _parts_ns(self, times: Sequence[int]) -> dict[str, float]:
        """The duration by parts; on a GPU work is queued, so only the whole can be told."""
        if self.model.device.type != "cpu":
            return {}
        names = ("transfers", "model", "sampling") if len(times) == 4 else ("transfers", "sampling")
        return {name: float(end - start) for name, (start, end) in zip(names, pairwise(times), strict=True)}

    def _attention_on(self, pool: torch.Tensor) -> PagedAttention[Any]:
        limits = self.limits
        largest = StepLimits(limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len)
        return self._kernels.attention(self.layout, pool, self.model.attention_shape.num_q_heads, largest)

    def _allocate(self, capacity: Capacity) -> tuple[Pools, PagedAttention[Any]]:
        """The pools, and attention on them; UserError if they take more memory than is free."""
        check_room(self.model.device, capacity, self.layout.block_bytes(self.model.dtype))
        pools = self._pools(capacity.num_blocks, capacity.num_host_blocks)
        return pools, self._attention_on(pools.device)

    def _num_blocks_in(self, pool_bytes: int, num_host_blocks: int | None) -> int:
        """Device blocks that fit; the host's come out of the same memory if the device is the host."""
        num_blocks = pool_bytes // self.layout.block_bytes(self.model.dtype)
        if self.model.device.type != "cpu":
            return num_blocks
        return num_blocks // 2 if num_host_blocks is None else max(0, num_blocks - num_host_blocks)

    def _pools(self, num_blocks: int, num_host_blocks: int) -> Pools:
        device, dtype = self.model.device, self.model.dtype
        return Pools(self.layout, dtype, device, num_blocks, num_host_blocks, self._kernels)

    @torch.inference_mode()
    def _largest_steps(self) -> None:
        """Run the steps that can take the most memory, and every kind of transfer."""
        pools = self._pools(2, 1)
        attention = self._attention_on(pools.device)
        pools.execute(PROFILED_TRANSFERS)
        pools.device[1] = math.nan
        # Twice: from the second time on, the C library serves what it has freed from a heap of its own.
        for step in 2 * largest_steps(self.limits, self.layout.block_size):
            pieces = profiled_pieces(step, self.layout.block_size)
            num_tokens = sum(piece.num_tokens for piece in pieces)
            kept_rows = range(min(num_tokens, self.limits.max_num_seqs))
            logits = self._forward([0] * num_tokens, pieces, kept_rows, attention)
            self._kernels.sample(logits, profiled_draws(len(logits)))


def _prepare_thread(num_threads: int, device: torch.device) -> None:
    """A new thread has the first GPU as its own, and launches kernels there whatever their tensors say."""
    torch.set_num_threads(num_threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
