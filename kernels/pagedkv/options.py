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
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap), before the mask (Gemma 2, arXiv:2408.00118, section 2)."""
    sinks: torch.Tensor | None = None
    """A learned score a query head, `(num_q_heads,)`: in the softmax, but without a value (gpt-oss)."""

    @property
    def needs_scores(self) -> bool:
        """Whether the scores themselves must be at hand, so that a fused kernel is of no use."""
        return self.softcap is not None or self.sinks is not None
