"""New keys and values into their slots of the pool, rotated by RoPE on the way, and the query with them.

RoPE (arXiv:2104.09864, section 3.2.2) in the pairing of transformers' Llama: element i < r of a head, r half
of the rotary dimension, goes with element i + r,

    y[i]     = x[i]     * cos[i]     - x[i + r] * sin[i]
    y[i + r] = x[i + r] * cos[i + r] + x[i]     * sin[i + r]

and elements from 2r on are copied. `store_kv_rope` loads both halves of a pair once, and cosines once for all
heads of a program; sums are float32 and rounded once, where the eager path rounds each product as well.

Counted, Llama-3-8B (32 + 8 heads of 128), bf16, one layer, a token: eager RoPE and store are 12 launches (for
q and for k two products, a negation, a concatenation and a sum, then two indexed copies). Of q and k, 10 KB
together, the products move 2 x 2 times that, negation 1, concatenation 2, sum 3, and the indexed copies 8 KB:
108 KB. Here it is one launch and 24 KB: q, k and v in and out. At batch 64 over 32 layers 384 launches and
226 MB become 32 launches and 50 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.contracts import require
from pagedkv.launch import rope_heads, rope_launch
from pagedkv.store import (
    check_store,
    copy_elements,
    inverse_scale_of,
    pool_argument,
    put,
    store_constexprs,
    store_signature,
)


@triton.jit
def _rotate(source, target, cos, sin, cos_far, sin_far, inverse_scale, in_batch, pair, R: tl.constexpr):
    """The rotated elements, 2 R, of one head; the pointers are to element 0, one a token."""
    mask = in_batch[:, None] & (pair < R)[None, :]
    near = tl.load(source[:, None] + pair[None, :], mask).to(tl.float32)
    far = tl.load(source[:, None] + (R + pair)[None, :], mask).to(tl.float32)
    put(target[:, None] + pair[None, :], near * cos - far * sin, inverse_scale, mask)
    put(target[:, None] + (R + pair)[None, :], far * cos_far + near * sin_far, inverse_scale, mask)


@triton.jit
def store_kv_rope_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    pool_ptr,
    slots_ptr,
    k_scale_ptr,
    v_scale_ptr,
    num_tokens,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    BLOCK_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_Q_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Program (t, g) takes HEADS heads of tile t of the tokens: of the query, or of key and value."""
    R: tl.constexpr = ROTARY_DIM // 2
    ROW: tl.constexpr = NUM_HEADS * HEAD_DIM
    token = tl.program_id(0).to(tl.int64) * TILE_TOKENS + tl.arange(0, TILE_TOKENS)
    in_batch = token < num_tokens
    pair = tl.arange(0, triton.next_power_of_2(R))
    angle = (token * ROTARY_DIM)[:, None] + pair[None, :]
    mask = in_batch[:, None] & (pair < R)[None, :]
    cos = tl.load(cos_ptr + angle, mask).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask).to(tl.float32)
    cos_far = tl.load(cos_ptr + R + angle, mask).to(tl.float32)
    sin_far = tl.load(sin_ptr + R + angle, mask).to(tl.float32)
    first = tl.program_id(1) * HEADS
    if first < NUM_Q_HEADS:
        for i in tl.static_range(HEADS):
            query_row = query_ptr + token * query_token_stride + (first + i) * query_head_stride
            out_row = out_ptr + token * (NUM_Q_HEADS * HEAD_DIM) + (first + i) * HEAD_DIM
            _rotate(query_row, out_row, cos, sin, cos_far, sin_far, 1.0, in_batch, pair, R)
            if ROTARY_DIM < HEAD_DIM:
                copy_elements(query_row, out_row, 1.0, in_batch, ROTARY_DIM, HEAD_DIM)
    else:
        slot = tl.load(slots_ptr + token, in_batch, 0)
        pool_row = pool_ptr + slot // BLOCK_SIZE * BLOCK_STRIDE + slot % BLOCK_SIZE * ROW
        for i in tl.static_range(HEADS):
            head = first - NUM_Q_HEADS + i
            key_row = key_ptr + token * key_token_stride + head * key_head_stride
            value_row = value_ptr + token * value_token_stride + head * value_head_stride
            target = pool_row + head * HEAD_DIM
            k_inverse = inverse_scale_of(k_scale_ptr, head)
            v_inverse = inverse_scale_of(v_scale_ptr, head)
            copy_elements(value_row, target + BLOCK_SIZE * ROW, v_inverse, in_batch, 0, HEAD_DIM)
            _rotate(key_row, target, cos, sin, cos_far, sin_far, k_inverse, in_batch, pair, R)
            if ROTARY_DIM < HEAD_DIM:
                copy_elements(key_row, target, k_inverse, in_batch, ROTARY_DIM, HEAD_DIM)


