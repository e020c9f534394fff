"""How kernels are launched: one small table a kernel, each row with what chose it.

A choice is plain Python on the shapes of a call, never a decorator that measures: the same call is launched
the same way on every run, in the interpreter, and in ahead-of-time compilation.
"""

from __future__ import annotations

from typing import NamedTuple


class Launch(NamedTuple):
    """Configuration of one kernel launch."""

    tile: int
    """Elements, tokens or slots that a program takes at once; which, the kernel says."""
    num_warps: int
    num_stages: int
    why: str
    """The measurement or the compiler report that chose this row."""
