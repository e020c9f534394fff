"""How much memory is left for KV: run the largest step there can be and give the pool what it leaves."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.core.errors import UserError
from engine.core.policies.base import Limits

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Where a memory budget goes, in bytes."""

    budget_bytes: int
    weight_bytes: int
    step_bytes: int
    """Peak of the largest step above what was held before it: activations, logits, scratch."""

    @property
    def pool_bytes(self) -> int:
        """What is left for KV blocks; not below 0."""
        return max(0, self.budget_bytes - self.weight_bytes - self.step_bytes)


def largest_step(limits: Limits) -> list[tuple[int, int]]:
    """Each sequence of the largest step, as (start, number of tokens): all at the end of full windows.

    As few as possible have many tokens, so that as many as possible read a whole window for one token.
    """
    pieces: list[tuple[int, int]] = []
    num_left = limits.max_num_batched_tokens
    for num_seats in range(limits.max_num_seqs, 0, -1):
        num_tokens = min(limits.max_model_len, num_left - (num_seats - 1))
        pieces.append((limits.max_model_len - num_tokens, num_tokens))
        num_left -= num_tokens
    return pieces


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Memory that `run` needs at its peak, above what is held before it, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _return_free_memory()
    _reset_peak_rss()
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def free_memory_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, that of the machine for a CPU; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not MEMINFO.is_file():
        return None
    words = (line.split() for line in MEMINFO.read_text().splitlines())
    return next((int(line[1]) << 10 for line in words if line[0] == "MemAvailable:"), None)


def _return_free_memory() -> None:
    """Have the allocator give back what it holds but does not use, or `run` would use that and seem to need
    nothing.
    """
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if malloc_trim is not None:
        malloc_trim(0)


def _reset_peak_rss() -> None:
    """Set the process's peak resident size back to its present one (proc(5), clear_refs, value 5)."""
    CLEAR_REFS.write_text("5")


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10  # the file counts in kB
    raise UserError(f"{STATUS} has no {field}: the memory of this system cannot be profiled; give num_blocks")
