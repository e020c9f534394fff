from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from engine.core.errors import UserError
from engine.core.spec import Capacity
from sim.hardware import Efficiency, Hardware, ModelShape, kv_capacity, num_kv_blocks
from sim.models import model_shape

CONF = Path(__file__).parents[2] / "conf"
HARDWARE = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    hardware = instantiate(OmegaConf.load(CONF / "hardware" / f"{name}.yaml"))
    assert isinstance(hardware, Hardware)
    return hardware


def load_model(name: str) -> ModelShape:
    model = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    assert isinstance(model, dict)
    return model_shape(**{str(key): value for key, value in model.items()})


@pytest.mark.parametrize("name", HARDWARE)
def test_hardware_is_plain_numbers(name: str) -> None:
    hardware = load_hardware(name)
    assert type(hardware.peak_flops) is dict
    assert all(type(flops) is float for flops in hardware.peak_flops.values())
    assert hardware.link_bytes_per_s < hardware.host_link_bytes_per_s < hardware.memory_bandwidth_bytes_per_s


@pytest.mark.parametrize("name", HARDWARE)
def test_each_operator_has_its_own_ceilings(name: str) -> None:
    """Attention is the one that reaches least of the peak, and was measured so."""
    hardware = load_hardware(name)
    linear = hardware.ceilings(hardware.linear, "bfloat16")
    prefill = hardware.ceilings(hardware.prefill_attention, "bfloat16")
    peak_flops = hardware.peak_flops["bfloat16"]
    assert linear.ns_per_flop == pytest.approx(1e9 / peak_flops / hardware.linear.compute)
    assert prefill.ns_per_flop > 1.5 * linear.ns_per_flop
    assert linear.ns_per_byte > 1e9 / hardware.memory_bandwidth_bytes_per_s


def test_prefill_attention_of_an_a100_is_what_was_measured() -> None:
    """4,096 tokens from position 0, one layer of Llama-2-7B: 1.03 ms in Frontier's profile of an A800."""
    model, hardware = replace(load_model("llama2_7b"), num_layers=1), load_hardware("a100_80gb")
    num_pairs = 4096 * 4097 // 2
    ceilings = hardware.ceilings(hardware.prefill_attention, "float16")
    assert num_pairs * model.flops_per_attention_pair * ceilings.ns_per_flop == pytest.approx(
        1.03e6, rel=0.02
    )


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [  # counted from the published checkpoints
        ("llama2_7b", 6_738_415_616),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("opt_13b", 12_853_473_280),
        ("qwen3_0_6b", 596_049_920),
    ],
)
def test_number_of_parameters(name: str, num_parameters: int) -> None:
    assert load_model(name).num_parameters == pytest.approx(num_parameters, rel=1e-3)


def test_kv_of_opt_13b_is_that_of_the_vllm_paper() -> None:
    """SOSP 2023: 800 KB a token (section 3), and 12 GB hold 15.7K slots (table 1)."""
    model = load_model("opt_13b")
    assert model.kv_bytes_per_token == 800 * 1024
    assert model.block_bytes(16) == 16 * 800 * 1024
    assert 12 * 2**30 / model.kv_bytes_per_token == pytest.approx(15_700, rel=0.01)


def test_grouped_queries_shrink_the_kv_and_not_the_arithmetic() -> None:
    grouped, full = load_model("llama3_8b"), load_model("llama2_7b")
    assert grouped.kv_bytes_per_token * 4 == full.kv_bytes_per_token == 512 * 1024
    assert grouped.flops_per_attention_pair == full.flops_per_attention_pair == 4 * 32 * 4096


def test_number_of_blocks_by_hand() -> None:
    model, hardware = load_model("llama2_7b"), load_hardware("a100_80gb")
    weight_bytes = 2 * 6_738_415_616
    left_bytes = int(0.9 * 80 * 2**30) - weight_bytes - 2 * 2**30
    assert num_kv_blocks(model, hardware, 16) == left_bytes // (16 * 512 * 1024) == 7353
    assert kv_capacity(model, hardware, 16) == Capacity(7353, 7353, 16)
    swap_space = kv_capacity(model, hardware, 16, swap_space_bytes=4 * 2**30)
    assert swap_space == Capacity(7353, 4 * 2**30 // (8 * 2**20), 16)


def test_model_that_does_not_fit_is_named() -> None:
    model, hardware = load_model("llama3_70b"), load_hardware("h200_sxm")
    with pytest.raises(
        ValueError, match=r"Llama-3-70B in bfloat16 needs 131.4 GiB of weights .* H200-SXM: choose"
    ):
        num_kv_blocks(model, hardware, 16)
    assert num_kv_blocks(replace(model, dtype="float8_e4m3"), hardware, 16) > 1000


def test_bad_values_are_named() -> None:
    model, hardware = load_model("llama2_7b"), load_hardware("a100_80gb")
    with pytest.raises(
        ValueError, match="A100-80GB has no peak_flops for float8_e4m3: choose one of float32, bfloat16"
    ):
        hardware.ceilings(hardware.linear, "float8_e4m3")
    with pytest.raises(UserError, match=r"Efficiency.compute is 70: must be a number, above 0 and at most 1"):
        Efficiency(70, 0.8)
    with pytest.raises(UserError, match="layer_overhead_ns is -1"):
        replace(hardware, layer_overhead_ns=-1)
    with pytest.raises(ValueError, match="host_link_bytes_per_s is 0"):
        replace(hardware, host_link_bytes_per_s=0)
    with pytest.raises(ValueError, match=r"ModelShape.kv_dtype is 'int3': must be one of float32"):
        replace(model, kv_dtype="int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_heads \(32\) must be a multiple of num_kv_heads \(5\)"):
        replace(model, num_kv_heads=5)


def test_the_simulator_leaves_torch_alone() -> None:
    code = (
        "import sys, engine.core, engine.core.serving, sim, sim.clock, sim.backend, sim.hardware, "
        "sim.cost.base, sim.cost.roofline, sim.cost.fitted, sim.cost.fit; "
        "print([name for name in ('torch', 'transformers', 'hydra') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
