"""Residual add and RMSNorm in one pass over the row (RMSNorm: arXiv:1910.07467, equation 4).

    s = x + residual,    y = s / sqrt(mean(s^2) + eps) * (offset + weight)

s is rounded to the type of x, as the eager sum is, and the norm is taken of what was rounded; squares are
summed in float32. Where roundings fall is the model's: Llama's LlamaRMSNorm rounds the normalised row to the
type of x and multiplies after that (offset 0); Gemma's GemmaRMSNorm has weight 1 + w and rounds once, after
the product (offset 1).

Counted in transformers' modeling_llama.py, Llama-3-8B (hidden 4096) in bf16: LlamaRMSNorm is 8 launches (to
float32, square, mean, plus eps, rsqrt, product, to bf16, product), and the sum before it one more. An
element is read and written, in bytes, 2 + 4, 4 + 4, 4, 4 + 4, 4 + 2, 2 + 2, and 4 + 2 by the sum: 42 bytes.
Here it is one launch and 4 + 4 bytes. A step has 65 norms, 64 of them after a sum: 584 launches and 0.7 GB at
batch 64 against 65 launches and 0.14 GB. At 4.3 TB/s (kernels.md) the bytes are 0.16 ms against 0.03; at 2 us
a launch, the launches are 1.2 ms against 0.13, beside 3.7 ms for reading 16 GB of weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pagedkv.aot import Variant
from pagedkv.contracts import require
from pagedkv.launch import norm_launch


@triton.jit
def add_rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    sum_ptr,
    eps,
    OFFSET: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program takes a row; without a residual, the sum is x itself and is not written."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    column = tl.arange(0, TILE)
    mask = column < SIZE
    x = tl.load(x_ptr + row + column, mask, 0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row + column, mask, 0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + row + column, x, mask)
    wide = x.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    weight = tl.load(weight_ptr + column, mask, 0.0).to(tl.float32)
    if OFFSET == 0:
        normed = normed.to(x.dtype).to(tl.float32)
    tl.store(out_ptr + row + column, (normed * (OFFSET + weight)).to(x.dtype), mask)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of x + residual, times (offset + weight), and the sum; without a residual, norm of x, and x.

    x and residual `(..., hidden_size)`, weight `(hidden_size,)`, all contiguous and of one type; hidden_size
    at most 16384. Results have the shape of x; `out` may be x, `residual_out` may be x or the residual.
    Raises ValueError if shapes or types are not like this.
    """
    out = torch.empty_like(x) if out is None else out
    if residual is not None and residual_out is None:
        residual_out = torch.empty_like(x)
    _check(x, residual, weight, out, residual_out)
    size = x.shape[-1]
    if x.numel():
        launch = norm_launch(size)
        add_rms_norm_kernel[(x.numel() // size,)](
            x,
            residual,
            weight,
            out,
            residual_out,
            eps,
            OFFSET=offset,
            SIZE=size,
            TILE=launch.tile,
            num_warps=launch.num_warps,
        )
    return out, x if residual_out is None else residual_out


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64; only the sum is rounded to the type of x before the norm."""
    total = x if residual is None else (x.double() + residual.double()).to(x.dtype)
    wide = total.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed * (offset + weight.double()), wide


def _check(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    residual_out: torch.Tensor | None,
) -> None:
    size = x.shape[-1]
    require(0 < size <= 16384, f"hidden_size {size} is not between 1 and 16384")
    require(x.is_contiguous(), f"x is not contiguous: strides {x.stride()}")
    require(
        weight.shape == (size,) and weight.dtype == x.dtype and weight.is_contiguous(),
        f"weight must be ({size},) {x.dtype}, not {tuple(weight.shape)} {weight.dtype}",
    )
    require((residual is None) == (residual_out is None), "residual_out without a residual")
    for name, y in (("residual", residual), ("out", out), ("residual_out", residual_out)):
        require(
            y is None or (y.shape == x.shape and y.dtype == x.dtype and y.is_contiguous()),
            f"{name} must be contiguous and like x, {tuple(x.shape)} {x.dtype}",
        )


def variants() -> Iterator[Variant]:
    """For ahead-of-time compilation: hidden sizes of Llama 1B, 8B, 405B, and one that is no power of two."""
    for size in (2048, 4096, 16384, 5120):
        launch = norm_launch(size)
        names = ("x_ptr", "residual_ptr", "weight_ptr", "out_ptr", "sum_ptr")
        yield Variant(
            f"add_rms_norm {size}",
            add_rms_norm_kernel,
            dict.fromkeys(names, "*bf16") | {"eps": "fp32"},
            {"OFFSET": 0.0, "SIZE": size, "TILE": launch.tile},
            launch.num_warps,
            launch.num_stages,
            max_registers=64,
            max_shared_bytes=1024,
        )
