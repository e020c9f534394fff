"""What a cost model sees of a plan, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from engine.core.plan import StepPlan, Transfer, TransferKind


class StepFeatures(NamedTuple):
    """The work of one step as counts, from which any cost model is computed.

    A sequence that computes one token is a decode here, whatever the token is for; one that computes more is
    a prefill chunk.
    """

    num_tokens: int
    """Tokens computed, over all sequences."""
    num_seqs: int
    """Sequences that compute: rows of the batch."""
    num_prefill_chunks: int
    """Those among them that compute more than one token."""
    num_sampled: int
    """Sequences whose next token is drawn: rows of the output projection."""
    decode_context_tokens: int
    """KV positions that decodes read, their own included."""
    prefill_context_tokens: int
    """KV positions that prefill chunks read, their own included."""
    prefill_attention_pairs: int
    """Pairs of a query position and a KV position that it attends to, over the prefill chunks."""
    num_blocks_swapped_out: int
    num_blocks_swapped_in: int
    num_blocks_copied: int
    """Device to device: copy-on-write."""
    num_transfers: int


def features(plan: StepPlan) -> StepFeatures:
    """Count the work of a plan.

    A chunk of n tokens from position s attends to n * s + n (n + 1) / 2 pairs and reads s + n positions; a
    decode is n = 1. Each live sequence of a request does the same work.

    This runs once for each simulated step, and most steps only decode, one sequence a request. As every chunk
    computes at least one token, their token count gives them away, and they are summed without a Python loop.
    """
    batch = plan.chunks
    if plan.num_tokens == len(batch):
        num_seqs = len(batch)
        num_sampled = sum(map(len, batch.samples))
        decode_context = sum(batch.starts) + num_seqs
        num_prefill_chunks = prefill_context = pairs = 0
    else:
        num_seqs = num_sampled = decode_context = num_prefill_chunks = prefill_context = pairs = 0
        columns = zip(batch.starts, batch.num_tokens, batch.seqs, batch.samples, strict=True)
        for start, num_tokens, seqs, samples in columns:
            width = len(seqs)
            num_seqs += width
            num_sampled += len(samples)
            if num_tokens == 1:
                decode_context += (start + 1) * width
            else:
                num_prefill_chunks += width
                prefill_context += (start + num_tokens) * width
                pairs += (num_tokens * start + num_tokens * (num_tokens + 1) // 2) * width
    moved = _blocks_moved(plan.transfers) if plan.transfers else (0, 0, 0, 0)
    return StepFeatures(
        plan.num_tokens,
        num_seqs,
        num_prefill_chunks,
        num_sampled,
        decode_context,
        prefill_context,
        pairs,
        *moved,
    )


def _blocks_moved(transfers: Sequence[Transfer]) -> tuple[int, int, int, int]:
    """Blocks swapped out, swapped in and copied, and the number of transfers."""
    blocks = dict.fromkeys(TransferKind, 0)
    for transfer in transfers:
        blocks[transfer.kind] += len(transfer.src)
    return (
        blocks[TransferKind.SWAP_OUT],
        blocks[TransferKind.SWAP_IN],
        blocks[TransferKind.COPY],
        len(transfers),
    )


class CostModel(Protocol):
    """Prices a step, and answers what a policy asks that weighs swapping against recomputation."""

    def parts_ns(self, step: StepFeatures) -> dict[str, float]:
        """The duration of the step as a named sum, so that an error can be traced to a part."""
        ...

    def recompute_ns(self, num_tokens: int) -> int:
        """What computing the KV of `num_tokens` tokens from position 0 adds to a step."""
        ...

    def transfer_ns(self, num_blocks: int) -> int:
        """Moving blocks between device and host, one way."""
        ...
