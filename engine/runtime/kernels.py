"""Which kernels the engine computes with: plain torch on any device, or Triton on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pagedkv import KVLayout, PagedAttention, ReferenceAttention, StepLimits
from pagedkv.transfers import copy_runs

from engine.core.errors import UserError
from engine.runtime.sampler import Draw, finite_rows, sample


class Kernels(Protocol):
    """One way to compute what the paged pool needs; each is a choice in conf/attention."""

    def attention(
        self, layout: KVLayout, pool: torch.Tensor, num_q_heads: int, limits: StepLimits
    ) -> PagedAttention[Any]:
        """Attention over a pool, with scratch for the largest step.

        Raises:
            ValueError: it cannot run here, or not for this model; the message says why.
        """
        ...

    def copy_blocks(
        self, source: torch.Tensor, target: torch.Tensor, src_ids: Sequence[int], dst_ids: Sequence[int]
    ) -> None:
        """Copy whole blocks from pool to pool, or within one, bit for bit, before the step computes."""
        ...

    def sample(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """Token of each draw, from logits `(num_rows, vocab_size)`; None where they are not finite."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """Plain torch."""

    def attention(
        self, layout: KVLayout, pool: torch.Tensor, num_q_heads: int, limits: StepLimits
    ) -> PagedAttention[Any]:
        """Gather, then scaled dot product attention."""
        return ReferenceAttention(layout, pool, layout.num_blocks(limits.max_context_tokens))

    def copy_blocks(
        self, source: torch.Tensor, target: torch.Tensor, src_ids: Sequence[int], dst_ids: Sequence[int]
    ) -> None:
        """One copy a run of neighbours."""
        copy_runs(source, target, src_ids, dst_ids)

    def sample(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """Row by row, by sorting."""
        return sample(logits, draws)


@dataclass(frozen=True, slots=True)
class Triton:
    """The kernels of `pagedkv`; on CPU tensors only with TRITON_INTERPRET=1, which is for tests."""

    def attention(
        self, layout: KVLayout, pool: torch.Tensor, num_q_heads: int, limits: StepLimits
    ) -> PagedAttention[Any]:
        """Split decode and chunked prefill."""
        try:
            from pagedkv.triton_attention import TritonAttention
        except ImportError as error:
            raise UserError(
                f"attention=triton cannot run: {error}. Install triton>=3.6,<3.8, or choose "
                "attention=reference"
            ) from error
        try:
            return TritonAttention(layout, pool, num_q_heads, limits)
        except ValueError as error:  # the kernels know nothing of the engine's errors
            raise UserError(str(error)) from error

    def copy_blocks(
        self, source: torch.Tensor, target: torch.Tensor, src_ids: Sequence[int], dst_ids: Sequence[int]
    ) -> None:
        """The copy engines for large pieces, one gather kernel for many small ones."""
        from pagedkv.copy import copy_blocks, swap_blocks

        move = copy_blocks if source is target else swap_blocks
        move(source, target, src_ids, dst_ids)

    def sample(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """All draws in one launch; a row that is not finite comes near no kernel."""
        if all(draw.sampling.temperature == 0 for draw in draws):
            return sample(logits, draws)
        finite = finite_rows(logits)
        tokens = iter(self._draw(logits, [draw for draw in draws if finite[draw.row]]))
        return [next(tokens) if finite[draw.row] else None for draw in draws]

    def _draw(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        from pagedkv import sampling

        if not draws:
            return []
        rows = torch.tensor([draw.row for draw in draws], device=logits.device)
        # Float64, because 0.3 in float32 is more than 0.3, and might keep a token too many.
        reals = [(d.sampling.temperature, d.sampling.top_p, d.number) for d in draws]
        temperature, top_p, number = torch.tensor(reals, dtype=torch.float64, device=logits.device).unbind(1)
        top_k = torch.tensor([draw.sampling.top_k for draw in draws], device=logits.device)
        tokens: list[int] = sampling.sample(
            logits[rows], temperature.contiguous(), top_k, top_p.contiguous(), number.contiguous()
        ).tolist()
        return tokens
