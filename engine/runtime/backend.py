"""TorchBackend: executes plans with a transformers model on a paged KV pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import torch
from pagedkv import KVLayout, PagedAttention, Piece, StepLimits, batch_order

from engine.core.backend import Capacity, RequestSpec
from engine.core.errors import UserError
from engine.core.fields import Count, Natural
from engine.core.plan import Chunk, Finish, FinishReason, StepPlan, StepResult, Transfer
from engine.core.policies.base import Limits
from engine.runtime.kernels import Kernels, Reference
from engine.runtime.model import LoadedModel
from engine.runtime.pools import Pools
from engine.runtime.profiling import MemoryProfile, largest_step, peak_bytes
from engine.runtime.sampler import Draw, finish_reason
from engine.runtime.sequences import Sequences
from engine.runtime.timing import timed

REFERENCE = Reference()


class TorchBackend:
    """The real backend (engine.core.backend.Backend); one plan after another on a thread of its own.

    The pool has `num_blocks` blocks, or, if that is None, as many as `memory_bytes` leaves room for once the
    weights and the largest step are paid for; `num_host_blocks` None: as many on the host. `seed` names the
    streams of token ids for traces that have lengths only. A CPU works with `num_threads` threads; None
    leaves torch's choice. `attention` says which kernels attend and copy blocks.

    Raises:
        ValueError: neither or both of num_blocks and memory_bytes are given, the pool has no room for a
            single block, the model does not know max_model_len positions, or the kernels cannot run here.
    """

    def __init__(
        self,
        model: LoadedModel,
        limits: Limits,
        *,
        block_size: Count = 16,
        num_blocks: Natural | None = None,
        memory_bytes: Count | None = None,
        num_host_blocks: Natural | None = 0,
        seed: Natural = 0,
        num_threads: Count | None = None,
        attention: Kernels = REFERENCE,
    ) -> None:
        if (num_blocks is None) == (memory_bytes is None):
            raise UserError("give either num_blocks or memory_bytes, to say how large the KV pool is")
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
        self.profile: MemoryProfile | None = None
        """Where the memory went; None if num_blocks was given."""
        if memory_bytes is not None:
            self.profile = self._profile(memory_bytes)
            num_blocks = self.profile.pool_bytes // self.layout.block_bytes(model.dtype)
        assert num_blocks is not None
        if num_host_blocks is None:
            num_host_blocks = num_blocks
        self._capacity = Capacity(num_blocks, num_host_blocks, block_size)
        self.pools = Pools(self.layout, model.dtype, model.device, num_blocks, num_host_blocks, attention)
        self._attention = self._attention_on(self.pools.device)
        threads = torch.get_num_threads() if num_threads is None else num_threads
        self._worker = ThreadPoolExecutor(
            1, "torch-backend", initializer=torch.set_num_threads, initargs=(threads,)
        )

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
            elif request_id not in failed:
                token_ids[request_id, seq] = token_id
                num_tokens = self.sequences.append(request_id, seq, token_id)
                spec = self.sequences.specs[request_id]
                reason = finish_reason(spec, token_id, num_tokens, self.limits.max_model_len)
                if reason is not None:
                    finished.append(Finish(request_id, seq, reason))
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

    def _profile(self, memory_bytes: int) -> MemoryProfile:
        """Measure the largest step, on a pool of one block that stands for all of them."""

        @torch.inference_mode()
        def run() -> None:
            pool = self.layout.allocate(1, self.model.dtype, self.model.device)
            block_ids = [0] * self.layout.num_blocks(self.limits.max_model_len)
            pieces = [Piece(start, num_tokens, block_ids) for start, num_tokens in largest_step(self.limits)]
            pieces = [pieces[i] for i in batch_order(pieces)]
            num_tokens = sum(piece.num_tokens for piece in pieces)
            kept_rows = range(min(num_tokens, self.limits.max_num_seqs))
            self._forward([0] * num_tokens, pieces, kept_rows, self._attention_on(pool)).float().argmax(
                dim=-1
            )

        return MemoryProfile(memory_bytes, self.model.weight_bytes, peak_bytes(run, self.model.device))
