"""What the attention kernels have in common: KV through a block table, softmax online, and the reference.

For one query row and one tile of KV, with scores s in units of log2 e, so that exp(x) = 2^s:

    m' = max(m, max s)      total' = total 2^(m - m') + sum p
    p  = 2^(s - m')         acc'   = acc 2^(m - m') + p V

and the result is acc / total (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135).
While a row has seen no token m is -inf and total = 0; 2^(m - m') would be NaN, so 0 stands in for m' there.

A sink is a token without a value: a row that has one starts from m = sink, total = 1, acc = 0.

What no row of a program sees is loaded as 0, and scores are selected, not added to -inf, so a slot of another
sequence, or one that nobody wrote, cannot be noticed, whatever it holds. What remains is within a sequence: a
value (not a key) that is not finite reaches, as 0 x NaN, earlier query tokens of the same tile and step. To
select values a row at a time costs more registers than the tiles of prefill have: 28 spills on sm_80.

A soft cap c makes c tanh(x / c) of a score x. tanh(y) = 1 - 2 / (1 + 2^(2 y log2 e)): right at both ends, as
2^inf = inf and 2^-inf = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from pagedkv.batch import Piece
from pagedkv.launch import AttentionLaunch
from pagedkv.options import AttentionOptions

LOG2_E = math.log2(math.e)
TORCH_TYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8e4nv": torch.float8_e4m3fn,
    "u8": torch.float8_e4m3fn,  # see kv_argument
}
EIGHT_BITS = ("fp8e4nv", "u8")


@triton.jit
def block_ids_of(table, position, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Ids of the blocks that hold tokens [position, position + TILE); 0 for those that start at or after end.

    `position` is a multiple of TILE. A tile within a block has one id, a scalar; else it is a vector.
    """
    if TILE <= BLOCK_SIZE:  # noqa: SIM108, the branches differ in shape
        first = position
    else:
        first = position + tl.arange(0, TILE // BLOCK_SIZE) * BLOCK_SIZE
    return tl.load(table + first // BLOCK_SIZE, mask=first < end, other=0)


@triton.jit
def token_offsets(
    ids,
    position,
    BLOCK_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Where each token of a tile starts in the pool of a layer, in elements, `(TILE,)` int64."""
    if TILE <= BLOCK_SIZE:
        in_block = position % BLOCK_SIZE + tl.arange(0, TILE)
        offsets = ids.to(tl.int64) * BLOCK_STRIDE + in_block * TOKEN_STRIDE
    else:
        in_block = tl.arange(0, BLOCK_SIZE) * TOKEN_STRIDE
        offsets = ids.to(tl.int64)[:, None] * BLOCK_STRIDE + in_block[None, :]
        # A head is a multiple of 16 elements, but the compiler loses sight of it in the reshape.
        offsets = tl.multiple_of(tl.reshape(offsets, (TILE,)), 16)
    return offsets


@triton.jit
def scale_of(scales, kv_head, kv):
    """What stored numbers of a KV head are to be multiplied by; `kv` points to them."""
    scale = 1.0
    if scales is not None:
        scale = tl.load(scales + kv_head)
    if kv.dtype.element_ty == tl.uint8:
        scale = scale * 256.0  # see as_float
    return scale


@triton.jit
def as_float(x, dtype: tl.constexpr):
    """Numbers of the pool in the type of the query.

    Bytes are e4m3 on a device that has no such type: the bits of a float16, but for 15 - 7 = 8 in the bias of
    the exponent, so 2^8 is left to the scale. That holds for subnormal numbers too. Of NaN all bits but the
    sign are set: adding 1 carries out of them, and the carry completes the exponent of a NaN of float16.
    """
    if x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        size = bits & 0x7F
        nan = ((size + 1) & 0x80) << 7
        x = (((bits & 0x80) << 8) | (size << 7) | nan).to(tl.float16, bitcast=True)
    return x.to(dtype)


@triton.jit
def first_state(sinks, q_heads, has_sink, ROWS: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr):
    """m, total and acc of rows that have seen nothing but their sink, if they have one."""
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + q_heads).to(tl.float32) * 1.4426950408889634
        m = tl.where(has_sink, sink, m)
        total = tl.where(has_sink, total + 1.0, total)
    return m, total, tl.zeros((ROWS, HEAD_DIM_PADDED), tl.float32)


@triton.jit
def first_seen(positions, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The lowest position that a query at each of these positions sees; see `AttentionOptions.first_seen`."""
    first = positions * 0
    if WINDOW is not None:
        first = tl.maximum(first, positions - WINDOW + 1)
    if CHUNK is not None:
        first = tl.maximum(first, positions // CHUNK * CHUNK)
    return first


@triton.jit
def attend(
    q,
    m,
    total,
    acc,
    keys,
    table,
    low,
    high,
    first,
    end,
    query_positions,
    score_scale,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Let rows `q` see the tokens [low, high) of a sequence as far as they may; low is a multiple of TILE.

    `keys` points to the K of one head in the pool of a layer, `table` to the block table of the sequence.
    Tokens before `first`, the first that any row sees, and from `end` on are not read. Not MASKED: every row
    sees every token, and high is a multiple of TILE.
    """
    dims = tl.arange(0, q.shape[1])
    firsts = first_seen(query_positions, WINDOW, CHUNK)
    # The ids of the next tile are loaded one round ahead: else K would wait for them, and the pipeline
    # would have one tile in flight where it could have two.
    ids = block_ids_of(table, low, end, BLOCK_SIZE, TILE)
    for position in range(low, high, TILE):
        next_ids = block_ids_of(table, position + TILE, end, BLOCK_SIZE, TILE)
        tokens = position + tl.arange(0, TILE)
        offsets = token_offsets(ids, position, BLOCK_STRIDE, BLOCK_SIZE, TOKEN_STRIDE, TILE)
        pointers = keys + offsets[:, None] + dims[None, :]
        # What is not read is 0: a slot that is not seen may hold NaN, and 0 x NaN is NaN.
        if MASKED:
            used = tokens < end
            if WINDOW is not None or CHUNK is not None:
                used = used & (tokens >= first)
            read = used[:, None] & (dims < HEAD_DIM)[None, :]
            k = tl.load(pointers, mask=read, other=0.0)
            v = tl.load(pointers + BLOCK_SIZE * TOKEN_STRIDE, mask=read, other=0.0)
        elif q.shape[1] != HEAD_DIM:
            read = (dims < HEAD_DIM)[None, :]
            k = tl.load(pointers, mask=read, other=0.0)
            v = tl.load(pointers + BLOCK_SIZE * TOKEN_STRIDE, mask=read, other=0.0)
        else:
            k = tl.load(pointers)
            v = tl.load(pointers + BLOCK_SIZE * TOKEN_STRIDE)
        k = as_float(k, q.dtype)
        v = as_float(v, q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * score_scale
        if SOFTCAP is not None:
            tanh = 1.0 - 2.0 / (1.0 + tl.exp2(scores * (2.0 / SOFTCAP)))
            scores = tanh * (SOFTCAP * 1.4426950408889634)
        if MASKED:
            seen = tokens[None, :] <= query_positions[:, None]
            if WINDOW is not None or CHUNK is not None:
                seen = seen & (tokens[None, :] >= firsts[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        finite_m = tl.where(new_m == float("-inf"), 0.0, new_m)
        p = tl.exp2(scores - finite_m[:, None])
        decay = tl.exp2(m - finite_m)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(q.dtype), v, acc * decay[:, None], input_precision=PRECISION)
        m = new_m
        ids = next_ids
    return m, total, acc


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a tile's rows take up."""
    return 1 << (head_dim - 1).bit_length()


def attention_types(
    pointers: Mapping[str, str],
    launch: AttentionLaunch,
    block_size: int,
    head_dim: int,
    kv_type: str,
    group: int,
    num_kv_heads: int,
    all_options: bool,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Signature and constexprs of an attention kernel for ahead-of-time compilation, for 32 layers.

    Sinks are float32: bfloat16 ones are read in 2 bytes each, once a program, which would hide others.
    """
    optional = {"sinks": all_options, "k_scale": kv_type in EIGHT_BITS, "v_scale": kv_type in EIGHT_BITS}
    signature = {name: f"*{type_}" for name, type_ in pointers.items()} | {"score_scale": "fp32"}
    signature |= {name: "*fp32" for name, given in optional.items() if given}
    constexprs = {name: None for name, given in optional.items() if not given} | {
        "SOFTCAP": 50.0 if all_options else None,
        "WINDOW": 4096 if all_options else None,
        "CHUNK": 8192 if all_options else None,
        "GROUP": group,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": padded_head_dim(head_dim),
        "BLOCK_SIZE": block_size,
        "BLOCK_STRIDE": 32 * 2 * block_size * num_kv_heads * head_dim,
        "QUERY_STRIDE": num_kv_heads * group * head_dim,
        "ROWS": launch.rows,
        "TILE": launch.tile,
        "PRECISION": "ieee",
    }
    return signature, constexprs


def variant_name(
    kernel: str, launch: AttentionLaunch, block_size: int, head_dim: int, kv_type: str, all_options: bool
) -> str:
    """Of a variant, as it stands in the table of the README."""
    options = ", all options" if all_options else ""
    size = f"{launch.rows} x {launch.tile}, head size {head_dim}"
    return f"{kernel} {size}, {kv_type}, blocks of {block_size}{options}"


def kv_argument(kv: torch.Tensor) -> torch.Tensor:
    """The pool of a layer as a kernel takes it: where the device has no e4m3 (before 8.9), as bytes."""
    if kv.dtype != torch.float8_e4m3fn:
        return kv
    native = kv.is_cuda and torch.cuda.get_device_capability(kv.device) >= (8, 9)
    return kv if native else kv.view(torch.uint8)


def check_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    out: torch.Tensor,
    options: AttentionOptions,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    """Assert what the attention kernels take for granted."""
    num_kv_heads, head_dim = kv.shape[3:]
    group, rest = divmod(query.shape[1], num_kv_heads)
    assert query.shape[2] == head_dim and rest == 0, (
        f"query {tuple(query.shape)} does not fit KV {tuple(kv.shape)}"
    )
    assert query.stride()[1:] == (head_dim, 1), (
        f"heads of a query token must be contiguous, strides {query.stride()}"
    )
    assert query.stride(0) * query.itemsize % 16 == 0, f"query tokens {query.stride(0)} elements apart"
    assert kv[0, 0].is_contiguous() and kv.stride(1) == kv[0, 0].numel(), f"KV has strides {kv.stride()}"
    # token_offsets promises it to the compiler.
    assert head_dim % 16 == 0 and kv.stride(0) % 16 == 0, f"KV {tuple(kv.shape)} has strides {kv.stride()}"
    assert out.shape == query.shape and out.is_contiguous() and out.dtype == query.dtype, (
        "out is not as the query"
    )
    assert all(x.data_ptr() % 16 == 0 for x in (query, kv, out)), "tensors must be aligned to 16 bytes"
    scales = [scale for scale in (k_scale, v_scale) if scale is not None]
    if kv.dtype == torch.float8_e4m3fn:
        assert len(scales) == 2, "a pool of float8_e4m3fn needs k_scale and v_scale"
    else:
        assert kv.dtype == query.dtype and not scales, (
            f"query {query.dtype}, KV {kv.dtype}, {len(scales)} scales"
        )
    for scale in scales:
        assert scale.shape == (num_kv_heads,) and scale.dtype == torch.float32, (
            f"a scale is {tuple(scale.shape)}"
        )
    if options.sinks is not None:
        assert options.sinks.shape == (num_kv_heads * group,), f"sinks are {tuple(options.sinks.shape)}"
    window = options.sliding_window
    assert window is None or window >= 1, f"a sliding window of {window} tokens"
    chunk = options.chunk_size
    assert chunk is None or chunk >= 1, f"attention chunks of {chunk} tokens"


def paged_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    pieces: Sequence[Piece],
    options: AttentionOptions,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode and prefill attention alike in float64, one piece at a time.

    Query `(num_tokens, num_q_heads, head_dim)`, the tokens of the pieces in their order; kv
    `(num_blocks, 2, block_size, num_kv_heads, head_dim)` holds the KV of all tokens, the new ones included;
    scales `(num_kv_heads,)`.
    """
    num_kv_heads, head_dim = kv.shape[3:]
    scales = [torch.ones(num_kv_heads) if s is None else s for s in (k_scale, v_scale)]
    out = torch.empty(query.shape, dtype=torch.float64)
    row = 0
    for piece in pieces:
        context = piece.start + piece.num_tokens
        table = torch.tensor(list(piece.block_ids))
        both = kv.cpu()[table].double().transpose(0, 1).reshape(2, -1, num_kv_heads, head_dim)[:, :context]
        keys, values = (x * s.double().cpu()[:, None] for x, s in zip(both, scales, strict=True))
        rows = slice(row, row + piece.num_tokens)
        out[rows] = _piece_reference(query[rows].cpu().double(), keys, values, piece.start, options)
        row = rows.stop
    return out


def _piece_reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, options: AttentionOptions
) -> torch.Tensor:
    # What is before all that the queries see may hold anything.
    low = int(options.first_seen(torch.tensor(start)))
    keys, values = keys[low:], values[low:]
    grouped = torch.unflatten(query, 1, (keys.shape[1], -1))
    scores = torch.einsum("qhgd,shd->hgqs", grouped, keys) * options.scaling
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    asking, seen = start + torch.arange(len(query))[:, None], low + torch.arange(len(keys))
    hidden = seen > asking
    if options.sliding_window is not None:
        hidden |= asking - seen >= options.sliding_window
    if options.chunk_size is not None:
        hidden |= asking // options.chunk_size != seen // options.chunk_size
    weights = scores.masked_fill(hidden, float("-inf"))
    if options.sinks is not None:
        sinks = options.sinks.double().cpu().view(keys.shape[1], -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([weights, sinks], dim=-1)
    weights = torch.softmax(weights, dim=-1)[..., : len(keys)]
    return torch.einsum("hgqs,shd->qhgd", weights, values).reshape(query.shape)
