from __future__ import annotations

from hydra import compose, initialize_config_dir

from engine.core.spec import Capacity
from experiments.compose import CONF, build
from experiments.header import Header


def header(name: str, *overrides: str) -> tuple[Header, dict[str, str | None]]:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    return Header.of(config, choices, Capacity(1200, 0, 16), build(config.workload).prepare(512)), choices


def test_a_header_names_what_was_chosen() -> None:
    simulated, _ = header("run", "preset=vllm_v0", "workload=azure_like", "model=llama3_8b", "hardware=l40s")
    line = simulated.line()
    assert line.startswith("simulated: llama3_8b on l40s, 1,200 blocks of 16 tokens; order arrival, ")
    assert "restore swap_if_several" in line and line.endswith("azure_like, 160 requests at 5.39/s")
    first, second = simulated.title().split("\n")
    assert first == "simulated: llama3_8b on l40s, azure_like, 160 requests at 5.39/s"
    assert second.split(" · ")[4] == "swap_if_several"


def test_a_burst_has_no_rate_and_the_engine_runs_on_a_device() -> None:
    measured, _ = header("run", "backend=torch", "workload=burst", "workload.num_requests=1")
    assert measured.title().startswith("measured: tiny_llama on cpu, burst, 1 request\n")
    assert header("run", "workload=burst")[0].line().endswith("burst, 160 requests at once")


def test_a_contender_is_named_by_its_own_axes() -> None:
    whole, choices = header("validate")
    swap = whole.of_contender("swap", "simulated", choices)
    assert (whole.policies["restore"], swap.policies["restore"]) == ("recompute", "swap")
    assert (whole.world, swap.world) == ("measured", "simulated")
    assert whole.title_of(["swap", "recompute"]).endswith(": swap against recompute")
