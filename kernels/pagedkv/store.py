"""New keys and values into their slots of the pool: as they are, or as 8-bit floats.

Slot s of a layer is token s mod block_size of block s div block_size. With the view of one layer,
`pool[:, layer]` (num_blocks, 2, block_size, num_kv_heads, head_dim), head h of the key goes to

    block * block_stride + (s mod block_size) * H * D + h * D

and that of the value block_size * H * D further. This is a copy, so what counts is that loads and stores
are 16 bytes wide. `store_kv` tiles tokens and elements e of H * D (head e div D, element e mod D): D is a
constant divisible by 16, so the compiler sees that 8 neighbours stay in one head. A tile has as many elements
of a token as the largest power of two that divides H * D, so nothing is masked but tokens.

8-bit floats are e4m3 (arXiv:2209.05433, section 3: exponent bias 7, 3 bits of mantissa, no infinity, largest
448). Stored is x times the float32 reciprocal of its KV head's scale, rounded to nearest even, at most 448 in
size; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.contracts import require
from pagedkv.launch import store_launch

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
def put(pointers, x, inverse_scale, mask):
    """Store x in the type of the pool; pools of 8 bits (uint8: converted here) are scaled."""
    if pointers.dtype.element_ty == tl.uint8:
        tl.store(pointers, _e4m3_bits(x.to(tl.float32) * inverse_scale), mask)
    elif pointers.dtype.element_ty == tl.float8e4nv:
        tl.store(pointers, (x.to(tl.float32) * inverse_scale).to(tl.float8e4nv), mask)
    else:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask)


@triton.jit
def inverse_scale_of(scale_ptr, head):
    """1 / scale of each head; 1 where nothing is scaled."""
    return 1.0 if scale_ptr is None else 1.0 / tl.load(scale_ptr + head)


@triton.jit
def copy_elements(source, target, inverse_scale, in_batch, START: tl.constexpr, STOP: tl.constexpr):
    """Elements START to STOP of one head; the pointers are to element 0, one a token."""
    PADDED: tl.constexpr = triton.next_power_of_2(STOP - START)
    element = START + tl.arange(0, PADDED)[None, :]
    mask = in_batch[:, None] & (element < STOP)
    x = tl.load(source[:, None] + element, mask)
    put(target[:, None] + element, x, inverse_scale, mask)


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
    put(pointers, key, inverse_scale_of(k_scale_ptr, head), mask)
    put(pointers + BLOCK_SIZE * row, value, inverse_scale_of(v_scale_ptr, head), mask)


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
    check_store(key, value, pool_layer, slots, k_scale, v_scale)
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
        pool_argument(pool_layer),
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


def _power_of_two_in(number: int) -> int:
    """The largest power of two that divides the number."""
    return number & -number


def pool_argument(pool_layer: torch.Tensor) -> torch.Tensor:
    """The pool as the kernel takes it: where the device has no e4m3, as bytes."""
    if pool_layer.dtype != torch.float8_e4m3fn:
        return pool_layer
    native = pool_layer.is_cuda and torch.cuda.get_device_capability(pool_layer.device) >= (8, 9)
    return pool_layer if native else pool_layer.view(torch.uint8)


def check_store(
    key: torch.Tensor,
    value: torch.Tensor,
    pool_layer: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    """Raise ValueError unless keys, values, pool, slots and scales are as `store_kv` wants them."""
    require(key.dim() == 3, f"key must be (num_tokens, num_kv_heads, head_dim), not {tuple(key.shape)}")
    num_tokens, num_heads, head_dim = key.shape
    require(value.shape == key.shape, f"value {tuple(value.shape)}, but key {tuple(key.shape)}")
    require(value.dtype == key.dtype, f"value is {value.dtype}, but key {key.dtype}")
    require(head_dim % 16 == 0, f"head_dim {head_dim} is not divisible by 16")
    for name, x in (("key", key), ("value", value)):
        require(x.stride(2) == 1, f"{name}: last stride {x.stride(2)}, must be 1")
    shape = (2, pool_layer.shape[2], num_heads, head_dim) if pool_layer.dim() == 5 else ()
    require(
        tuple(pool_layer.shape[1:]) == shape,
        f"pool_layer {tuple(pool_layer.shape)}, must be (num_blocks, 2, block_size, {num_heads}, {head_dim})",
    )
    require(pool_layer[0].is_contiguous(), f"a block of a layer is not contiguous: {pool_layer.stride()}")
    require(
        slots.shape == (num_tokens,) and slots.dtype == torch.int64 and slots.is_contiguous(),
        f"slots must be ({num_tokens},) int64, not {tuple(slots.shape)} {slots.dtype}",
    )
    _check_scales(key.dtype, pool_layer.dtype, num_heads, k_scale, v_scale)


def _check_scales(
    dtype: torch.dtype,
    pool_dtype: torch.dtype,
    num_heads: int,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    scales = (("k_scale", k_scale), ("v_scale", v_scale))
    if pool_dtype != torch.float8_e4m3fn:
        require(dtype == pool_dtype, f"key is {dtype}, but the pool {pool_dtype}")
        for name, scale in scales:
            require(scale is None, f"{name} given, but the pool is {pool_dtype}")
        return
    for name, scale in scales:
        require(
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


def _store_variant(
    dtype: str, pool: str, heads: int, head_dim: int, num_tokens: int, archs: tuple[int, ...]
) -> Variant:
    launch = store_launch(num_tokens)
    elements = min(_power_of_two_in(heads * head_dim), launch.tile)
    tiles = {"TILE_TOKENS": launch.tile // elements, "TILE_ELEMENTS": elements}
    return Variant(
        f"store_kv {heads} x {head_dim} {dtype} to {pool}, {num_tokens} tokens",
        store_kv_kernel,
        store_signature(("key", "value"), (), dtype, pool),
        store_constexprs(heads, head_dim, pool) | tiles,
        launch.num_warps,
        launch.num_stages,
        max_registers=64,
        max_shared_bytes=8192 if is_8_bit(pool) else 0,
        archs=archs,
    )


def is_8_bit(pool: str) -> bool:
    """Whether this is the type of a pool of 8-bit floats, as the compiler names it."""
    return pool in ("u8", "fp8e4nv")


def store_signature(strided: tuple[str, ...], flat: tuple[str, ...], dtype: str, pool: str) -> dict[str, str]:
    """Types of the arguments for ahead-of-time compilation; strides are divisible by 16."""
    pointers = dict.fromkeys([f"{x}_ptr" for x in strided + flat], f"*{dtype}")
    strides = dict.fromkeys([f"{x}_{y}_stride" for x in strided for y in ("token", "head")], "i32:16")
    scales = dict.fromkeys(["k_scale_ptr", "v_scale_ptr"], "*fp32") if is_8_bit(pool) else {}
    return pointers | strides | scales | {"pool_ptr": f"*{pool}", "slots_ptr": "*i64", "num_tokens": "i32"}


def store_constexprs(heads: int, head_dim: int, pool: str) -> dict[str, int | None]:
    """Constants for ahead-of-time compilation: blocks of 16 tokens, 32 layers."""
    scales = {} if is_8_bit(pool) else dict.fromkeys(["k_scale_ptr", "v_scale_ptr"])
    block = {"BLOCK_STRIDE": 32 * 2 * 16 * heads * head_dim, "BLOCK_SIZE": 16}
    return scales | block | {"NUM_HEADS": heads, "HEAD_DIM": head_dim}
