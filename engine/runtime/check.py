"""Is a loaded model served right? Found out by comparison, never by a list of names.

Three sequences go through the engine as it serves: packed into shared batches, in parts that continue a
context, token by token, on a real pool whose blocks are in no order. Each of them, alone, also goes through
the model as `generate` would take it, with transformers' own eager attention and KV cache. Both in float32,
whatever the type of the weights, and before these are prepacked, so that they differ by rounding only.

What is compared: the logits of every token, if the model is small (`WHOLE_COST`). Of a large one, what comes
out of the first decoder layers, as many as it takes to have one of each kind (kind: what is asked of
attention, and the config's layer type). The longest sequence is twice as long as every limit of the model,
windows, chunks and the like, so that each is in force. Limits above `LONGEST_LIMIT` tokens are lowered to
`LOWERED_LIMIT` for the comparison, in config and modules alike: their effect is checked, not their value.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pagedkv import KVLayout, Piece, ReferenceAttention, batch_order
from torch import nn
from transformers import DynamicCache

from engine.runtime.attention import AttentionContext, implementation
from engine.runtime.decoder import Decoder
from engine.runtime.look import Look, look
from engine.runtime.reach import UnsupportedModelError
from engine.runtime.reduced import (
    decoder_layers,
    in_float32,
    length,
    lowered_limits,
    num_layers_of_all_kinds,
    output_of,
)

WHOLE_COST = 2e9
"""Weights times tokens up to which the whole model runs.

