"""New keys and values into their slots of the pool: as they are, rotated by RoPE on the way, as 8-bit floats.

Slot s of a layer is token s mod block_size of block s div block_size. With the view of one layer,
`pool[:, layer]` (num_blocks, 2, block_size, num_kv_heads, head_dim), head h of the key goes to

    block * block_stride + (s mod block_size) * H * D + h * D

and that of the value block_size * H * D further. This is a copy, so what counts is that loads and stores
are 16 bytes wide. `store_kv` tiles tokens and elements e of H * D (head e div D, element e mod D): D is a
constant divisible by 16, so the compiler sees that 8 neighbours stay in one head. A tile has as many elements
of a token as the largest power of two that divides H * D, so nothing is masked but tokens.

RoPE (arXiv:2104.09864, section 3.2.2) in the pairing of transformers' Llama: element i < r of a head, r half
of the rotary dimension, goes with element i + r,

    y[i]     = x[i]     * cos[i]     - x[i + r] * sin[i]
    y[i + r] = x[i + r] * cos[i + r] + x[i]     * sin[i + r]

and elements from 2r on are copied. `store_kv_rope` loads both halves of a pair once, and cosines once for all
heads of a program; sums are float32 and rounded once, where the eager path rounds each product as well.

8-bit floats are e4m3 (arXiv:2209.05433, section 3: exponent bias 7, 3 bits of mantissa, no infinity, largest
448). Stored is x times the float32 reciprocal of its KV head's scale, rounded to nearest even, at most 448 in
size; NaN stays NaN.

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
from pagedkv.launch import rope_heads, rope_launch, store_launch

E4M3_MAX = 448.0


@triton.jit
def _e4m3_bits(x):
    """Bits of float32 x as e4m3, in integers: for sm_80, which has no such conversion."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Normal numbers: 20 of the 23 mantissa bits go, to nearest even; the bias of the exponent falls by 120.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9, which is the last place of 2^14: the addition itself rounds.
    shifted = size.to(tl.float32, bitcast=True) + 16384.0
    subnormal = shifted.to(tl.int32, bitcast=True) - 0x46800000
    code = tl.minimum(tl.where(size < 0x3C800000, subnormal, normal), 0x7E)
    code = tl.where(size > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _store(pointers, x, inverse_scale, mask):
    """Store x in the type of the pool; pools of 8 bits (uint8: converted here) are scaled."""
    if pointers.dtype.element_ty == tl.uint8:
        tl.store(pointers, _e4m3_bits(x.to(tl.float32) * inverse_scale), mask)
    elif pointers.dtype.element_ty == tl.float8e4nv:
        tl.store(pointers, (x.to(tl.float32) * inverse_scale).to(tl.float8e4nv), mask)
    else:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask)


@triton.jit
def _inverse_scale(scale_ptr, head):
    return 1.0 if scale_ptr is None else 1.0 / tl.load(scale_ptr + head)


@triton.jit
def _copy(source, target, inverse_scale, in_batch, START: tl.constexpr, STOP: tl.constexpr):
    """Elements START to STOP of one head; the pointers are to element 0, one a token."""
    PADDED: tl.constexpr = triton.next_power_of_2(STOP - START)
    element = START + tl.arange(0, PADDED)[None, :]
    mask = in_batch[:, None] & (element < STOP)
    x = tl.load(source[:, None] + element, mask)
    _store(target[:, None] + element, x, inverse_scale, mask)


@triton.jit
def _rotate(source, target, cos, sin, cos_far, sin_far, inverse_scale, in_batch, pair, R: tl.constexpr):
    """The rotated elements, 2 R, of one head; the pointers are to element 0, one a token."""
    mask = in_batch[:, None] & (pair < R)[None, :]
    near = tl.load(source[:, None] + pair[None, :], mask).to(tl.float32)
    far = tl.load(source[:, None] + (R + pair)[None, :], mask).to(tl.float32)
    _store(target[:, None] + pair[None, :], near * cos - far * sin, inverse_scale, mask)
    _store(target[:, None] + (R + pair)[None, :], far * cos_far + near * sin_far, inverse_scale, mask)


