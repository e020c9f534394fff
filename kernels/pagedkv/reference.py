"""Paged attention in plain torch, on any device: gather what a group reads, then attend.

Grouped-query attention needs no copies of K and V: with one token a sequence, the query heads of one KV head
are packed as query length; with more, they become the batch, over which K and V are broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from pagedkv.batch import Batch, Group, Piece
from pagedkv.context import Context
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions


def write_kv(slots_view: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Store keys and values, `(num_tokens, num_kv_heads, head_dim)`, in their slots, `(2, num_tokens)`."""
    slots_view.index_copy_(0, slots[0], key)
    slots_view.index_copy_(0, slots[1], value)


class ReferenceAttention:
    """Writes the new KV of a layer to the pool and attends, for one batch after another.

    `max_blocks` is the longest block table. The scratch buffer is allocated here, once, so a step allocates
    no KV.
    """

    SCRATCH_BYTES = 8 << 20
    """K and V that a group of decodes gathers at once.

    Measured on 2 cores with 32 MB of L3, float32, 32 decodes of about 350 tokens over 12 layers: 202 ms a
    step one by one, 145 in pairs, 106 in fours, 82 in eights (6 MB), 91 in sixteens, 97 all together.
    """

    def __init__(self, layout: KVLayout, pool: torch.Tensor, max_blocks: int) -> None:
        self.layout = layout
        self.device = pool.device
        self._rows = layout.rows(pool)
        self._slots = layout.slots(pool)
        block_bytes = 2 * self._rows.shape[1] * pool.dtype.itemsize
        self.max_group_blocks = max(max_blocks, self.SCRATCH_BYTES // block_bytes)
        self._scratch = torch.empty(
            (2 * self.max_group_blocks, self._rows.shape[1]), dtype=pool.dtype, device=pool.device
        )

    def prepare(self, pieces: Sequence[Piece]) -> Batch:
        """Slots to write and groups to gather; see `pagedkv.interface.PagedAttention`."""
        return Batch.build(self.layout, pieces, self.device, self.max_group_blocks)

    def attend(
        self,
        batch: Batch,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attention of one layer over the batch; see `pagedkv.interface.PagedAttention`."""
        write_kv(self._slots, batch.slots[layer], key, value)
        out = query.new_empty(query.shape)
        for group in batch.groups:
            context = group.context(options)
            keys, values = self._read(group, context, layer, key, value)
            _attend_group(context, query[group.tokens], keys, values, options, out[group.tokens])
        return out

    def _read(
        self, group: Group, context: Context, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V that the group reads, each `(num_seqs, num_slots, num_kv_heads, head_dim)`."""
        if context.rows is None:
            return key[None, group.tokens], value[None, group.tokens]
        rows = context.rows[layer]
        gathered = self._scratch[: len(rows)]
        torch.index_select(self._rows, 0, rows, out=gathered)
        if context.unseen is not None:
            gathered.view(-1, self._slots[0].numel()).index_fill_(0, context.unseen, 0)
        both = gathered.view(2, group.num_seqs, -1, self.layout.num_kv_heads, self.layout.head_dim)
        keys, values = both[:, :, : context.num_slots]
        return keys, values


def _attend_group(
    context: Context,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    options: AttentionOptions,
    out: torch.Tensor,
) -> None:
    num_kv_heads, num_queries = keys.shape[2], context.last.shape[1]
    # (tokens, kv heads, query heads of one kv head, head_dim)
    packed = torch.unflatten(query, 1, (num_kv_heads, -1))
    target = torch.unflatten(out, 1, (num_kv_heads, -1))
    sinks = None if options.sinks is None else options.sinks.view(1, num_kv_heads, -1, 1)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if num_queries > 1:
        packed, target = packed.permute(2, 1, 0, 3), target.permute(2, 1, 0, 3)
        sinks = None if sinks is None else sinks.permute(2, 1, 0, 3)
    spoiled = None if num_queries == 1 else _spoiled(context, keys, values)
    if spoiled is not None:
        keys, values = (torch.nan_to_num(x, 0, 0, 0) for x in (keys, values))
    if options.needs_scores:
        result = _attend_scores(context, packed, keys, values, options, sinks)
    else:
        result = _attend_fused(context, packed, keys, values, options)
    target.copy_(result)
    if spoiled is not None:
        target.masked_fill_(spoiled, math.nan)


def _spoiled(context: Context, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor | None:
    """Which of several queries of a sequence see a key or value that is not finite; None if all are finite.

    Keys and values are `(1, num_kv_heads, num_slots, head_dim)`, the result `(1, num_kv_heads, num_queries,
    1)`. These queries get NaN, and the others keep their results: a later token must not change what earlier
    ones leave in the pool. One sum tells whether there is anything to do; on a GPU the host waits for it.
    """
    if torch.isfinite(keys.sum(dtype=torch.float32) + values.sum(dtype=torch.float32)):
        return None
    bad = ~(keys.isfinite() & values.isfinite()).all(-1)[0]
    # Bad slots before each slot, and before the end.
    before = functional.pad(bad.cumsum(-1), (1, 0))
    first, end = context.first[0].to(bad.device), context.last[0].to(bad.device) + 1
    return (before[:, end] > before[:, first])[None, :, :, None]


def _attend_fused(
    context: Context, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    keys, values = (x.expand(query.shape[0], -1, -1, -1) for x in (keys, values))
    if context.is_causal:
        return functional.scaled_dot_product_attention(
            query, keys, values, is_causal=context.num_slots > 1, scale=options.scaling
        )
    mask = context.mask(query.dtype)
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=options.scaling)


def _attend_scores(
    context: Context,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    options: AttentionOptions,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    scores = torch.matmul(query, keys.transpose(2, 3)).mul_(options.scaling)
    if options.softcap is not None:
        scores.div_(options.softcap).tanh_().mul_(options.softcap)
    ceiling = context.mask(query.dtype, seen=math.inf)
    if ceiling is not None:
        torch.minimum(scores, ceiling, out=scores)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:3], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)[..., : keys.shape[2]]
    return torch.matmul(weights.to(values.dtype), values)
