"""What a layer may ask of its attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Options of one layer; the names are those of the transformers attention interface."""

    scaling: float
    """Factor on the scores."""
    sliding_window: int | None = None
    """A query sees this many positions, its own included; None: all before it."""
    chunk_size: int | None = None
    """Positions are cut into chunks of so many, and a query sees its own chunk only, up to itself (Llama 4's
    chunked attention); with a sliding window too, what both let it see. None: no chunks."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap), before the mask (Gemma 2, arXiv:2408.00118, section 2)."""
    sinks: torch.Tensor | None = None
    """A learned score a query head, `(num_q_heads,)`: in the softmax, but without a value (gpt-oss)."""

    def first_seen(self, positions: torch.Tensor) -> torch.Tensor:
        """The lowest position that a query at each of the positions sees; the highest is its own."""
        first = torch.zeros_like(positions)
        if self.sliding_window is not None:
            first = torch.maximum(first, positions - self.sliding_window + 1)
        if self.chunk_size is not None:
            first = torch.maximum(first, positions // self.chunk_size * self.chunk_size)
        return first

    @property
    def needs_scores(self) -> bool:
        """Whether the scores themselves must be at hand, so that a fused kernel is of no use."""
        return self.softcap is not None or self.sinks is not None
