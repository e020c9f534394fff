"""Cases of what writes the pool: KV store, fused and 8-bit, block copy, swap.

The pool is full of random bytes, and has blocks before and after that the kernel is not told of. What is to
be stored is compared with the reference; everything else bit for bit with what was there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from pagedkv.checks.common import Case, poisoned, randn, tolerance
from pagedkv.copy import copy_blocks, copy_blocks_reference, swap_blocks
from pagedkv.layout import KVLayout
from pagedkv.rope import rope_reference, store_kv_rope
from pagedkv.store import E4M3_MAX, store_kv, store_kv_reference

LAYER = 1
"""Of three, so that there are neighbours on either side."""
FP8 = torch.float8_e4m3fn
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Setting:
    """One call of the store."""

    num_tokens: int
    num_heads: int
    head_dim: int
    block_size: int = 16
    dtype: torch.dtype = torch.float16
    pool_dtype: torch.dtype | None = None
    """That of key and value if None."""
    strides: str = "contiguous"
    """Or transposed, as transformers hands its heads over; or fused, parts of one product for q, k and v."""
    rotary_dim: int = 0
    """0: the plain store."""
    num_q_heads: int = 0

    def __str__(self) -> str:
        """Name of the case."""
        name = f"{self.num_tokens} x {self.num_heads} x {self.head_dim}, blocks of {self.block_size}"
        rope = f", {self.num_q_heads} query heads, rotary {self.rotary_dim}" if self.rotary_dim else ""
        types = [str(x).removeprefix("torch.") for x in (self.dtype, self.pool_dtype) if x]
        return f"{name}{rope}, {' to '.join(types)}, {self.strides}"


def run_store(setting: Setting, device: torch.device) -> None:
    """Store, and compare the whole pool and the rotated query."""
    whole, pool = random_pool(setting, device)
    before = whole.clone()
    query, key, value = inputs(setting, device)
    scales = scales_of(setting, device)
    num_slots = pool.shape[0] * setting.block_size
    slots = torch.randperm(num_slots, generator=torch.Generator().manual_seed(7))[: setting.num_tokens]
    slots = slots.to(device)
    if setting.rotary_dim:
        cos, sin = (
            randn((setting.num_tokens, setting.rotary_dim), setting.dtype, device, seed) for seed in (8, 9)
        )
        out = poisoned(tuple(query.shape), setting.dtype, device)
        k_scale, v_scale = scales
        store_kv_rope(query, key, value, cos, sin, pool[:, LAYER], slots, k_scale, v_scale, out.tensor)
        out.check(rope_reference(query, cos, sin), rope_tolerance(setting.dtype))
        key = rope_reference(key, cos, sin)
    else:
        store_kv(key, value, pool[:, LAYER], slots, *scales)
        if setting.pool_dtype is None:
            store_kv_reference(key, value, before[1:-1, LAYER], slots)
            assert torch.equal(whole.view(torch.uint8), before.view(torch.uint8)), (
                "not what the reference does"
            )
    check_stored(setting, pool[:, LAYER], key, value, slots, scales)
    after = whole.clone()
    for x in (before, after):
        blocks = x[1:-1, LAYER].view(torch.uint8)
        blocks[slots // setting.block_size, :, slots % setting.block_size] = 0
    assert torch.equal(before.view(torch.uint8), after.view(torch.uint8)), "something else was overwritten"


def rope_tolerance(dtype: torch.dtype) -> float:
    """One rounding of the type; in float32 also those of two products, which may be larger than the sum."""
    return tolerance(dtype, 10.0 if dtype == torch.float32 else 1.01)


def random_pool(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bytes, and the pool: all but the first and the last block."""
    layout = KVLayout(3, setting.num_heads, setting.head_dim, setting.block_size)
    dtype = setting.pool_dtype or setting.dtype
    num_blocks = layout.num_blocks(setting.num_tokens) + 4
    shape = (num_blocks, *layout.block_shape[:-1], setting.head_dim * dtype.itemsize)
    generator = torch.Generator().manual_seed(3)
    whole = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device).view(dtype)
    return whole, whole[1:-1]


