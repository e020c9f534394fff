"""Law 9 across processes: no set is iterated, no hash decides, so the hash seed changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from engine.core.journal import JournaledScheduler
from experiments.soak import run_episode
from experiments.trial import every_combination

combinations = every_combination()
for index in range(0, len(combinations), 32):
    make = lambda capacity, limits, policies: JournaledScheduler(capacity, limits, policies, sys.stdout)
    counts = run_episode(11, index, combinations[index], make)
    print(sorted(counts.items()))
"""


def journals(hash_seed: str) -> bytes:
    """What a fresh interpreter writes."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, check=True
    ).stdout


def test_two_processes_write_the_same_journal() -> None:
    first, second = journals("0"), journals("4242")
    assert len(first) > 100_000
    assert first == second
