"""All stages, the most important first: what does not fit into the time is skipped at the end."""

from __future__ import annotations

from functools import partial

from pagedkv.bench import attention, ceilings, correctness, memory, sweep
from pagedkv.bench.stages import Stage

STAGES = (
    Stage("ceilings", "copies, launches and products by torch", ceilings.plan, 60),
    Stage("correctness-attention", "every case", partial(correctness.plan, "attention"), 150),
    Stage("correctness-memory", "every case", partial(correctness.plan, "memory"), 60),
    Stage("correctness-elementwise", "every case", partial(correctness.plan, "elementwise"), 60),
    Stage("decode", "split decode against SDPA on contiguous KV", attention.plan_decode, 90),
    Stage("prefill", "chunked prefill against SDPA on contiguous KV", attention.plan_prefill, 60),
    Stage("swap", "blocks between the device and pinned memory", memory.plan_swap, 45),
    Stage("memory", "kernels that are all bandwidth", memory.plan_memory, 60),
    Stage("sweep-decode", "launch configurations of decode", sweep.plan_decode, 90),
    Stage("sweep-prefill", "launch configurations of prefill", sweep.plan_prefill, 60),
    Stage("flashinfer", "FlashInfer on the same pools", attention.plan_flashinfer, 120),
    Stage("sanitize", "compute-sanitizer on small cases", correctness.plan_sanitize, 120, needs_s=45),
    Stage("flex", "flex_attention on pages", attention.plan_flex, 120, needs_s=45),
    Stage(
        "sanitize-target",
        "what compute-sanitizer watches",
        correctness.plan_sanitize_target,
        600,
        on_request=True,
    ),
)
