"""Cases of decode and prefill attention against the float64 reference.

The pool is NaN wherever no token lies that a query of the batch sees, other layers included, and block tables
are shuffled: a kernel that reads a token too many, or another one, shows it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pagedkv.batch import Piece
from pagedkv.checks.common import Case, poisoned, randn, tolerance
from pagedkv.decode import Partials, decode_attention, max_decode_tokens
from pagedkv.launch import SPLIT_TOKENS, prefill_launch
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions
from pagedkv.prefill import prefill_attention
from pagedkv.schedule import Planner, StepLimits, Tiling
from pagedkv.tiles import paged_attention_reference

LAYER = 1
"""Of three, so that there are neighbours on either side."""
FP8 = torch.float8_e4m3fn
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Setting:
    """One batch: `chunks` are (tokens in the pool before, new tokens) of each sequence."""

    name: str
    chunks: tuple[tuple[int, int], ...]
    group: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float16
    kv_dtype: torch.dtype | None = None
    """Of the pool; that of the query if None."""
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    num_lanes: int = 16
    """Many lanes: long contexts are split."""
    min_splits: int = 1
    """The longest decoded context must be split into so many, or the case tests something else."""
    fused_query: bool = False
    """The query is a part of a wider matrix, as after one projection for query, key and value."""

    @property
    def num_q_heads(self) -> int:
        """Query heads."""
        return self.group * self.num_kv_heads


def num_roundings(setting: Setting) -> float:
    """How many roundings of its type a result may be off.

    Half precision rounds inputs of the second product and the result. In float32 the scores are rounded to
    the same type as the result: a sum of head_dim products drifts by about sqrt(head_dim) roundings of what
    it adds up to, up to 2 or 3 here, and a weight is off, relative to itself, by what its score is. A soft
    cap c multiplies the rounding of a tanh, some 2 units, by c.
    """
    if setting.dtype != torch.float32:
        return 4.0
    return 4.0 + 2.0 * math.sqrt(setting.head_dim) + 4.0 * (setting.softcap or 0.0)


def run(setting: Setting, device: torch.device) -> None:
    """Run both kernels on the batch, as far as it has work for them, and compare every element."""
    layout = KVLayout(3, setting.num_kv_heads, setting.head_dim, setting.block_size)
    pieces = shuffled_pieces(setting, layout)
    options = AttentionOptions(
        setting.head_dim**-0.5,
        setting.window,
        setting.chunk,
        softcap=setting.softcap,
        sinks=randn((setting.num_q_heads,), setting.dtype, device, 5) if setting.sinks else None,
    )
    pool, scales = filled_pool(setting, layout, pieces, options, device)
    kv = pool[:, LAYER]
    num_tokens = sum(piece.num_tokens for piece in pieces)
    query = query_of(setting, num_tokens, device)
    limits = StepLimits(len(pieces), num_tokens, max(p.start + p.num_tokens for p in pieces))
    planner = Planner(layout, limits, tiling_of(setting), device)
    plan = planner.plan(pieces)
    num_splits = max([1, *plan.items[: plan.num_items, 3].tolist()])
    assert num_splits >= setting.min_splits, f"{num_splits} splits, the case is about {setting.min_splits}"
    out = poisoned((num_tokens, setting.num_q_heads, setting.head_dim), setting.dtype, device)
    if plan.num_items:
        partials = Partials.allocate(layout, setting.num_q_heads, planner.max_items, device)
        partials.acc.fill_(float("nan"))
        partials.stats.fill_(float("nan"))
        decode_attention(query, kv, plan, options, out.tensor, partials, *scales)
    if plan.num_tiles:
        prefill_attention(query, kv, plan, options, out.tensor, *scales)
    expected = paged_attention_reference(query, kv, pieces, options, *scales)
    out.check(expected, tolerance(setting.dtype, num_roundings(setting)))


def shuffled_pieces(setting: Setting, layout: KVLayout) -> list[Piece]:
    """Pieces with block tables from all over a pool that has a few blocks to spare, the last one included."""
    counts = [layout.num_blocks(start + num_tokens) for start, num_tokens in setting.chunks]
    block_ids = list(range(num_blocks(setting, layout)))
    random.Random(sum(counts)).shuffle(block_ids)
    return [
        Piece(start, num_tokens, [block_ids.pop() for _ in range(count)])
        for (start, num_tokens), count in zip(setting.chunks, counts, strict=True)
    ]


def num_blocks(setting: Setting, layout: KVLayout) -> int:
    """Blocks of the pool."""
    return 3 + sum(layout.num_blocks(start + num_tokens) for start, num_tokens in setting.chunks)


def filled_pool(
    setting: Setting, layout: KVLayout, pieces: list[Piece], options: AttentionOptions, device: torch.device
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | tuple[()]]:
    """The pool and the scales of the layer; NaN but for the tokens that queries of the pieces see there."""
    dtype = setting.kv_dtype or setting.dtype
    # Indexed assignment has no float8: the values are set first, and rounded after.
    layer = torch.full((num_blocks(setting, layout), *layout.block_shape[1:]), float("nan"))
    for seed, piece in enumerate(pieces):
        first = int(options.first_seen(torch.tensor(piece.start)))
        positions = torch.arange(first, piece.start + piece.num_tokens)
        blocks = torch.tensor(piece.block_ids)[positions // layout.block_size]
        values = randn((len(positions), 2, layout.num_kv_heads, layout.head_dim), torch.float32, CPU, seed)
        layer[blocks, :, positions % layout.block_size] = values
    scales: tuple[torch.Tensor, torch.Tensor] | tuple[()] = ()
    if dtype == FP8:
        heads = torch.arange(1, layout.num_kv_heads + 1, dtype=torch.float32)
        layer[:, 0] /= (heads / 8)[:, None]
        layer[:, 1] /= (1 / heads)[:, None]
        scales = ((heads / 8).to(device), (1 / heads).to(device))
    shape = (len(layer), *layout.block_shape)
    pool = torch.full(shape, float("nan"), dtype=dtype, device=device)
    pool[:, LAYER].copy_(layer.to(dtype).to(device))
    return pool, scales


def query_of(setting: Setting, num_tokens: int, device: torch.device) -> torch.Tensor:
    """Random queries, `(num_tokens, num_q_heads, head_dim)`."""
    num_heads = setting.num_q_heads + (2 * setting.num_kv_heads if setting.fused_query else 0)
    query = randn((num_tokens, num_heads, setting.head_dim), setting.dtype, device, 1234)
    return query[:, : setting.num_q_heads]


def tiling_of(setting: Setting) -> Tiling:
    """That of the engine, but for the number of lanes."""
    launch = prefill_launch(setting.head_dim, setting.kv_dtype or setting.dtype, setting.group)
    return Tiling(
        num_lanes=setting.num_lanes,
        split_tokens=SPLIT_TOKENS,
        max_decode_tokens=max_decode_tokens(setting.group),
        prefill_tokens=launch.rows // setting.group,
    )


ODD_CONTEXTS = tuple((context - 1, 1) for context in (1, 15, 16, 17, 33))
SHORT_QUERIES = ((0, 1), (0, 2), (1, 2), (0, 8), (9, 8), (63, 2), (57, 8))
LONG_CONTEXTS = ((199, 1), (3, 1))
LONG_SHORT_QUERIES = ((186, 8), (127, 2))
"""The early queries of the first do not see its last split, which starts at 192."""
CHUNKS = ((0, 9), (0, 33), (7, 10), (16, 16), (50, 70))
MIXED = ((150, 1), (30, 33), (64, 2), (0, 12))
OPTIONS: dict[str, dict[str, Any]] = {
    "window of 1": {"window": 1},
    "window of 5": {"window": 5},
    "window of 16": {"window": 16},
    "window of 70": {"window": 70},
    "chunks of 1": {"chunk": 1},
    "chunks of 24": {"chunk": 24},
    "chunks of 64": {"chunk": 64},
    "chunks of 50, window of 40": {"chunk": 50, "window": 40},
    "soft cap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "all options": {"window": 21, "chunk": 37, "softcap": 2.0, "sinks": True},
}


def small_settings() -> Iterator[Setting]:
    """What runs in the interpreter too: few sequences, few tokens, 2 KV heads."""
    f32 = torch.float32
    for group, block_size in ((1, 16), (3, 32), (4, 16), (7, 16), (8, 64)):
        yield Setting(
            f"decode, {group} heads a KV head, blocks of {block_size}",
            ODD_CONTEXTS,
            group,
            block_size=block_size,
        )
    for group, block_size, dtype in ((1, 64, f32), (3, 16, torch.float16), (8, 32, torch.float16)):
        yield Setting(
            f"1 to 8 queries, {group} heads a KV head",
            SHORT_QUERIES,
            group,
            block_size=block_size,
            dtype=dtype,
        )
    for group, block_size, dtype in ((1, 16, f32), (4, 32, torch.float16), (7, 64, torch.float16)):
        split = Setting("", LONG_CONTEXTS, group, block_size=block_size, dtype=dtype, min_splits=4)
        yield replace(split, name=f"split, {group} heads a KV head")
        yield replace(
            split, name=f"split, 1 to 8 queries, {group} heads a KV head", chunks=LONG_SHORT_QUERIES
        )
    for group, block_size in ((1, 32), (3, 16), (4, 16), (7, 16), (8, 64)):
        yield Setting(
            f"prefill, {group} heads a KV head, blocks of {block_size}", CHUNKS, group, block_size=block_size
        )
    yield Setting("prefill in float32", CHUNKS, 3, dtype=f32)
    yield Setting("mixed, query within a wider matrix", MIXED, fused_query=True)
    for name, options in OPTIONS.items():
        yield Setting(f"mixed, {name}, float32", MIXED, 3, dtype=f32, **options)
        yield Setting(f"split, {name}", LONG_SHORT_QUERIES, 4, min_splits=3, **options)
    # More partials than a merge loads at once, and with a window the first of them all empty.
    many = Setting("many splits", ((639, 1),), 4, num_lanes=64, min_splits=9)
    yield many
    yield replace(many, name="many splits, window of 5", chunks=((635, 5),), window=5)
    yield replace(many, name="many splits, all options", chunks=((635, 5),), **OPTIONS["all options"])
    # The window is wider than a tile of KV and the queries together: unmasked tiles between masked ones.
    yield Setting("prefill, window of 200", ((300, 40),), 4, window=200)
    yield Setting("prefill over one block, all options", CHUNKS, 4, block_size=64, **OPTIONS["all options"])
    for head_dim in (80, 96, 128, 256):
        yield Setting(f"mixed, head size {head_dim}", MIXED, 4, head_dim=head_dim, block_size=32)
    yield Setting("mixed, head size 80, float32", MIXED[1:], 2, head_dim=80, dtype=f32)
    for name, options in {"plain": {}, "all options": OPTIONS["all options"]}.items():
        yield Setting(f"mixed, e4m3, {name}", MIXED, 4, kv_dtype=FP8, **options)
    yield Setting("split, e4m3", LONG_CONTEXTS, 4, kv_dtype=FP8, min_splits=4)


def large_settings() -> Iterator[Setting]:
    """For a GPU: real sizes, and bfloat16, whose products the interpreter gets wrong."""
    rng = random.Random(0)
    zipf = tuple((4000 // rank + rng.randrange(50), 1) for rank in range(1, 33))
    decode = tuple((rng.randrange(2000), 1 + rng.randrange(8)) for _ in range(32))
    prefill = ((0, 700), (1000, 333), (5, 64), (2047, 1), (17, 9))
    for dtype, kv_dtype in ((torch.bfloat16, None), (torch.float16, None), (torch.bfloat16, FP8)):
        for block_size in (16, 32, 64):
            base = Setting("", zipf, 4, 8, 128, block_size, dtype, kv_dtype, num_lanes=33, min_splits=2)
            name = f"{kv_dtype or dtype}, blocks of {block_size}".replace("torch.", "")
            yield replace(base, name=f"large split, {name}")
            yield replace(base, name=f"large decode, {name}", chunks=decode, min_splits=1)
            yield replace(base, name=f"large prefill, {name}", chunks=prefill, min_splits=1)
    for name, options in OPTIONS.items():
        base = Setting("", zipf + decode + prefill, 7, 4, 64, dtype=torch.bfloat16, num_lanes=66, **options)
        yield replace(base, name=f"large mixed, {name}")
    for head_dim in (64, 80, 96, 128, 256):
        for dtype, kv_dtype in ((torch.bfloat16, None), (torch.float32, None), (torch.float16, FP8)):
            base = Setting("", zipf + decode + prefill, 8, 2, head_dim, dtype=dtype, kv_dtype=kv_dtype)
            name = f"{kv_dtype or dtype}".replace("torch.", "")
            yield replace(base, name=f"large mixed, head size {head_dim}, {name}")


def _cases() -> Iterator[Case]:
    for setting in small_settings():
        yield Case(setting.name, partial(run, setting))
    for setting in large_settings():
        yield Case(setting.name, partial(run, setting), small=False)


CASES: list[Case] = list(_cases())
"""See `Setting`; names are unique."""
