"""How much memory is left for KV: run the steps that can be the largest and give the pool what they leave."""

from __future__ import annotations

from dataclasses import dataclass

from pagedkv import Piece, batch_order

from engine.core.plan import Transfer, TransferKind
from engine.core.spec import Limits, Sampling
from engine.runtime.memory import DeviceMemory
from engine.runtime.sampler import Draw


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Where a memory budget goes, in bytes."""

    budget_bytes: int
    weight_bytes: int
    step_bytes: int
    """Peak of the largest step above what was held before it: activations, logits, scratch."""

    @property
    def pool_bytes(self) -> int:
        """What is left for KV blocks; not below 0."""
        return max(0, self.budget_bytes - self.weight_bytes - self.step_bytes)


def budget_bytes(memory: DeviceMemory, utilization: float, weight_bytes: int) -> int:
    """The share `utilization` of a device, less what others hold; `memory` as it is with the weights there.

    As in vLLM (gpu_memory_utilization): the whole process is to stay within that share, what the runtime of
    the device takes for itself included.
    """
    return int(utilization * memory.total_bytes) - (memory.used_bytes - weight_bytes)


def largest_steps(limits: Limits, block_size: int) -> list[list[tuple[int, int]]]:
    """The steps that can be the largest, each as (start, number of tokens) of its sequences.

    All have every seat taken, at the ends of full windows; as few sequences as possible have many tokens, so
    that as many as possible read a whole window for one token. The prompts begin at position 0, where nothing
    is gathered and causal attention needs no mask; at position 1, where all but one of as many tokens want a
    mask over the window; or behind a whole block, which may hold what is not finite, so that kernels take
    care. In the last, decodes alone have contexts of different lengths, which takes masks, too.

    The longest sequence that is computed has a token less than the window.
    """
    window = max(1, limits.max_model_len - 1)
    heads = [head for head in dict.fromkeys((0, 1, block_size)) if head < window]
    steps = [_whole_windows(limits, window, head) for head in heads]
    num_decodes = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    return [*steps, [(max(0, window - 1 - i), 1) for i in range(num_decodes)]]


def _whole_windows(limits: Limits, window: int, head: int) -> list[tuple[int, int]]:
    """Sequences that compute up to the end of their windows, from position `head` at the earliest."""
    pieces: list[tuple[int, int]] = []
    num_left = limits.max_num_batched_tokens
    for num_seats in range(limits.max_num_seqs, 0, -1):
        num_tokens = min(window - head, num_left - (num_seats - 1))
        pieces.append((window - num_tokens, num_tokens))
        num_left -= num_tokens
    return pieces


def profiled_pieces(step: list[tuple[int, int]], block_size: int) -> list[Piece]:
    """In the order that attention wants, on two blocks that stand for all: sequences write to block 0, and
    have block 1 wherever they only read.
    """
    pieces = []
    for start, num_tokens in step:
        num_read, num_blocks = start // block_size, -(-(start + num_tokens) // block_size)
        pieces.append(Piece(start, num_tokens, [1] * num_read + [0] * (num_blocks - num_read)))
    return [pieces[i] for i in batch_order(pieces)]


def profiled_draws(num_rows: int) -> list[Draw]:
    """One from each row, by what takes a sampler most: a sort of the vocabulary, and sums over it."""
    return [Draw("profile", 0, row, 0, Sampling(temperature=1.0, top_p=0.9)) for row in range(num_rows)]


PROFILED_TRANSFERS = (
    Transfer(TransferKind.SWAP_OUT, "profile", (0,), (0,)),
    Transfer(TransferKind.SWAP_IN, "profile", (0,), (0,)),
    Transfer(TransferKind.COPY, "profile", (0,), (1,)),
)
"""Every kind, so that whatever they load is loaded."""
