"""What the cases of all kernels share: tolerances, poisoned outputs, random tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

GUARD = 64
"""Elements of poison on either side of an output."""


@dataclass(frozen=True, slots=True)
class Case:
    """One check of one kernel."""

    name: str
    run: Callable[[torch.device], None]
    """Runs the kernel on the device and raises AssertionError where it differs from its reference."""
    small: bool = True
    """Fit for Triton's interpreter, which takes about 10 ms a program."""


def tolerance(dtype: torch.dtype, num_roundings: float = 4.0) -> float:
    """What a result may be off, relative to its own size and to 1: so many roundings of its type.

    A kernel that accumulates in float32 rounds its inputs, its weights (before the second product) and its
    result to `dtype`; each costs half a unit in the last place at most, eps / 2, and they add up.
    """
    return num_roundings * torch.finfo(dtype).eps / 2


@dataclass(frozen=True, slots=True)
class Poisoned:
    """An output tensor inside a buffer full of NaN."""

    tensor: torch.Tensor
    buffer: torch.Tensor

    def check(self, expected: torch.Tensor, tolerance: float) -> None:
        """Every element is written, as expected; nothing outside is.

        `expected` is float64; a difference may be `tolerance` times max(1, |expected|).
        """
        outside = torch.cat([self.buffer[:GUARD], self.buffer[-GUARD:]]).float()
        assert outside.isnan().all(), "the kernel wrote outside its output"
        assert not self.tensor.float().isnan().any(), (
            "the kernel left a part of its output unwritten (or NaN)"
        )
        torch.testing.assert_close(
            self.tensor.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance
        )


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Poisoned:
    """An output of this shape, every element NaN, with guards on either side."""
    num_elements = math.prod(shape)
    buffer = torch.full((num_elements + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
    return Poisoned(buffer[GUARD : GUARD + num_elements].view(shape), buffer)


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    """Standard normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)
