"""The geometry of one batch: which slots it writes, and which tokens attend together.

Everything here is the same for all layers of a step, so it is worked out once a step, on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from pagedkv.context import Context, gathered_context, new_context, to_device
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions

MAX_PADDING = 1.5
"""Decodes share a group while the longest has at most this many times the blocks of the shortest."""

Reach = tuple[int | None, int | None]
"""A sliding window and a chunk size: how far back queries see."""


class Piece(NamedTuple):
    """Consecutive tokens of one sequence, to be computed in this batch."""

    start: int
    """Position of the first; the KV of all positions below is in the pool."""
    num_tokens: int
    block_ids: Sequence[int]
    """Block table; covers position start + num_tokens - 1."""


def batch_order(pieces: Sequence[Piece]) -> list[int]:
    """How a batch wants its pieces: single tokens first, by context length, so that groups are slices."""
    return sorted(range(len(pieces)), key=lambda i: (pieces[i].num_tokens > 1, pieces[i].start, i))


@dataclass(slots=True)
class Group:
    """What one attention call computes: one token each of several sequences, or some tokens of one."""

    tokens: slice
    """Its rows of the flat batch."""
    num_seqs: int
    num_queries: int
    """Tokens of each sequence."""
    num_slots: int
    """Context length of the longest sequence."""
    ends: torch.Tensor
    """Context length of each sequence, its new tokens included, `(num_seqs,)`, on the host."""
    tables: list[np.ndarray] | None
    """Block table of each sequence; None: the context is the new tokens, nothing is to be read."""
    layout: KVLayout
    device: torch.device
    contexts: dict[Reach, Context] = field(default_factory=dict)

    def context(self, options: AttentionOptions) -> Context:
        """What the group reads and sees in a layer with these options."""
        reach = self._reach(options)
        if reach not in self.contexts:
            self.contexts[reach] = self._context(options)
        return self.contexts[reach]

    def _reach(self, options: AttentionOptions) -> Reach:
        """Window and chunk size, each None where it is too large to hide anything from this group."""
        window, chunk = options.sliding_window, options.chunk_size
        return (
            None if window is None or window >= self.num_slots else window,
            None if chunk is None or chunk >= self.num_slots else chunk,
        )

    def _context(self, options: AttentionOptions) -> Context:
        if self.tables is None:
            return new_context(self.num_queries, options, self.device)
        return gathered_context(self.layout, self.tables, self.ends, self.num_queries, options, self.device)


@dataclass(slots=True)
class Batch:
    """A flat batch of pieces, in the order given; see `batch_order`."""

    positions: torch.Tensor
    """Of each token, `(num_tokens,)`."""
    slots: torch.Tensor
    """Pool slots to write, `(num_layers, 2, num_tokens)`: K and V of each token in each layer."""
    groups: list[Group]

    @classmethod
    def build(
        cls, layout: KVLayout, pieces: Sequence[Piece], device: torch.device, max_group_blocks: int
    ) -> Batch:
        """Work out slots and groups; several sequences in a group gather at most `max_group_blocks`."""
        positions = np.concatenate([np.arange(p.start, p.start + p.num_tokens) for p in pieces])
        tables = np.concatenate([_blocks_of_tokens(layout, piece) for piece in pieces])
        offsets = positions % layout.block_size
        first_rows = np.arange(layout.rows_per_block).reshape(layout.num_layers, 2, 1)
        slots = (tables * layout.rows_per_block + first_rows) * layout.block_size + offsets
        groups = [
            _group(layout, members, first, device)
            for first, members in _split(layout, pieces, max_group_blocks)
        ]
        arrays = [to_device(torch.from_numpy(x), device) for x in (positions, slots)]
        return cls(arrays[0], arrays[1], groups)


def _blocks_of_tokens(layout: KVLayout, piece: Piece) -> np.ndarray:
    """Block that each token of the piece is written to."""
    blocks = np.arange(piece.start, piece.start + piece.num_tokens) // layout.block_size
    first = piece.start // layout.block_size
    last = (piece.start + piece.num_tokens - 1) // layout.block_size
    return np.asarray(piece.block_ids[first : last + 1], dtype=np.int64)[blocks - first]


def _split(
    layout: KVLayout, pieces: Sequence[Piece], max_group_blocks: int
) -> Iterator[tuple[int, list[Piece]]]:
    """Cut the batch into groups of neighbours that are alike; yields (first token, members)."""
    first_token, members = 0, list[Piece]()
    num_tokens = 0
    for piece in pieces:
        if members and not _fits(layout, members, piece, max_group_blocks):
            yield first_token, members
            first_token, members = num_tokens, []
        members.append(piece)
        num_tokens += piece.num_tokens
    if members:
        yield first_token, members


def _fits(layout: KVLayout, members: list[Piece], piece: Piece, max_group_blocks: int) -> bool:
    if piece.num_tokens > 1 or members[0].num_tokens > 1 or piece.start < members[-1].start:
        return False
    num_blocks = layout.num_blocks(piece.start + 1)
    if num_blocks * (len(members) + 1) > max_group_blocks:
        return False
    return num_blocks <= MAX_PADDING * layout.num_blocks(members[0].start + 1) + 1


def _group(layout: KVLayout, members: list[Piece], first_token: int, device: torch.device) -> Group:
    num_queries = members[0].num_tokens
    tokens = slice(first_token, first_token + num_queries * len(members))
    ends = torch.tensor([piece.start + piece.num_tokens for piece in members])
    fresh = len(members) == 1 and members[0].start == 0
    tables = None if fresh else [_table(layout, piece) for piece in members]
    return Group(tokens, len(members), num_queries, int(ends[-1]), ends, tables, layout, device)


def _table(layout: KVLayout, piece: Piece) -> np.ndarray:
    """The part of its block table that holds tokens up to its last."""
    held = layout.num_blocks(piece.start + piece.num_tokens)
    return np.asarray(piece.block_ids[:held], dtype=np.int64)
