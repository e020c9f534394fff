"""What a step computes and moves, counted once: for cost models, calibration and the run log alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from math import hypot
from typing import NamedTuple, cast

from engine.core.plan import Batch, StepPlan, Transfer, TransferKind


class Work(NamedTuple):
    """The work of one step as counts, from which any cost model is computed.

    A sequence that computes one token in a step is a decode, one that computes more is a prefill chunk. That
    is what the two cost: one query reads its context once, however it came to be the only one, and a plan has
    no phases to tell a token of a prompt from one that was generated. So a prompt of one token, or the last
    token of one that was chunked, counts as a decode; and a recomputation is prefill, but for such a rest.

    A context is what a sequence reads: all positions up to its last token of the step, that one included.
    """

    num_tokens: int = 0
    """Tokens computed, over all sequences."""
    num_seqs: int = 0
    """Sequences that compute: rows of the batch."""
    num_prefill_chunks: int = 0
    """Those among them that compute more than one token."""
    num_sampled: int = 0
    """Sequences whose next token is drawn: rows of the output projection."""
    decode_context_tokens: int = 0
    """Contexts of decodes, summed."""
    prefill_context_tokens: int = 0
    """Contexts of prefill chunks, summed."""
    prefill_attention_pairs: int = 0
    """Pairs of a query position and a KV position that it attends to, over the prefill chunks."""
    num_blocks_swapped_out: int = 0
    num_blocks_swapped_in: int = 0
    num_blocks_copied: int = 0
    """Device to device: copy-on-write."""
    num_transfers: int = 0
    num_recomputed_tokens: int = 0
    """Tokens at positions that their request had computed before it was preempted."""
    max_decode_context_tokens: int = 0
    """The longest context of a decode."""
    max_prefill_context_tokens: int = 0
    decode_context_squares: int = 0
    """Squares of the contexts of decodes, summed: with their sum and number, how uneven they are."""
    prefill_context_squares: int = 0

    @property
    def num_decode_tokens(self) -> int:
        """One for each decode."""
        return self.num_seqs - self.num_prefill_chunks

    @property
    def num_prefill_tokens(self) -> int:
        """All others."""
        return self.num_tokens - self.num_decode_tokens

    @classmethod
    def of(cls, plan: StepPlan) -> Work:
        """Count the work of a plan; each live sequence of a request does the same work.

        This runs for each step, and most steps only decode, one sequence a request. As every chunk computes
        at least one token, their number gives that away. Then, and as far as possible in other steps, whole
        columns are summed without a Python loop. Who asks a second time gets what was counted at first.
        """
        work = cast(Work | None, plan.chunks.counted)
        if work is None:
            work = plan.chunks.counted = cls._of_batch(plan.chunks, plan.num_tokens)
        if plan.transfers:
            work = work._replace(**_moved(plan.transfers))
        if plan.recomputed:
            work = work._replace(num_recomputed_tokens=sum(again.num_tokens for again in plan.recomputed))
        return work

    @classmethod
    def _of_batch(cls, batch: Batch, num_tokens: int) -> Work:
        if num_tokens == len(batch):
            return cls._of_decodes(batch, num_tokens)
        starts, chunks = _rows(batch, num_tokens)
        decode, prefill = _Contexts(*_decodes(starts)), _prefills(chunks)
        num_seqs = len(starts) + len(chunks)
        return cls(
            num_tokens=num_tokens,
            num_seqs=num_seqs,
            num_prefill_chunks=len(chunks),
            num_sampled=num_seqs if batch.samples is batch.seqs else sum(map(len, batch.samples)),
            decode_context_tokens=decode.total,
            prefill_context_tokens=prefill.total,
            prefill_attention_pairs=sum(n * start + n * (n + 1) // 2 for start, n in chunks),
            max_decode_context_tokens=decode.longest,
            max_prefill_context_tokens=prefill.longest,
            decode_context_squares=decode.squares,
            prefill_context_squares=prefill.squares,
        )

    @classmethod
    def _of_decodes(cls, batch: Batch, num_seqs: int) -> Work:
        """The same where each chunk is one token of one sequence; positional, since time counts here."""
        total, longest, squares = _decodes(batch.starts)
        num_sampled = num_seqs if batch.samples is batch.seqs else sum(map(len, batch.samples))
        return cls(num_seqs, num_seqs, 0, num_sampled, total, 0, 0, 0, 0, 0, 0, 0, longest, 0, squares, 0)


class _Contexts(NamedTuple):
    """Their sum, the longest, and the sum of their squares."""

    total: int
    longest: int
    squares: int


NO_CONTEXTS = _Contexts(0, 0, 0)


def _rows(batch: Batch, num_tokens: int) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
    """First positions of the decodes, and (first position, tokens) of the prefill chunks, a sequence each."""
    starts, lengths = batch.starts, batch.num_tokens
    if num_tokens > sum(lengths):  # parallel sampling
        widths = list(map(len, batch.seqs))
        starts = list(chain.from_iterable(map(repeat, starts, widths)))
        lengths = list(chain.from_iterable(map(repeat, lengths, widths)))
    places = [place for place, length in enumerate(lengths) if length > 1]
    decodes = list(starts)
    for place in reversed(places):  # a few, among many decodes
        del decodes[place]
    return decodes, [(starts[place], lengths[place]) for place in places]


def _decodes(starts: Sequence[int]) -> tuple[int, int, int]:
    """A decode at position s reads s + 1 positions. Squares sum exactly up to 2^50: `hypot` rounds once."""
    if not starts:
        return NO_CONTEXTS
    num_seqs, total = len(starts), sum(starts)
    squares = round(hypot(*starts) ** 2)
    return total + num_seqs, max(starts) + 1, squares + 2 * total + num_seqs


def _prefills(chunks: Sequence[tuple[int, int]]) -> _Contexts:
    """A chunk of n tokens from position s reads s + n positions."""
    if not chunks:
        return NO_CONTEXTS
    contexts = [start + num_tokens for start, num_tokens in chunks]
    return _Contexts(sum(contexts), max(contexts), sum(context * context for context in contexts))


def _moved(transfers: Sequence[Transfer]) -> dict[str, int]:
    """Blocks moved by kind, and the number of transfers."""
    blocks = dict.fromkeys(TransferKind, 0)
    for transfer in transfers:
        blocks[transfer.kind] += len(transfer.src)
    return {
        "num_blocks_swapped_out": blocks[TransferKind.SWAP_OUT],
        "num_blocks_swapped_in": blocks[TransferKind.SWAP_IN],
        "num_blocks_copied": blocks[TransferKind.COPY],
        "num_transfers": len(transfers),
    }