def inputs(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, value, with the strides asked for."""
    tokens, heads, dim = setting.num_tokens, setting.num_heads, setting.head_dim
    counts = [setting.num_q_heads, heads, heads]
    if setting.strides == "fused":
        fused = randn((tokens, sum(counts), dim), setting.dtype, device, 1)
        query, key, value = torch.split(fused, counts, dim=1)
        return query, key, value
    made = [randn((tokens, n, dim), setting.dtype, device, seed) for seed, n in enumerate(counts)]
    if setting.strides == "transposed":
        made = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in made]
    return made[0], made[1], made[2]


def scales_of(
    setting: Setting, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Scales of an 8-bit pool, another one each head: some values saturate, and some are subnormal."""
    if setting.pool_dtype != FP8:
        return (None, None)
    heads = torch.arange(setting.num_heads, dtype=torch.float32)
    return ((0.0031 * 17**heads).to(device), (0.37 / 9**heads).to(device))


def check_stored(
    setting: Setting,
    layer: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | tuple[None, None],
) -> None:
    """What stands in the slots; exact for a plain copy, within half a step for 8-bit floats."""
    for part, x, scale in ((0, key, scales[0]), (1, value, scales[1])):
        stored = layer.view(torch.uint8)[slots // setting.block_size, part, slots % setting.block_size]
        stored = stored.view(layer.dtype).double()
        expected = x.double()
        if scale is not None:
            expected = (expected / scale.double()[:, None]).clamp(-E4M3_MAX, E4M3_MAX)
            excess = (stored - expected).abs() - half_step(expected) * (1 + 1e-5)
            assert (excess <= 0).all(), f"{excess.max()} more than half a step off"
        elif part == 0 and setting.rotary_dim:
            limit = rope_tolerance(setting.dtype)
            torch.testing.assert_close(stored, expected, rtol=limit, atol=limit)
        else:
            assert torch.equal(stored, expected), "a copy differs"


def half_step(x: torch.Tensor) -> torch.Tensor:
    """Half the distance of neighbouring e4m3 numbers around x: 3 bits of mantissa, exponents from -6."""
    return torch.exp2(x.abs().clamp(min=2.0**-6).log2().floor() - 4)


def run_all_halfs(device: torch.device) -> None:
    """Every float16 there is becomes the 8-bit float that torch makes of it, saturated."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).view(1024, 1, 64)
    pool = torch.zeros((64, 1, 2, 16, 1, 64), device=device).to(FP8)
    one = torch.ones(1, device=device)
    store_kv(x.to(device), x.to(device), pool[:, 0], torch.arange(1024, device=device), one, one)
    expected = torch.where(x.isnan(), x, x.clamp(-E4M3_MAX, E4M3_MAX)).to(FP8)
    for part in (0, 1):
        stored = pool[:, 0, part].reshape(x.shape).cpu()
        assert torch.equal(stored.float().isnan(), x.isnan())
        assert torch.equal(stored.view(torch.uint8)[~x.isnan()], expected.view(torch.uint8)[~x.isnan()])


def run_empty(device: torch.device) -> None:
    """No tokens and no blocks are no work, and no error."""
    pool = torch.ones((2, 1, 2, 16, 1, 64), device=device)
    none = torch.empty((0, 1, 64), device=device)
    angles = torch.empty((0, 64), device=device)
    slots = torch.empty(0, dtype=torch.int64, device=device)
    store_kv(none, none, pool[:, 0], slots)
    assert store_kv_rope(none, none, none, angles, angles, pool[:, 0], slots).shape == (0, 1, 64)
    copy_blocks(pool, pool, [], [])
    swap_blocks(pool, pool, [], [])
    assert (pool == 1).all()


def run_copy(block_shape: tuple[int, ...], dtype: torch.dtype, same: bool, device: torch.device) -> None:
    """Scattered blocks, one of them to two places, between pools or within one."""
    source = random_blocks((9, *block_shape), dtype, 1).to(device)
    target = source if same else random_blocks((7, *block_shape), dtype, 2).to(device)
    expected_source, expected = source.clone(), target.clone()
    source_ids, target_ids = [8, 2, 8, 0], [6, 1, 3, 5]
    copy_blocks_reference(expected_source, expected, source_ids, target_ids)
    copy_blocks(source, target, source_ids, target_ids)
    assert torch.equal(target.view(torch.uint8), expected.view(torch.uint8))
    if not same:
        assert torch.equal(source.view(torch.uint8), expected_source.view(torch.uint8)), "the source changed"


def run_swap(num_words: int, num_blocks: int, scattered: bool, device: torch.device) -> None:
    """Out to host memory, pinned where a GPU reads it, and in again to other places."""
    pool = random_blocks((num_blocks + 1, num_words), torch.float16, 1).to(device)
    host = random_blocks((num_blocks + 2, num_words), torch.float16, 2)
    host = host.pin_memory() if device.type == "cuda" else host
    kept, kept_host = pool.clone(), host.clone()
    ids = list(range(num_blocks))
    if scattered:
        random.Random(0).shuffle(ids)
    places = [1 + i for i in range(num_blocks)]
    swap_blocks(pool, host, ids, places)
    if device.type == "cuda":
        torch.cuda.synchronize()
    copy_blocks_reference(kept.cpu(), kept_host, ids, places)
    assert torch.equal(host.view(torch.int16), kept_host.view(torch.int16)), "swap out"
    swap_blocks(host, pool, places, [i + 1 for i in ids])
    copy_blocks_reference(kept_host.to(device), kept, places, [i + 1 for i in ids])
    assert torch.equal(pool.view(torch.int16), kept.view(torch.int16)), "swap in"


def random_blocks(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A pool of random bytes."""
    shape = (*shape[:-1], shape[-1] * dtype.itemsize)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator).view(dtype)


SMALL = [
    Setting(1, 2, 64),
    Setting(3, 3, 80, 32, torch.float32),
    Setting(17, 1, 96, 16, strides="transposed"),
    Setting(17, 2, 128, 64, torch.float32, strides="fused"),
    Setting(3, 2, 256, 32, strides="transposed"),
    Setting(17, 5, 80, 16, torch.bfloat16, strides="fused"),
    Setting(530, 1, 64, 16, strides="transposed"),
    Setting(17, 3, 64, 16, torch.float32, FP8),
    Setting(3, 2, 80, 32, torch.float16, FP8, strides="transposed"),
]
SMALL_ROPE = [
    Setting(1, 1, 64, 16, torch.float32, rotary_dim=64, num_q_heads=1),
    Setting(17, 2, 80, 32, torch.float32, strides="transposed", rotary_dim=32, num_q_heads=6),
    Setting(3, 3, 96, 16, rotary_dim=96, num_q_heads=3, strides="fused"),
    Setting(17, 1, 128, 64, rotary_dim=128, num_q_heads=7, strides="transposed"),
    Setting(3, 2, 256, 16, torch.float32, rotary_dim=64, num_q_heads=4, strides="fused"),
    Setting(3, 2, 80, 16, rotary_dim=80, num_q_heads=2),
    Setting(513, 2, 64, 16, torch.float32, rotary_dim=64, num_q_heads=4, strides="fused"),
    Setting(17, 2, 64, 16, torch.float32, FP8, rotary_dim=48, num_q_heads=2),
]
LARGE = [
    Setting(tokens, 8, 128, 16, dtype, pool_dtype, strides, rotary_dim, 32 if rotary_dim else 0)
    for tokens, strides in ((64, "fused"), (3001, "transposed"))
    for dtype, pool_dtype in ((torch.bfloat16, None), (torch.bfloat16, FP8), (torch.float16, FP8))
    for rotary_dim in (0, 128)
]


def _cases() -> Iterator[Case]:
    for setting in SMALL:
        yield Case(f"store {setting}", partial(run_store, setting))
    for setting in SMALL_ROPE:
        yield Case(f"rope {setting}", partial(run_store, setting))
        # The interpreter truncates where it casts to bfloat16.
        half = replace(setting, dtype=torch.bfloat16)
        yield Case(f"rope {half}", partial(run_store, half), small=False)
    for setting in LARGE:
        kind = "rope" if setting.rotary_dim else "store"
        yield Case(f"{kind} {setting}", partial(run_store, setting), small=False)
    yield Case("store all float16 as 8-bit", run_all_halfs)
    yield Case("nothing to do", run_empty)
    for shape, dtype in (
        ((3, 2, 32, 2, 80), torch.float16),
        ((1, 2, 16, 1, 80), FP8),
        ((5, 4), torch.float32),
    ):
        for same in (False, True):
            where = "within a pool" if same else "between pools"
            yield Case(f"copy {shape} {dtype} {where}", partial(run_copy, shape, dtype, same))
    yield Case("copy 2 MB blocks", partial(run_copy, (64, 2**14), torch.bfloat16, False), small=False)
    for num_words, num_blocks, scattered in (
        (520, 5, True),
        (520, 5, False),
        (2**14, 100, True),
        (2**14, 100, False),
        (2**20, 7, True),
    ):
        order = "scattered" if scattered else "neighbours"
        name = f"swap {num_blocks} blocks of {2 * num_words:,} bytes, {order}"
        yield Case(name, partial(run_swap, num_words, num_blocks, scattered), small=num_words < 1000)


CASES = list(_cases())
