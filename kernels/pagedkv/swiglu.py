"""SiLU-and-mul, the middle of a gated MLP (arXiv:2002.05202, section 2, SwiGLU), in one pass.

    y = up * gate * sigmoid(gate),    sigmoid(g) = 1 / (1 + 2^(-g log2 e))

in float32, rounded once; the eager path rounds silu(gate) as well. Where 2^(...) overflows, the sigmoid is 0
and so is the result.

Counted in transformers' modeling_llama.py, Llama-3-8B (intermediate 14336) in bf16: eager is 2 launches
(silu, product) that move 2 + 2 and 2 + 2 + 2 bytes an element, 10 in all; here it is 1 launch and 6. Over 32
layers at batch 64: 64 launches and 294 MB against 32 and 176 MB, 28 us less at 4.3 TB/s (kernels.md), plus 32
launches of about 2 us: 0.1 ms of a step whose weights alone take 3.7 ms. In a prefill of 8192 tokens the
bytes are 37.6 GB against 22.5 GB, 3.5 ms of a step of about 170 ms (2 x 8e9 x 8192 FLOP at 790 TFLOP/s): 2 %.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.contracts import require
from pagedkv.launch import SWIGLU_LAUNCH

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def silu_and_mul_kernel(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, SIZE: tl.constexpr, TILE: tl.constexpr
):
    """Program (r, t) takes tile t of row r."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = column < SIZE
    gate = tl.load(gate_ptr + row * gate_stride + column, mask, 0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask, 0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp2(gate * -LOG2_E)) * up
    tl.store(out_ptr + row * SIZE + column, product.to(out_ptr.dtype.element_ty), mask)


def silu_and_mul(gate: torch.Tensor, up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """SiLU of the gate times up.

    Gate and up `(num_tokens, intermediate_size)` of one type, the last dimension contiguous, rows at any
    stride: they may be the halves of one product. The result is contiguous, and `out` where that is given.
    Raises ValueError if shapes, strides or types are not like this.
    """
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if out is None else out
    _check(gate, up, out)
    num_tokens, size = gate.shape
    if gate.numel():
        silu_and_mul_kernel[(num_tokens, triton.cdiv(size, SWIGLU_LAUNCH.tile))](
            gate,
            up,
            out,
            gate.stride(0),
            up.stride(0),
            SIZE=size,
            TILE=SWIGLU_LAUNCH.tile,
            num_warps=SWIGLU_LAUNCH.num_warps,
        )
    return out


def silu_and_mul_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The same in float64."""
    return torch.nn.functional.silu(gate.double()) * up.double()


def _check(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    require(gate.dim() == 2, f"gate must be (num_tokens, intermediate_size), not {tuple(gate.shape)}")
    for name, x in (("up", up), ("out", out)):
        require(
            x.shape == gate.shape and x.dtype == gate.dtype,
            f"{name} is {tuple(x.shape)} {x.dtype}, but gate {tuple(gate.shape)} {gate.dtype}",
        )
    for name, x in (("gate", gate), ("up", up)):
        require(x.stride(1) == 1, f"{name}: last stride {x.stride(1)}, must be 1")
    require(out.is_contiguous(), f"out is not contiguous: strides {out.stride()}")


def variants() -> Iterator[Variant]:
    """For ahead-of-time compilation: Llama-3-8B, and a size that is no whole number of tiles."""
    for size in (14336, 11008):
        strides = {"gate_stride": "i32:16", "up_stride": "i32:16"}
        yield Variant(
            f"silu_and_mul {size}",
            silu_and_mul_kernel,
            dict.fromkeys(("gate_ptr", "up_ptr", "out_ptr"), "*bf16") | strides,
            {"SIZE": size, "TILE": SWIGLU_LAUNCH.tile},
            SWIGLU_LAUNCH.num_warps,
            SWIGLU_LAUNCH.num_stages,
            max_registers=64,
            max_shared_bytes=0,
        )