@triton.jit
def store_kv_kernel(
    key_ptr,
    value_ptr,
    pool_ptr,
    slots_ptr,
    k_scale_ptr,
    v_scale_ptr,
    num_tokens,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    BLOCK_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_ELEMENTS: tl.constexpr,
):
    """Program (t, e) stores tile e of the elements of K and of V, for tile t of the tokens."""
    token = tl.program_id(0).to(tl.int64) * TILE_TOKENS + tl.arange(0, TILE_TOKENS)
    element = tl.program_id(1) * TILE_ELEMENTS + tl.arange(0, TILE_ELEMENTS)
    head, within = element // HEAD_DIM, element % HEAD_DIM
    mask = (token < num_tokens)[:, None]
    slot = tl.load(slots_ptr + token, token < num_tokens, 0)
    key_at = (token * key_token_stride)[:, None] + (head * key_head_stride + within)[None, :]
    value_at = (token * value_token_stride)[:, None] + (head * value_head_stride + within)[None, :]
    key = tl.load(key_ptr + key_at, mask)
    value = tl.load(value_ptr + value_at, mask)
    row = NUM_HEADS * HEAD_DIM
    target = slot // BLOCK_SIZE * BLOCK_STRIDE + slot % BLOCK_SIZE * row
    pointers = pool_ptr + target[:, None] + element[None, :]
    _store(pointers, key, _inverse_scale(k_scale_ptr, head), mask)
    _store(pointers + BLOCK_SIZE * row, value, _inverse_scale(v_scale_ptr, head), mask)


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
                _copy(query_row, out_row, 1.0, in_batch, ROTARY_DIM, HEAD_DIM)
    else:
        slot = tl.load(slots_ptr + token, in_batch, 0)
        pool_row = pool_ptr + slot // BLOCK_SIZE * BLOCK_STRIDE + slot % BLOCK_SIZE * ROW
        for i in tl.static_range(HEADS):
            head = first - NUM_Q_HEADS + i
            key_row = key_ptr + token * key_token_stride + head * key_head_stride
            value_row = value_ptr + token * value_token_stride + head * value_head_stride
            target = pool_row + head * HEAD_DIM
            k_inverse = _inverse_scale(k_scale_ptr, head)
            v_inverse = _inverse_scale(v_scale_ptr, head)
            _copy(value_row, target + BLOCK_SIZE * ROW, v_inverse, in_batch, 0, HEAD_DIM)
            _rotate(key_row, target, cos, sin, cos_far, sin_far, k_inverse, in_batch, pair, R)
            if ROTARY_DIM < HEAD_DIM:
                _copy(key_row, target, k_inverse, in_batch, ROTARY_DIM, HEAD_DIM)