Measured on a busy machine of 2 cores, in seconds of CPU time: 0.1 for 37,000 weights, and 2.3 for 120 million
and 51 tokens (6e9), which is more than a check may take.
"""
LONGEST_LIMIT = 64
LOWERED_LIMIT = 24
TOLERANCE = 1e-4
"""Of a difference, relative to the largest value of the sequence."""
BLOCK_SIZE = 8

Part = tuple[int, int, int]
"""Sequence, first position, number of tokens."""


def agree(module: nn.Module, context: AttentionContext, seen: Look) -> Decoder:
    """How to call a model that was looked at so that what the engine computes is what the model computes.

    Raises:
        UnsupportedModelError: there is no such way; the message says what differs, and where.
    """
    reaches = context.reaches
    try:
        with torch.inference_mode(), lowered_limits(module, LONGEST_LIMIT, LOWERED_LIMIT) as num_lowered:
            if num_lowered:
                seen = look(module, context)
                context.reaches = seen.reaches
            return _agree(Trial.of(module, context, seen))
    finally:
        context.reaches = reaches


def _agree(trial: Trial) -> Decoder:
    reasons = []
    with in_float32(trial.module, trial.unused):
        expected = [trial.expected_of_generate(tokens) for tokens in trial.sequences]
        for counts_seen in (False, True):
            decoder = Decoder(trial.module, trial.context, counts_seen=counts_seen)
            if decoder.counts_seen == counts_seen:
                reason = trial.failure(decoder, expected)
                if reason is None:
                    return decoder
                reasons.append(reason)
    raise UnsupportedModelError(reasons[0])


@dataclass(frozen=True, slots=True)
class Trial:
    """Some sequences of tokens and as much of a model as it takes to tell whether they are served right."""

    module: nn.Module
    context: AttentionContext
    seen: Look
    sequences: tuple[list[int], ...]
    last: nn.Module | None
    """The last layer that runs; None: all, and logits are compared."""
    unused: tuple[nn.Module, ...]
    """What does not run."""

    @classmethod
    def of(cls, module: nn.Module, context: AttentionContext, seen: Look) -> Trial:
        """As many tokens as the limits ask for, as many layers as their kinds ask for."""
        num_tokens = length(module.config, seen.options)
        sequences = tuple(
            _tokens(module, seed, n) for seed, n in enumerate((num_tokens, num_tokens // 2 + 3, 6))
        )
        layers = decoder_layers(module, seen.shape.num_layers)
        cost = sum(p.numel() for p in module.parameters()) * sum(map(len, sequences))
        if layers is None or cost <= WHOLE_COST:
            return cls(module, context, seen, sequences, None, ())
        num_layers = num_layers_of_all_kinds(module.config, seen.options)
        return cls(module, context, seen, sequences, layers[num_layers - 1], tuple(layers[num_layers:]))

    def expected(self, tokens: Sequence[int], **options: torch.Tensor) -> torch.Tensor:
        """What the model itself makes of one sequence, `(num_tokens, width)`."""
        ids = torch.tensor([tokens], device=_device(self.module))
        forward = partial(self.module, input_ids=ids, use_cache=False, **options)
        with implementation(self.module, "eager"):
            return self._output(forward)

    def expected_of_generate(self, tokens: Sequence[int]) -> torch.Tensor:
        """The same as `generate` computes it: a prompt, then two tokens, with transformers' own KV cache."""
        name = Decoder(self.module, self.context).cache_name
        if name is None:
            return self.expected(tokens)
        ids = torch.tensor([tokens], device=_device(self.module))
        config: Any = self.module.config
        cache = {name: DynamicCache(config=config), "use_cache": True}
        with implementation(self.module, "eager"):
            parts = torch.split(ids, [len(tokens) - 2, 1, 1], dim=1)
            return torch.cat([self._output(partial(self.module, input_ids=part, **cache)) for part in parts])

    def _output(self, forward: Callable[[], Any]) -> torch.Tensor:
        """Of a forward pass, what is compared."""
        out: torch.Tensor = forward().logits[0] if self.last is None else output_of(self.last, forward)
        return out

    def failure(self, decoder: Decoder, expected: Sequence[torch.Tensor]) -> str | None:
        """Why the model is not served right in this way; None if it is."""
        packed = self._compare(decoder, expected, _packed(self.sequences))
        if packed is None:
            return None
        whole = self._compare(decoder, expected, [[(0, 0, len(self.sequences[0]))]])
        if whole is not None:
            return f"one sequence alone, in one piece, is not served right: {whole}{self._on_origin()}"
        parts = self._compare(decoder, expected, _in_parts(self.sequences))
        words = f"in parts: {parts}"
        if parts is None:
            words = f"beside others in one batch: {packed}"
        return f"alone and in one piece a sequence is served right, but not {words}{self._on_positions()}"

    def _compare(
        self, decoder: Decoder, expected: Sequence[torch.Tensor], steps: Sequence[Sequence[Part]]
    ) -> str | None:
        """Serve these parts, step by step; words for where they differ from what is expected."""
        try:
            for part, found in self._serve(decoder, steps):
                sequence, start, num_tokens = part
                reason = differs(found, expected[sequence][start : start + num_tokens], expected[sequence])
                if reason is not None:
                    return f"{self._what()} at positions {start} to {start + num_tokens - 1} {reason}"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"a step ends in {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return None

    def _serve(
        self, decoder: Decoder, steps: Sequence[Sequence[Part]]
    ) -> Iterator[tuple[Part, torch.Tensor]]:
        """Run the steps on a pool of their own; yields each part with what comes out."""
        shape = self.seen.shape
        layout = KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE)
        num_blocks = [layout.num_blocks(len(tokens)) for tokens in self.sequences]
        block_ids = list(range(sum(num_blocks)))
        random.Random(0).shuffle(block_ids)
        tables = [[block_ids.pop() for _ in range(n)] for n in num_blocks]
        pool = layout.allocate(sum(num_blocks), self._compute_dtype(), _device(self.module))
        attention = ReferenceAttention(layout, pool, max(num_blocks))
        for step in steps:
            pieces = [Piece(start, num_tokens, tables[seq]) for seq, start, num_tokens in step]
            order = batch_order(pieces)
            batch = attention.prepare([pieces[i] for i in order])
            parts = [step[i] for i in order]
            token_ids = [t for seq, start, n in parts for t in self.sequences[seq][start : start + n]]
            forward = partial(
                decoder.logits,
                token_ids,
                batch.positions,
                range(len(token_ids)),
                partial(attention.attend, batch),
            )
            out = forward() if self.last is None else output_of(self.last, forward)
            yield from zip(parts, torch.split(out, [n for _, _, n in parts]), strict=True)

    def _compute_dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    def _what(self) -> str:
        return "logits" if self.last is None else "hidden states"

    def _on_origin(self) -> str:
        """Said of a model that is not even right from position 0 on: whether it has another origin."""
        tokens = self.sequences[-1]
        plain = self.expected(tokens)
        from_0 = torch.arange(len(tokens), device=_device(self.module))
        told = self._expected_at(from_0, plain)
        return "" if differs(told, plain, plain) is None else " (the model's own positions do not start at 0)"

    def _on_positions(self) -> str:
        """Said of a model that is right from position 0 on only: whether it takes notice of position_ids."""
        tokens = self.sequences[-1]
        apart = torch.arange(0, 2 * len(tokens), 2, device=_device(self.module))
        plain = self.expected(tokens)
        if differs(self._expected_at(apart, plain), plain, plain) is None:
            return " (the model takes no notice of position_ids: it counts positions over the batch)"
        return ""

    def _expected_at(self, positions: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """What the model makes of the shortest sequence at these positions; `otherwise` if it takes none."""
        try:
            return self.expected(self.sequences[-1], position_ids=positions[None])
        except Exception:  # it has no such argument, or no such position
            return otherwise


def differs(found: torch.Tensor, expected: torch.Tensor, all_expected: torch.Tensor) -> str | None:
    """How two results differ beyond rounding, in words; None if they do not.

    What is not finite must be so in both. `all_expected` gives the scale.
    """
    found, expected, all_expected = found.float(), expected.float(), all_expected.float()
    finite = expected.isfinite()
    if 2 * int(finite.sum()) < finite.numel():
        return "are not finite in the model's own forward pass either: its weights overflow or are broken"
    if not torch.equal(found.isfinite(), finite):
        return "are not finite where the model's own are"
    largest = float((found - expected)[finite].abs().max())
    scale = float(all_expected[all_expected.isfinite()].abs().max())
    if not largest <= TOLERANCE * scale:
        return f"differ by {largest:.2g} from the model's own, of at most {scale:.2g}"
    return None


def _packed(sequences: Sequence[Sequence[int]]) -> list[list[Part]]:
    """All in shared steps: contexts continued side by side, single tokens together and beside parts."""
    a, b, c = map(len, sequences)
    third = max(1, a // 3)
    return [
        [(0, 0, third), (1, 0, 2)],
        [(0, third, a - 2 - third), (1, 2, b - 3), (2, 0, 3)],
        [(0, a - 2, 1), (1, b - 1, 1), (2, 3, 1)],
        [(0, a - 1, 1), (2, 4, c - 4)],
    ]


def _in_parts(sequences: Sequence[Sequence[int]]) -> list[list[Part]]:
    """The first of them as in the packed steps, without the others."""
    return [[part for part in step if part[0] == 0] for step in _packed(sequences)]


def _tokens(module: Any, seed: int, num_tokens: int) -> list[int]:
    """Token ids from a stream of their own, among those whose embeddings are of ordinary size.

    A single broken one must not keep a model from being checked, nor from serving those who do not ask for
    it.
    """
    norms = module.get_input_embeddings().weight.float().norm(dim=-1)
    good = (norms <= 10 * norms.nanmedian()).nonzero()[:, 0].cpu()
    if not len(good):
        raise UnsupportedModelError("its embeddings are not finite")
    drawn = torch.randint(len(good), (num_tokens,), generator=torch.Generator().manual_seed(seed))
    ids: list[int] = good[drawn].tolist()
    return ids


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
