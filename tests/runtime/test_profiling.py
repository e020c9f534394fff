"""The start-up profile: what it measures, what it leaves to the pool, and that no step takes more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.core.errors import UserError
from engine.core.spec import Limits
from engine.runtime import memory
from engine.runtime.backend import TorchBackend
from engine.runtime.memory import DeviceMemory, device_memory, peak_bytes
from engine.runtime.profiling import budget_bytes, largest_steps, profiled_pieces
from tests.runtime.support import LIMITS, load

ROOT = Path(__file__).parents[2]
BLOCK_BYTES = 3 * 2 * 4 * 2 * 8 * 4
STEP_BYTES = 5_000_000
CPU = torch.device("cpu")


@pytest.fixture
def known_peak(monkeypatch):
    monkeypatch.setattr("engine.runtime.backend.peak_bytes", lambda run, device: (run(), STEP_BYTES)[1])


@pytest.mark.parametrize(("host", "expected"), [(0, 37), (7, 30), (None, 18)])
def test_the_pools_get_what_weights_and_the_largest_step_leave(known_peak, host, expected):
    """Both of them, on a CPU: they lie in the same memory."""
    model = load("llama")
    budget = model.weight_bytes + STEP_BYTES + 37 * BLOCK_BYTES + 99
    backend = TorchBackend(model, LIMITS, block_size=4, memory_bytes=budget, num_host_blocks=host)
    assert backend.capacity.num_blocks == expected
    assert backend.capacity.num_host_blocks == (expected if host is None else host)
    assert backend.profile.pool_bytes == 37 * BLOCK_BYTES + 99


def test_a_share_of_the_device_counts_what_others_hold(known_peak, monkeypatch):
    model = load("llama")
    held = model.weight_bytes + 3_000_000
    pools = 5 * BLOCK_BYTES
    total = 10 * (held + STEP_BYTES + pools)
    told = DeviceMemory(total - held, total)
    monkeypatch.setattr("engine.runtime.backend.device_memory", lambda device: told)
    backend = TorchBackend(model, LIMITS, block_size=4, utilization=0.1)
    assert backend.capacity.num_blocks == 5
    assert budget_bytes(told, 0.1, model.weight_bytes) == held + STEP_BYTES + pools - 3_000_000


def test_a_real_profile_leaves_less_than_the_budget():
    model = load("llama")
    backend = TorchBackend(model, LIMITS, block_size=4, memory_bytes=200 << 20)
    assert 0 < backend.profile.step_bytes < 150 << 20
    held = backend.pools.device.nbytes + backend.profile.step_bytes + model.weight_bytes
    assert 0 <= (200 << 20) - held < backend.layout.block_bytes(torch.float32)


def test_peak_memory_is_that_of_the_call():
    def use():
        torch.ones(50 << 18)  # 50 MiB, freed at once

    assert 45 << 20 < peak_bytes(use, CPU) < 80 << 20


def test_the_memory_of_a_machine_is_that_of_its_kernel_and_its_cgroup(tmp_path, monkeypatch):
    free, total = device_memory(CPU)
    assert 0 < free < total
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  600 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert device_memory(CPU) == (600 << 10, 1000 << 10)
    (tmp_path / "memory.max").write_text("max\n")
    assert device_memory(CPU) == (600 << 10, 1000 << 10)
    (tmp_path / "memory.max").write_text(f"{500 << 10}\n")
    (tmp_path / "memory.current").write_text(f"{300 << 10}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {100 << 10}\n")
    assert device_memory(CPU) == (300 << 10, 500 << 10)


def test_the_largest_steps_are_as_large_as_the_limits():
    limits = LIMITS.__class__(max_num_seqs=4, max_num_batched_tokens=300, max_model_len=128)
    fresh, behind_a_token, behind_a_block, decodes = largest_steps(limits, 16)
    assert fresh == [(0, 127), (0, 127), (82, 45), (126, 1)]
    assert behind_a_token == [(1, 126), (1, 126), (80, 47), (126, 1)]
    assert behind_a_block == [(16, 111), (16, 111), (50, 77), (126, 1)]
    assert decodes == [(126, 1), (125, 1), (124, 1), (123, 1)]
    for step in (fresh, behind_a_token, behind_a_block):
        assert sum(num_tokens for _, num_tokens in step) == 300
    assert largest_steps(Limits(3, 1000, 128), 1)[0] == [(0, 127)] * 3
    assert largest_steps(Limits(2, 8, 1), 16) == [[(0, 1), (0, 1)], [(0, 1), (0, 1)]]


def test_what_is_only_read_lies_in_the_block_of_nan():
    pieces = profiled_pieces([(5, 4), (0, 3), (8, 1)], 4)
    assert [(piece.start, piece.block_ids) for piece in pieces] == [(8, [1, 1, 0]), (0, [0]), (5, [1, 0, 0])]


ONLY_FROM_THE_START = """
import sys
from engine.runtime import backend, profiling
largest_steps = backend.largest_steps
backend.largest_steps = lambda limits, block_size: largest_steps(limits, block_size)[:1]
from experiments import peak_memory
peak_memory.main()
"""


def driven(*command):
    """An engine of its own process is driven to its limits."""
    arguments = ["--seqs=2", "--tokens=3072", "--window=1536", "--vocab=2000", "--random=1"]
    arguments += ["--budget-mib=400", "--slack-mib=4"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_no_step_takes_more_than_the_profile():
    finished = driven("-m", "experiments.peak_memory")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "profiled at start-up" in finished.stdout


def test_a_profile_of_prompts_from_the_start_alone_is_seen_to_be_too_small():
    finished = driven("-c", ONLY_FROM_THE_START)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "MiB off the profile" in finished.stdout


@pytest.mark.parametrize("num_threads", [0, -1])
def test_no_threads(num_threads):
    with pytest.raises(UserError, match=f"num_threads is {num_threads}: give 1 or more"):
        TorchBackend(load("llama"), LIMITS, num_blocks=5, num_threads=num_threads)
