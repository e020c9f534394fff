"""From logits to tokens, and the rule by which a sequence ends.

A draw depends on the seed, the sequence and the position of the token, on nothing else: a request yields the
same tokens however it was batched, preempted or recomputed, and sequence i with seed s is sequence 0 with
seed s + i.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from engine.core.plan import FinishReason
from engine.core.spec import RequestSpec, Sampling


class Draw(NamedTuple):
    """A token to be sampled."""

    request_id: str
    seq: int
    row: int
    """Of the logits."""
    position: int
    """Of the token to be drawn, in its sequence."""
    sampling: Sampling

    @property
    def number(self) -> float:
        """What decides the draw, in [0, 1)."""
        return uniform(self.sampling.seed + self.seq, self.position)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from the counter-based stream `seed`: 53 bits of BLAKE2b over seed and position."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Token of each draw, from logits `(num_rows, vocab_size)`; all greedy ones by one argmax.

    None where the row is no distribution; see `finite_rows`.
    """
    # In float32: 64 x 32,000 elements of bfloat16 take a CPU 3.5 ms, and 0.8 ms with the conversion.
    wide = logits.float()
    finite = finite_rows(wide)
    likeliest: list[int] = wide.argmax(dim=-1).tolist()
    tokens: list[int | None] = []
    for draw in draws:
        if draw.sampling.temperature == 0:
            tokens.append(likeliest[draw.row] if finite[draw.row] else None)
        else:
            tokens.append(sample_row(logits[draw.row], draw.sampling, draw.number))
    return tokens


def finite_rows(logits: torch.Tensor) -> list[bool]:
    """Which rows of `(num_rows, vocab_size)` are distributions: the largest logit is finite, and none is NaN.

    Logits of -inf hide tokens, which is legal as long as a token is left.
    """
    finite: list[bool] = logits.amax(dim=-1).isfinite().tolist()  # a NaN is larger than everything
    return finite


def sample_row(logits: torch.Tensor, sampling: Sampling, number: float) -> int | None:
    """Invert the cumulative distribution of one row, `(vocab_size,)`, at `number` in [0, 1).

    Temperature, then top-k, then top-p on what top-k left, each keeping the most likely tokens, and of
    equally likely ones those with the lowest ids. Top-p keeps the fewest tokens whose probabilities add up to
    at least p. What is kept is added up in the order of token ids, so that nothing but the cuts needs a sort.

    None if the row is no distribution; see `finite_rows`.
    """
    # Double: float32 sums of 100,000 terms lose the tail.
    logits = logits.double()
    best = logits.max()
    if not best.isfinite():
        return None
    # Temperatures that are not normal numbers may count as 0 in a division.
    temperature = max(sampling.temperature, sys.float_info.min)
    probabilities = torch.softmax((logits - best) / temperature, dim=-1)
    if 0 < sampling.top_k < len(logits) or sampling.top_p < 1:
        probabilities = _cut(probabilities, sampling)
    cumulative = probabilities.cumsum(dim=-1)
    target = number * cumulative[-1]
    index = int(torch.searchsorted(cumulative, target, right=True))
    # Rounding may bring the target to the very total; then it is the last token that adds to that.
    return min(index, int(torch.searchsorted(cumulative, cumulative[-1])))


def _cut(probabilities: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities that top-k and top-p keep, 0 for the others."""
    likeliest, order = torch.sort(probabilities, descending=True, stable=True)
    num_kept = sampling.top_k if 0 < sampling.top_k < len(order) else len(order)
    if sampling.top_p < 1:
        cumulative = likeliest[:num_kept].cumsum(dim=-1)
        enough = int(torch.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1
        num_kept = min(num_kept, enough)
    kept = order[:num_kept]
    return torch.zeros_like(probabilities).index_copy_(0, kept, probabilities[kept])


def finish_reason(
    spec: RequestSpec, token_id: int, num_tokens: int, max_model_len: int
) -> FinishReason | None:
    """Why a sequence ends with this token, being `num_tokens` long now, prompt included; None: it goes on."""
    if token_id in spec.sampling.stop_token_ids:
        return FinishReason.STOP
    if num_tokens >= spec.length_limit(max_model_len):
        return FinishReason.LENGTH
    return None
