"""How the engine calls a transformers decoder: a flat batch of parts of sequences in, logits out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from engine.runtime.attention import AttendLayer, AttentionContext


class Decoder:
    """A model whose attention goes through the engine.

    With `counts_seen`, the number of a token in its sequence is told in a second way: some decoders take no
    notice of position_ids, in all or in some layers (Llama 4's query scale), and count from the number of
    tokens that a KV cache has seen.
    """

    def __init__(self, module: nn.Module, context: AttentionContext, *, counts_seen: bool = False) -> None:
        self.module = module
        self.context = context
        parameters = inspect.signature(module.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes_positions = takes_any or "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self.cache_name = next((n for n in ("cache", "past_key_values") if n in parameters), None)
        self.counts_seen = counts_seen and self.cache_name is not None

    def logits(
        self,
        token_ids: Sequence[int],
        positions: torch.Tensor,
        kept_rows: Sequence[int],
        attend: AttendLayer,
    ) -> torch.Tensor:
        """Run the model over a flat batch whose tokens have these positions, `(num_tokens,)`.

        The logits of the kept rows, `(len(kept_rows), vocab_size)`.
        """
        device = positions.device
        # A batch in the middle of a prompt samples nothing, but not every output layer takes an empty input.
        kept = torch.tensor(kept_rows or [0], device=device)
        options: dict[str, Any] = {"logits_to_keep": kept} if self._keeps_logits else {}
        if self._takes_positions:
            options["position_ids"] = positions[None]
        if self.counts_seen:
            assert self.cache_name is not None
            options[self.cache_name] = SeenTokens(positions)
        with self.context.attending(attend):
            output = self.module(
                input_ids=torch.tensor([token_ids], device=device), use_cache=False, **options
            )
        logits: torch.Tensor = output.logits[0]
        return (logits if self._keeps_logits else logits[kept])[: len(kept_rows)]


class SeenTokens(Cache):
    """A KV cache that holds nothing, and has seen, for each token of a flat batch, what brings a count over
    the batch to the token's own position.
    """

    def __init__(self, positions: torch.Tensor) -> None:
        super().__init__(layers=[])
        self._seen = positions - torch.arange(len(positions), device=positions.device)

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:  # type: ignore[override]
        """What to add to a count over the batch, `(num_tokens,)`."""
        return self._seen

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new keys and values as they are; the pool keeps them."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """A mask over the batch alone."""
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """A mask over the batch alone."""
        return 0
