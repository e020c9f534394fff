"""The memory of a device as the system tells it, and how much of it a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from engine.core.errors import UserError

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class DeviceMemory(NamedTuple):
    """In bytes; what other processes hold is not free."""

    free_bytes: int
    total_bytes: int

    @property
    def used_bytes(self) -> int:
        """Held by whomever."""
        return self.total_bytes - self.free_bytes


def device_memory(device: torch.device) -> DeviceMemory:
    """Of a GPU as its driver tells, of a CPU as the kernel does, within the limit of the cgroup."""
    if device.type == "cuda":
        return DeviceMemory(*torch.cuda.mem_get_info(device))
    if not MEMINFO.exists():
        total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return DeviceMemory(total_bytes, total_bytes)
    fields = _numbers(MEMINFO, " kB")
    free_bytes, total_bytes = fields["MemAvailable:"] << 10, fields["MemTotal:"] << 10
    limit = CGROUP / "memory.max"  # the file of version 2; the limits of version 1 are not read
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        total_bytes = min(total_bytes, int(text))
        # Pages of files are given back when somebody wants them.
        held_bytes = int((CGROUP / "memory.current").read_text())
        held_bytes -= _numbers(CGROUP / "memory.stat")["inactive_file"]
        free_bytes = max(0, min(free_bytes, total_bytes - held_bytes))
    return DeviceMemory(free_bytes, total_bytes)


def _numbers(path: Path, unit: str = "") -> dict[str, int]:
    """The lines of a file that are a name and a number."""
    rows = [line.removesuffix(unit).split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Memory that `run` needs at its peak, above what is held before it, in bytes.

    On a GPU as the driver sees it: what the allocator has reserved, fragments included, and what lies outside
    of it, such as workspaces, loaded kernels and graphs. Other processes must leave the GPU alone meanwhile.
    """
    return _cuda_peak_bytes(run, device) if device.type == "cuda" else _rss_peak_bytes(run)


def _cuda_peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = device_memory(device).used_bytes
    run()
    torch.cuda.synchronize(device)
    # The allocator may have given back what it had reserved at its peak; what others took, stays.
    given_back = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
    peak = device_memory(device).used_bytes + given_back
    torch.cuda.empty_cache()
    return max(0, peak - before)


def _rss_peak_bytes(run: Callable[[], None]) -> int:
    gc.collect()
    _return_free_memory()
    # Set the peak of the resident size back to its present value (proc(5), clear_refs, value 5).
    CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    run()
    peak = _status_bytes("VmHWM")
    _return_free_memory()
    return max(0, peak - before)


def _return_free_memory() -> None:
    """Have the allocator give back what it holds but does not use, or `run` would use that and seem to need
    nothing.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if malloc_trim is not None:
        malloc_trim(0)


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10  # the file counts in kB
    raise UserError(f"{STATUS} has no {field}: the memory of this system cannot be profiled; give num_blocks")
