"""flex_attention on pages, for comparison: block tables as a BlockMask, the kernel compiled by torch."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pagedkv.bench.grids import DecodePoint
from pagedkv.bench.paged import DTYPE, Paged, paged
from pagedkv.bench.timing import graph_seconds, num_cold


def decode_seconds(point: DecodePoint, device: torch.device) -> float:
    """On pages of its own layout: all slots of a head, one after another."""
    shape, num_layers = point.shape, num_cold(point.work.num_bytes, device)
    chunks = [(context - 1, 1) for context in point.contexts]
    setting = paged(shape, chunks, point.block_size, 1, device)
    slots = (2, 1, shape.num_kv_heads, point.num_blocks * point.block_size, shape.head_dim)
    layers = [torch.randn(slots, dtype=DTYPE, device=device) for _ in range(num_layers)]
    torch.compiler.reset()  # else the shapes of the point before would make these dynamic
    attend = partial(
        torch.compile(flex_attention, fullgraph=True, dynamic=False),
        setting.query.view(len(chunks), shape.num_q_heads, 1, shape.head_dim),
        block_mask=page_mask(setting),
        enable_gqa=True,
        kernel_options={"BLOCK_N": min(point.block_size, 64)},  # a tile lies within a page
    )
    return graph_seconds([partial(attend, keys, values) for keys, values in layers])


def page_mask(setting: Paged) -> BlockMask:
    """The block tables, as physical pages: whole ones in full, the last by its mask."""
    page, device, num_pages = setting.layout.block_size, setting.pool.device, len(setting.pool)
    contexts = torch.tensor([piece.start + piece.num_tokens for piece in setting.pieces])
    tables = [torch.tensor(piece.block_ids) for piece in setting.pieces]
    full, last = (torch.zeros(len(tables), 1, 1, num_pages, dtype=torch.int32) for _ in range(2))
    owners, first_tokens = (torch.zeros(num_pages, dtype=torch.int64) for _ in range(2))
    for i, table in enumerate(tables):
        num_full = int(contexts[i]) // page
        full[i, 0, 0, :num_full] = table[:num_full]
        last[i, 0, 0, 0] = table[-1]
        owners[table] = i
        first_tokens[table] = torch.arange(len(table)) * page
    owner, first_token, ends = owners.to(device), first_tokens.to(device), contexts.to(device)

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        token = first_token[slot // page] + slot % page
        return (owner[slot // page] == b) & (token < ends[b])

    return BlockMask.from_kv_blocks(
        (ends % page > 0).to(torch.int32).view(-1, 1, 1),
        last.to(device),
        (ends // page).to(torch.int32).view(-1, 1, 1),
        full.to(device),
        BLOCK_SIZE=(128, page),
        mask_mod=visible,
        seq_lengths=(1, num_pages * page),
        compute_q_blocks=False,
    )
