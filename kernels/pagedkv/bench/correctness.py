"""The kernels' correctness matrix on this device, and a small part of it under compute-sanitizer."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from functools import partial

import torch

from pagedkv.bench.stages import Measurement

PARTS = ("attention", "memory", "elementwise")
CASES_TO_SANITIZE = 4
"""Of each part: every access is checked, which makes a kernel some hundred times slower."""
ERROR_CODE = 9
"""With which compute-sanitizer is to end where it has found an error."""


def plan(part: str) -> list[Measurement]:
    """Every case of `pagedkv.checks.<part>`; one that fails does not keep the others from running."""
    cases = importlib.import_module(f"pagedkv.checks.{part}").CASES
    return [Measurement(f"{part}: {case.name}", case.run) for case in cases]


def plan_sanitize_target() -> list[Measurement]:
    """What runs under compute-sanitizer: small cases of each part, spread over the matrix."""
    chosen = []
    for part in PARTS:
        cases = importlib.import_module(f"pagedkv.checks.{part}").CASES
        small = [case for case in cases if case.small]
        chosen += [
            Measurement(f"{part}: {case.name}", case.run)
            for case in small[:: max(1, len(small) // CASES_TO_SANITIZE)]
        ]
    return chosen


def plan_sanitize() -> list[Measurement]:
    """Memory errors and races."""
    return [
        Measurement(f"compute-sanitizer {tool}", partial(_sanitize, tool), provider="CUDA toolkit")
        for tool in ("memcheck", "racecheck")
    ]


def _sanitize(tool: str, device: torch.device) -> None:
    """Raises ImportError where the tool is missing, AssertionError with its last lines on what it finds."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        raise ImportError("compute-sanitizer is not on the PATH")
    with tempfile.TemporaryDirectory() as out:
        target = [sys.executable, "-m", "pagedkv.bench", "--stage", "sanitize-target", "--out", out, "--here"]
        command = [path, "--tool", tool, "--error-exitcode", str(ERROR_CODE), *target]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
