"""What the engine asks of paged attention, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from pagedkv.batch import Piece
from pagedkv.options import AttentionOptions


class PreparedBatch(Protocol):
    """The geometry of one step, worked out once for all layers."""

    @property
    def positions(self) -> torch.Tensor:
        """Position of each token in its sequence, `(num_tokens,)`, on the device."""
        ...


Prepared = TypeVar("Prepared", bound=PreparedBatch)


class PagedAttention(Protocol[Prepared]):
    """Attention over a pool that it also writes: `prepare` once a step, then `attend` once a layer."""

    def prepare(self, pieces: Sequence[Piece]) -> Prepared:
        """Lay out a flat batch of these pieces, one after another in the order given (see `batch_order`)."""
        ...

    def attend(
        self,
        batch: Prepared,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Store the new KV of a layer and attend.

        Query `(num_tokens, num_q_heads, head_dim)`, key and value `(num_tokens, num_kv_heads, head_dim)`; the
        result has the shape of the query.
        """
        ...