def store_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    pool_layer: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Store the keys and values of some tokens in their slots.

    Key and value `(num_tokens, num_kv_heads, head_dim)`, the last dimension contiguous, tokens and heads at
    any stride; `pool_layer` is `pool[:, layer]`, `(num_blocks, 2, block_size, num_kv_heads, head_dim)`; slots
    `(num_tokens,)` int64, block * block_size + offset, no two alike: which of two wins is not defined, and
    that they are in the pool is not checked, since they are on the device. A pool of float8_e4m3fn takes
    scales `(num_kv_heads,)` float32. Raises ValueError if shapes, strides or types are not like this.
    """
    _check(key, value, pool_layer, slots, k_scale, v_scale)
    num_tokens, num_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    launch = store_launch(num_tokens)
    elements = min(_power_of_two_in(num_heads * head_dim), launch.tile)
    tokens = launch.tile // elements
    grid = (triton.cdiv(num_tokens, tokens), num_heads * head_dim // elements)
    store_kv_kernel[grid](
        key,
        value,
        _pool_argument(pool_layer),
        slots,
        k_scale,
        v_scale,
        num_tokens,
        *key.stride()[:2],
        *value.stride()[:2],
        BLOCK_STRIDE=pool_layer.stride(0),
        BLOCK_SIZE=pool_layer.shape[2],
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        TILE_TOKENS=tokens,
        TILE_ELEMENTS=elements,
        num_warps=launch.num_warps,
    )


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
    _check(key, value, pool_layer, slots, k_scale, v_scale)
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
        _pool_argument(pool_layer),
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


def store_kv_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    pool_layer: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """The same in torch, token by token; quotients in float64, and then rounded once."""
    for x, scale, part in ((key, k_scale, 0), (value, v_scale, 1)):
        for token, slot in enumerate(slots.tolist()):
            block, offset = divmod(slot, pool_layer.shape[2])
            row = x[token].double()
            if scale is not None:
                row = (row / scale.double()[:, None]).clamp(-E4M3_MAX, E4M3_MAX)
            pool_layer[block, part, offset] = row.to(pool_layer.dtype)


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads `(num_tokens, num_heads, head_dim)` rotated, in float64."""
    rotary = cos.shape[1]
    near, far = x[..., : rotary // 2].double(), x[..., rotary // 2 : rotary].double()
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    rotated = torch.cat([near, far], dim=-1) * cos + torch.cat([-far, near], dim=-1) * sin
    return torch.cat([rotated, x[..., rotary:].double()], dim=-1)


def _power_of_two_in(number: int) -> int:
    """The largest power of two that divides the number."""
    return number & -number


def _pool_argument(pool_layer: torch.Tensor) -> torch.Tensor:
    """The pool as the kernel takes it: where the device has no e4m3, as bytes."""
    if pool_layer.dtype != torch.float8_e4m3fn:
        return pool_layer
    native = pool_layer.is_cuda and torch.cuda.get_device_capability(pool_layer.device) >= (8, 9)
    return pool_layer if native else pool_layer.view(torch.uint8)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _check(
    key: torch.Tensor,
    value: torch.Tensor,
    pool_layer: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    _require(key.dim() == 3, f"key must be (num_tokens, num_kv_heads, head_dim), not {tuple(key.shape)}")
    num_tokens, num_heads, head_dim = key.shape
    _require(value.shape == key.shape, f"value {tuple(value.shape)}, but key {tuple(key.shape)}")
    _require(value.dtype == key.dtype, f"value is {value.dtype}, but key {key.dtype}")
    _require(head_dim % 16 == 0, f"head_dim {head_dim} is not divisible by 16")
    for name, x in (("key", key), ("value", value)):
        _require(x.stride(2) == 1, f"{name}: last stride {x.stride(2)}, must be 1")
    shape = (2, pool_layer.shape[2], num_heads, head_dim) if pool_layer.dim() == 5 else ()
    _require(
        tuple(pool_layer.shape[1:]) == shape,
        f"pool_layer {tuple(pool_layer.shape)}, must be (num_blocks, 2, block_size, {num_heads}, {head_dim})",
    )
    _require(pool_layer[0].is_contiguous(), f"a block of a layer is not contiguous: {pool_layer.stride()}")
    _require(
        slots.shape == (num_tokens,) and slots.dtype == torch.int64 and slots.is_contiguous(),
        f"slots must be ({num_tokens},) int64, not {tuple(slots.shape)} {slots.dtype}",
    )
    _check_scales(key.dtype, pool_layer.dtype, num_heads, k_scale, v_scale)


def _check_rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor
) -> None:
    num_tokens, _, head_dim = key.shape
    _require(
        query.dim() == 3 and query.shape[::2] == (num_tokens, head_dim) and query.stride(2) == 1,
        f"query {tuple(query.shape)}, last stride {query.stride(-1)}, but key {tuple(key.shape)}",
    )
    _require(query.dtype == key.dtype, f"query is {query.dtype}, but key {key.dtype}")
    rotary = cos.shape[-1]
    _require(
        cos.shape == sin.shape == (num_tokens, rotary) and cos.is_contiguous() and sin.is_contiguous(),
        f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must be ({num_tokens}, rotary_dim), contiguous",
    )
    _require(
        rotary % 16 == 0 and 0 < rotary <= head_dim,
        f"rotary_dim {rotary} must be divisible by 16 and at most head_dim {head_dim}",
    )
    _require(
        out.shape == query.shape and out.dtype == query.dtype and out.is_contiguous(),
        f"out {tuple(out.shape)} {out.dtype} must be contiguous and like the query, {tuple(query.shape)} "
        f"{query.dtype}",
    )
    _require(out.data_ptr() != query.data_ptr() or not num_tokens, "out must not be the query")


def _check_scales(
    dtype: torch.dtype,
    pool_dtype: torch.dtype,
    num_heads: int,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    scales = (("k_scale", k_scale), ("v_scale", v_scale))
    if pool_dtype != torch.float8_e4m3fn:
        _require(dtype == pool_dtype, f"key is {dtype}, but the pool {pool_dtype}")
        for name, scale in scales:
            _require(scale is None, f"{name} given, but the pool is {pool_dtype}")
        return
    for name, scale in scales:
        _require(
            scale is not None and scale.shape == (num_heads,) and scale.dtype == torch.float32,
            f"{name} must be ({num_heads},) float32 for a pool of {pool_dtype}, not "
            f"{None if scale is None else (tuple(scale.shape), scale.dtype)}",
        )


def variants() -> Iterator[Variant]:
    """For ahead-of-time compilation: Llama-3-8B, a head size that is no power of two, and 8-bit pools."""
    for heads, head_dim, num_tokens in ((8, 128, 64), (8, 128, 4096), (8, 80, 64)):
        yield _store_variant("fp16", "fp16", heads, head_dim, num_tokens, (80, 90))
    yield _store_variant("bf16", "u8", 8, 128, 4096, (80,))
    yield _store_variant("bf16", "fp8e4nv", 8, 128, 4096, (90,))
    for head_dim, rotary_dim, num_tokens in ((128, 128, 64), (128, 128, 4096), (80, 32, 64)):
        yield _rope_variant("bf16", head_dim, rotary_dim, num_tokens, (80, 90))
    yield _rope_variant("u8", 128, 128, 4096, (80,))
    yield _rope_variant("fp8e4nv", 128, 128, 4096, (90,))


def _store_variant(
    dtype: str, pool: str, heads: int, head_dim: int, num_tokens: int, archs: tuple[int, ...]
) -> Variant:
    launch = store_launch(num_tokens)
    elements = min(_power_of_two_in(heads * head_dim), launch.tile)
    tiles = {"TILE_TOKENS": launch.tile // elements, "TILE_ELEMENTS": elements}
    return Variant(
        f"store_kv {heads} x {head_dim} {dtype} to {pool}, {num_tokens} tokens",
        store_kv_kernel,
        _signature(("key", "value"), (), dtype, pool),
        _constexprs(heads, head_dim, pool) | tiles,
        launch.num_warps,
        launch.num_stages,
        max_registers=64,
        max_shared_bytes=8192 if _is_8_bit(pool) else 0,
        archs=archs,
    )


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
        _signature(("query", "key", "value"), ("cos", "sin", "out"), "bf16", pool),
        _constexprs(8, head_dim, pool) | tiles,
        launch.num_warps,
        launch.num_stages,
        max_registers=128,
        max_shared_bytes=8192,
        archs=archs,
    )


def _is_8_bit(pool: str) -> bool:
    return pool in ("u8", "fp8e4nv")


def _signature(strided: tuple[str, ...], flat: tuple[str, ...], dtype: str, pool: str) -> dict[str, str]:
    pointers = dict.fromkeys([f"{x}_ptr" for x in strided + flat], f"*{dtype}")
    strides = dict.fromkeys([f"{x}_{y}_stride" for x in strided for y in ("token", "head")], "i32:16")
    scales = dict.fromkeys(["k_scale_ptr", "v_scale_ptr"], "*fp32") if _is_8_bit(pool) else {}
    return pointers | strides | scales | {"pool_ptr": f"*{pool}", "slots_ptr": "*i64", "num_tokens": "i32"}


def _constexprs(heads: int, head_dim: int, pool: str) -> dict[str, int | None]:
    scales = {} if _is_8_bit(pool) else dict.fromkeys(["k_scale_ptr", "v_scale_ptr"])
    block = {"BLOCK_STRIDE": 32 * 2 * 16 * heads * head_dim, "BLOCK_SIZE": 16}
    return scales | block | {"NUM_HEADS": heads, "HEAD_DIM": head_dim}