def store_kv_rope(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    pool_layer: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate the query, and store the rotated key and the value, in one launch.

    Query `(num_tokens, num_q_heads, head_dim)`; returned is the rotated query, of the same shape, in `out`
    where that is given (contiguous, not the query itself). Cosines and sines `(num_tokens, rotary_dim)`,
    contiguous, of any floating type; rotary_dim at most head_dim, divisible by 16. The rest as in `store_kv`.
    """
    check_store(key, value, pool_layer, slots, k_scale, v_scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
    _check_rope(query, key, cos, sin, out)
    num_tokens, num_heads, head_dim = key.shape
    if num_tokens == 0:
        return out
    launch = rope_launch(num_tokens)
    heads = rope_heads(num_tokens, query.shape[1], num_heads)
    tokens = launch.tile // triton.next_power_of_2(head_dim)
    store_kv_rope_kernel[(triton.cdiv(num_tokens, tokens), (query.shape[1] + num_heads) // heads)](
        query,
        key,
        value,
        cos,
        sin,
        out,
        pool_argument(pool_layer),
        slots,
        k_scale,
        v_scale,
        num_tokens,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        BLOCK_STRIDE=pool_layer.stride(0),
        BLOCK_SIZE=pool_layer.shape[2],
        NUM_Q_HEADS=query.shape[1],
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        ROTARY_DIM=cos.shape[1],
        TILE_TOKENS=tokens,
        HEADS=heads,
        num_warps=launch.num_warps,
    )
    return out


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads `(num_tokens, num_heads, head_dim)` rotated, in float64."""
    rotary = cos.shape[1]
    near, far = x[..., : rotary // 2].double(), x[..., rotary // 2 : rotary].double()
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    rotated = torch.cat([near, far], dim=-1) * cos + torch.cat([-far, near], dim=-1) * sin
    return torch.cat([rotated, x[..., rotary:].double()], dim=-1)


def _check_rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor
) -> None:
    num_tokens, _, head_dim = key.shape
    require(
        query.dim() == 3 and query.shape[::2] == (num_tokens, head_dim) and query.stride(2) == 1,
        f"query {tuple(query.shape)}, last stride {query.stride(-1)}, but key {tuple(key.shape)}",
    )
    require(query.dtype == key.dtype, f"query is {query.dtype}, but key {key.dtype}")
    rotary = cos.shape[-1]
    require(
        cos.shape == sin.shape == (num_tokens, rotary) and cos.is_contiguous() and sin.is_contiguous(),
        f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must be ({num_tokens}, rotary_dim), contiguous",
    )
    require(
        rotary % 16 == 0 and 0 < rotary <= head_dim,
        f"rotary_dim {rotary} must be divisible by 16 and at most head_dim {head_dim}",
    )
    require(
        out.shape == query.shape and out.dtype == query.dtype and out.is_contiguous(),
        f"out {tuple(out.shape)} {out.dtype} must be contiguous and like the query, {tuple(query.shape)} "
        f"{query.dtype}",
    )
    require(out.data_ptr() != query.data_ptr() or not num_tokens, "out must not be the query")


def variants() -> Iterator[Variant]:
    """For ahead-of-time compilation: Llama-3-8B, a rotary dimension below the head size, and 8-bit pools."""
    for head_dim, rotary_dim, num_tokens in ((128, 128, 64), (128, 128, 4096), (80, 32, 64)):
        yield _rope_variant("bf16", head_dim, rotary_dim, num_tokens, (80, 90))
    yield _rope_variant("u8", 128, 128, 4096, (80,))
    yield _rope_variant("fp8e4nv", 128, 128, 4096, (90,))


def _rope_variant(
    pool: str, head_dim: int, rotary_dim: int, num_tokens: int, archs: tuple[int, ...]
) -> Variant:
    launch = rope_launch(num_tokens)
    tiles = {
        "NUM_Q_HEADS": 32,
        "ROTARY_DIM": rotary_dim,
        "TILE_TOKENS": launch.tile // triton.next_power_of_2(head_dim),
        "HEADS": rope_heads(num_tokens, 32, 8),
    }
    return Variant(
        f"store_kv_rope 8 x {head_dim}, rotary {rotary_dim}, bf16 to {pool}, {num_tokens} tokens",
        store_kv_rope_kernel,
        store_signature(("query", "key", "value"), ("cos", "sin", "out"), "bf16", pool),
        store_constexprs(8, head_dim, pool) | tiles,
        launch.num_warps,
        launch.num_stages,
        max_registers=128,
        max_shared_bytes=8192,
        archs=archs,
    )
