"""The kernels that are all bandwidth: store, norms, copies, sampling, swap; each call on its own tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pagedkv.bench.grids import copy_grid, memory_grid, swap_grid
from pagedkv.bench.paged import DTYPE
from pagedkv.bench.stages import Measurement
from pagedkv.bench.timing import Call, graph_seconds, num_cold, stream_seconds
from pagedkv.layout import KVLayout
from pagedkv.roofline import LLAMA3_8B, Work

BLOCK_SIZE = 16
NUM_FREE = 4
"""Times as many blocks in a pool as are copied, so that they are scattered."""

Build = Callable[[int, torch.device], Call]


def plan_memory() -> list[Measurement]:
    """Every kernel at its sizes."""
    builds = {
        "KV store": build_store,
        "KV store with RoPE": build_store_rope,
        "add + RMSNorm": build_add_rms_norm,
        "SiLU and mul": build_silu_and_mul,
        "sampling": build_sampling,
    }
    return [
        Measurement(case, partial(_seconds, builds[case.split(",")[0]], size, work), work)
        for case, size, work in memory_grid()
    ] + [
        Measurement(case, partial(_copy_seconds, num_blocks), work) for case, num_blocks, work in copy_grid()
    ]


def _seconds(build: Build, size: int, work: Work, device: torch.device) -> float:
    return graph_seconds([build(size, device) for _ in range(num_cold(work.num_bytes, device))])


def _layout(num_layers: int = 1) -> KVLayout:
    return KVLayout(num_layers, LLAMA3_8B.num_kv_heads, LLAMA3_8B.head_dim, BLOCK_SIZE)


def _heads(num_tokens: int, num_heads: int, device: torch.device) -> torch.Tensor:
    return torch.randn(num_tokens, num_heads, LLAMA3_8B.head_dim, dtype=DTYPE, device=device)


def _store_arguments(num_tokens: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Key, value, pool of one layer, and slots: whole blocks, the blocks in random order."""
    num_blocks = _layout().num_blocks(num_tokens)
    pool = _layout().allocate(NUM_FREE * num_blocks, DTYPE, device)
    blocks = torch.randperm(len(pool), device=device)[:num_blocks, None]
    slots = (blocks * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=device)).flatten()[:num_tokens]
    key, value = (_heads(num_tokens, LLAMA3_8B.num_kv_heads, device) for _ in range(2))
    return key, value, pool[:, 0], slots.contiguous()


def build_store(num_tokens: int, device: torch.device) -> Call:
    """Store the KV of one layer."""
    from pagedkv.store import store_kv

    return partial(store_kv, *_store_arguments(num_tokens, device))


def build_store_rope(num_tokens: int, device: torch.device) -> Call:
    """Store the KV of one layer, rotated."""
    from pagedkv.rope import store_kv_rope

    key, value, pool, slots = _store_arguments(num_tokens, device)
    query = _heads(num_tokens, LLAMA3_8B.num_q_heads, device)
    cos, sin = (torch.randn(num_tokens, LLAMA3_8B.head_dim, dtype=DTYPE, device=device) for _ in range(2))
    return partial(store_kv_rope, query, key, value, cos, sin, pool, slots, out=torch.empty_like(query))


def build_add_rms_norm(num_tokens: int, device: torch.device) -> Call:
    """Add the residual and norm."""
    from pagedkv.norm import add_rms_norm

    x, residual = (torch.randn(num_tokens, LLAMA3_8B.hidden, dtype=DTYPE, device=device) for _ in range(2))
    weight = torch.ones(LLAMA3_8B.hidden, dtype=DTYPE, device=device)
    out, total = torch.empty_like(x), torch.empty_like(x)
    return partial(add_rms_norm, x, residual, weight, 1e-5, out=out, residual_out=total)


def build_silu_and_mul(num_tokens: int, device: torch.device) -> Call:
    """The product of an MLP's two branches."""
    from pagedkv.swiglu import silu_and_mul

    gate, up = (torch.randn(num_tokens, LLAMA3_8B.intermediate, dtype=DTYPE, device=device) for _ in range(2))
    return partial(silu_and_mul, gate, up, out=torch.empty_like(gate))


def build_sampling(batch: int, device: torch.device) -> Call:
    """A token a sequence, with temperature, top-k and top-p."""
    from pagedkv.sampling import sample

    logits = torch.randn(batch, LLAMA3_8B.vocabulary, device=device)
    temperature, top_p = (torch.full((batch,), x, device=device) for x in (0.8, 0.95))
    top_k = torch.full((batch,), 50, dtype=torch.int32, device=device)
    numbers = torch.rand(batch, device=device)
    return partial(sample, logits, temperature, top_k, top_p, numbers)


def _copy_seconds(num_blocks: int, device: torch.device) -> float:
    """Launched from Python, which sends the ids; with 512 blocks this is not what takes the time."""
    return stream_seconds(build_block_copy(num_blocks, device))


def build_block_copy(num_blocks: int, device: torch.device) -> Call:
    """Blocks to others of the same pool, all layers."""
    from pagedkv.copy import copy_blocks

    pool = _layout(LLAMA3_8B.num_layers).allocate(2 * num_blocks, DTYPE, device)
    ids = torch.randperm(len(pool)).tolist()
    return partial(copy_blocks, pool, pool, ids[:num_blocks], ids[num_blocks:])


def plan_swap() -> list[Measurement]:
    """Both directions, one block and many."""
    return [
        Measurement(case, partial(_swap_seconds, case.split()[1], num_blocks), work)
        for case, num_blocks, work in swap_grid()
    ]


def _swap_seconds(direction: str, num_blocks: int, device: torch.device) -> float:
    """Launched from Python, as the engine does between steps."""
    return stream_seconds(build_swap(direction, num_blocks, device))


def build_swap(direction: str, num_blocks: int, device: torch.device) -> Call:
    """Blocks between a pool on the device and one in pinned memory, scattered in both."""
    from pagedkv.copy import swap_blocks

    layout = _layout(LLAMA3_8B.num_layers)
    pool = layout.allocate(NUM_FREE * num_blocks, DTYPE, device)
    host = layout.allocate(
        NUM_FREE * num_blocks, DTYPE, torch.device("cpu"), pin_memory=device.type == "cuda"
    )
    source, target = (pool, host) if direction == "out" else (host, pool)
    ids = [torch.randperm(len(pool))[:num_blocks].tolist() for _ in range(2)]
    return partial(swap_blocks, source, target, *ids)
