"""What the attention kernels of one step work on, decided on the host once and used by all layers.

A step is a flat batch of pieces. Short pieces (decode) become work items: a sequence and a range of its
context, so that a long sequence is shared by several programs; a merge puts their partial results together.
Long pieces (chunked prefill) become tiles of query tokens.

Everything goes to the device in one transfer, into arrays that are allocated once and have room for the
largest step: addresses never change, and a grid of the largest size can be replayed by a CUDA graph. An
entry that is not in use is zeros, which every kernel takes for nothing to do.

The idea of a plan on the host once a step, with no decision a layer, is FlashInfer's (arXiv:2501.01005).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from pagedkv.batch import Piece
from pagedkv.layout import KVLayout

MAX_WAVES = 4
"""Items a lane that a plan may aim for; more waves even out unequal sequences, fewer have less to merge."""
ITEM_COST = 0.5
"""Time of an item beside its KV tiles, in KV tiles: a launch, the look-ups, a result written. An estimate."""
MERGE_COST = 1.5
"""Time of the merge kernel, in KV tiles (one takes about 2 us where all SMs are at it). An estimate."""


class StepLimits(NamedTuple):
    """The largest step there can be."""

    max_seqs: int
    max_tokens: int
    """Tokens of all pieces together."""
    max_context_tokens: int
    """Context of one sequence, its new tokens included."""


class Tiling(NamedTuple):
    """How the kernels cut their work; it depends on the model and the device, not on the step."""

    num_lanes: int
    """Work items that run at once: programs that the device holds, by the number of KV heads."""
    split_tokens: int
    """A range of context starts and ends at a multiple of this, or at its end."""
    max_decode_tokens: int
    """Pieces up to this length are decoded."""
    prefill_tokens: int
    """Query tokens of a prefill tile."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step on the device; good until the planner makes the next one, which reuses the arrays.

    int32 but for positions and slots. Arrays have their full capacity; the numbers say how much is in use.
    """

    positions: torch.Tensor
    """Of each token in its sequence, `(num_tokens,)` int64."""
    slots: torch.Tensor
    """Where the KV of each token goes, block id * block size + offset, `(num_tokens,)` int64."""
    seqs: torch.Tensor
    """`(max_seqs, 4)`: first row of the flat batch, query tokens, context length, first of block_ids."""
    items: torch.Tensor
    """`(max_items, 5)`, longest first: sequence, first token, end, splits of the sequence, partial."""
    merges: torch.Tensor
    """`(max_seqs, 3)`: sequence, its first partial, number of partials."""
    tiles: torch.Tensor
    """`(max_tiles, 3)`, longest context first: sequence, first query token within the piece, end."""
    block_ids: torch.Tensor
    """The block tables end to end: what is sent grows with the KV in use, not with the longest sequence."""
    num_items: int
    num_merges: int
    num_tiles: int
    max_query_tokens: int
    """Of a decoded sequence."""
    tiling: Tiling

    def full_grid(self) -> StepPlan:
        """The same with grids of the largest size, for a CUDA graph that replays later plans too.

        The graph holds for plans of as many tokens, with no longer decoded pieces.
        """
        return dataclasses.replace(
            self, num_items=len(self.items), num_merges=len(self.merges), num_tiles=len(self.tiles)
        )


Array = TypeVar("Array", torch.Tensor, np.ndarray)


class Arrays(NamedTuple, Generic[Array]):
    """The parts of one buffer; block_ids come last, so that a transfer can end where they end."""

    positions: Array
    slots: Array
    seqs: Array
    items: Array
    merges: Array
    tiles: Array
    block_ids: Array


class Planner:
    """Plans one step after another.

    Raises ValueError, at `plan`, for a step beyond the limits or a block table that is too short.
    """

    def __init__(self, layout: KVLayout, limits: StepLimits, tiling: Tiling, device: torch.device) -> None:
        self.layout = layout
        self.limits = limits
        self.tiling = tiling
        self.max_items = limits.max_seqs + MAX_WAVES * tiling.num_lanes
        max_tiles = limits.max_tokens // tiling.prefill_tokens + limits.max_seqs
        tokens, int32 = (limits.max_tokens,), torch.int32
        self._parts: list[tuple[tuple[int, ...], torch.dtype]] = [
            (tokens, torch.int64),
            (tokens, torch.int64),
            ((limits.max_seqs, 4), int32),
            ((self.max_items, 5), int32),
            ((limits.max_seqs, 3), int32),
            ((max_tiles, 3), int32),
        ]
        self._fixed_bytes = sum(_aligned_bytes(shape, dtype) for shape, dtype in self._parts)
        max_ids = limits.max_seqs * layout.num_blocks(limits.max_context_tokens)
        self._buffer = torch.zeros(self._fixed_bytes + 4 * max_ids, dtype=torch.uint8, device=device)
        self._arrays = self._views(self._buffer)

    def plan(self, pieces: Sequence[Piece]) -> StepPlan:
        """The plan of a step; rows of the flat batch are the tokens of the pieces in the order given."""
        starts = np.array([piece.start for piece in pieces], dtype=np.int64)
        lengths = np.array([piece.num_tokens for piece in pieces], dtype=np.int64)
        contexts = starts + lengths
        self._check(pieces, lengths, contexts)
        held = -(-contexts // self.layout.block_size)
        num_tokens = int(lengths.sum())
        num_bytes = self._fixed_bytes + 4 * int(held.sum())
        host = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=self._buffer.is_cuda)
        arrays: Arrays[np.ndarray] = Arrays._make(part.numpy() for part in self._views(host))
        self._fill_tokens(arrays, pieces, starts, lengths, held)

        decoded = lengths <= self.tiling.max_decode_tokens
        items, merges = self._items(np.flatnonzero(decoded), contexts[decoded])
        tiles = self._tiles(np.flatnonzero(~decoded), starts, lengths)
        for target, rows in ((arrays.items, items), (arrays.merges, merges), (arrays.tiles, tiles)):
            target[: len(rows)] = rows
        self._buffer[:num_bytes].copy_(host, non_blocking=True)
        return StepPlan(
            self._arrays.positions[:num_tokens],
            self._arrays.slots[:num_tokens],
            *self._arrays[2:],
            num_items=len(items),
            num_merges=len(merges),
            num_tiles=len(tiles),
            max_query_tokens=int(lengths[decoded].max(initial=0)),
            tiling=self.tiling,
        )

    def _fill_tokens(
        self,
        arrays: Arrays[np.ndarray],
        pieces: Sequence[Piece],
        starts: np.ndarray,
        lengths: np.ndarray,
        held: np.ndarray,
    ) -> None:
        """What does not depend on how work is cut: block tables, sequences, and tokens."""
        first_rows, first_ids = _exclusive_cumsum(lengths), _exclusive_cumsum(held)
        arrays.block_ids[:] = np.concatenate(
            [np.asarray(piece.block_ids[:n], dtype=np.int32) for piece, n in zip(pieces, held, strict=True)]
        )
        arrays.seqs[: len(pieces)] = np.stack([first_rows, lengths, starts + lengths, first_ids], axis=1)
        num_tokens = int(lengths.sum())
        positions = np.arange(num_tokens) + np.repeat(starts - first_rows, lengths)
        blocks, offsets = np.divmod(positions, self.layout.block_size)
        block_ids = arrays.block_ids[np.repeat(first_ids, lengths) + blocks]
        arrays.positions[:num_tokens] = positions
        arrays.slots[:num_tokens] = block_ids.astype(np.int64) * self.layout.block_size + offsets

    def _check(self, pieces: Sequence[Piece], lengths: np.ndarray, contexts: np.ndarray) -> None:
        limits = self.limits
        if not 0 < len(pieces) <= limits.max_seqs:
            raise ValueError(
                f"a step of {len(pieces)} sequences; the plan has room for 1 to {limits.max_seqs}"
            )
        if lengths.min() < 1 or lengths.sum() > limits.max_tokens:
            raise ValueError(
                f"pieces of {lengths.tolist()} tokens; a plan takes 1 or more, {limits.max_tokens} in all"
            )
        if contexts.max() > limits.max_context_tokens:
            raise ValueError(
                f"a context of {contexts.max()} tokens; the limit is {limits.max_context_tokens}"
            )
        for piece, context in zip(pieces, contexts, strict=True):
            if len(piece.block_ids) * self.layout.block_size < context:
                raise ValueError(
                    f"a block table of {len(piece.block_ids)} blocks does not cover {context} tokens"
                )

    def _items(self, seqs: np.ndarray, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Work items of the decoded sequences, and merges of those that are split."""
        num_tiles = -(-contexts // self.tiling.split_tokens)
        splits = choose_splits(num_tiles, self.tiling.num_lanes)
        partials = np.where(splits > 1, splits, 0)
        first_partials = _exclusive_cumsum(partials)
        of = np.repeat(np.arange(len(seqs)), splits)
        which = np.arange(len(of)) - np.repeat(_exclusive_cumsum(splits), splits)
        # As equal as whole tiles allow: the sizes of n tiles in s pieces are floor(n / s) and ceil(n / s).
        first, last = which * num_tiles[of] // splits[of], (which + 1) * num_tiles[of] // splits[of]
        start = first * self.tiling.split_tokens
        end = np.minimum(last * self.tiling.split_tokens, contexts[of])
        items = np.stack([seqs[of], start, end, splits[of], first_partials[of] + which], axis=1)
        split = splits > 1
        merges = np.stack([seqs, first_partials, splits], axis=1)[split]
        return items[np.argsort(start - end, kind="stable")], merges

    def _tiles(self, seqs: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Tiles of the other sequences."""
        per_seq = -(-lengths[seqs] // self.tiling.prefill_tokens)
        of = np.repeat(seqs, per_seq)
        which = np.arange(len(of)) - np.repeat(_exclusive_cumsum(per_seq), per_seq)
        first = which * self.tiling.prefill_tokens
        end = np.minimum(first + self.tiling.prefill_tokens, lengths[of])
        tiles = np.stack([of, first, end], axis=1)
        return tiles[np.argsort(-(starts[of] + first), kind="stable")]

    def _views(self, buffer: torch.Tensor) -> Arrays[torch.Tensor]:
        views, offset = [], 0
        for shape, dtype in self._parts:
            num_bytes = math.prod(shape) * dtype.itemsize
            views.append(buffer[offset : offset + num_bytes].view(dtype).view(shape))
            offset += _aligned_bytes(shape, dtype)
        return Arrays._make([*views, buffer[offset:].view(torch.int32)])


def choose_splits(num_tiles: np.ndarray, num_lanes: int) -> np.ndarray:
    """Into how many items each sequence is cut, `(num_seqs,)`, given its KV tiles.

    With W tiles in all and L lanes, items of at most W / (L w) tiles make w waves, whatever the number of
    sequences; that is at most L w + num_seqs items. Of w = 1 to 4 and no split at all, take what should
    end first.
    """
    if not len(num_tiles):
        return num_tiles
    total = int(num_tiles.sum())
    longest = int(num_tiles.max())
    limits = {min(longest, -(-total // (num_lanes * wave))) for wave in range(1, MAX_WAVES + 1)} | {longest}
    candidates: list[np.ndarray] = [-(-num_tiles // limit) for limit in sorted(limits, reverse=True)]
    return min(candidates, key=lambda splits: estimated_time(num_tiles, splits, num_lanes))


def estimated_time(num_tiles: np.ndarray, splits: np.ndarray, num_lanes: int) -> float:
    """When the last of the lanes is done, in KV tiles: the larger of two bounds, close for many items.

    The lanes cannot do better than share the work evenly; and of the k L + 1 largest items one lane has
    k + 1, each of which is at least as large as the smallest of them.
    """
    items = np.sort(np.repeat(num_tiles / splits, splits))[::-1] + ITEM_COST
    every_lane = items[::num_lanes]
    crowded = (every_lane * np.arange(1, len(every_lane) + 1)).max()
    return float(max(items.sum() / num_lanes, crowded)) + MERGE_COST * bool((splits > 1).any())


def _exclusive_cumsum(counts: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.cumsum(counts) - counts
    return sums


def _aligned_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a part, up to the next multiple of 16, so that every part is aligned."""
    return -(-math.prod(shape) * dtype.itemsize // 16) * 16
