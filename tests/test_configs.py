"""Every YAML composes and builds what it says; the presets are those of the golden traces."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from engine.core.policies.base import Policies
from engine.telemetry.schema import World
from experiments.compose import CONF, build, contenders_from_config, policies_from_config
from tests.parity.golden import policies_v0, policies_v1

GROUPS = sorted(path.name for path in Path(CONF).iterdir() if path.is_dir())
AXES = ("order", "admission", "batching", "victim", "restore", "reservation")
PRIMARY = ("run", "calibrate", "validate")
NEED_A_FILE = ("csv", "mooncake", "prompts", "sharegpt", "sharegpt_json")
"""Workloads that are made of a file, which the user names."""
GIVEN = {
    "cost=fitted": ("cost.path=cost_model.json",),
    "model=checkpoint": ("model.path=checkpoint",),
}
"""What must be said with a choice that has no default."""


def choices(group: str) -> list[str]:
    """The YAMLs of a config group."""
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    """Composing takes a fifth of a second, so no test composes twice, and none changes what it gets."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, overrides=list(overrides))


def chosen(group: str, choice: str) -> DictConfig:
    """A run with this choice of a group, in a world that has the group."""
    override = f"{group}={choice}"
    world = ("backend=torch",) if group in ("attention", "clock") else ()
    return composed("run", *world, override, *GIVEN.get(override, ()))


def targets(node: object) -> Iterator[str]:
    """Every `_target_` below a node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def assert_targets_exist(config: DictConfig) -> None:
    """Without building anything: a backend allocates a pool, a checkpoint needs a directory."""
    found = set(targets(OmegaConf.to_container(config, resolve=True)))
    assert found
    for target in found:
        parts = target.split(".")
        for split in range(len(parts) - 1, 0, -1):
            try:
                owner = importlib.import_module(".".join(parts[:split]))
            except ModuleNotFoundError:
                continue
            for name in parts[split:]:
                owner = getattr(owner, name)
            assert callable(owner), target
            break
        else:
            pytest.fail(f"no module of {target} can be imported")


@pytest.mark.parametrize("name", PRIMARY)
def test_primary_configs_compose(name: str) -> None:
    config = composed(name)
    assert_targets_exist(config)
    assert isinstance(policies_from_config(config), Policies)


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in GROUPS if group != "calibration" for choice in choices(group)],
)
def test_every_choice_composes(group: str, choice: str) -> None:
    config = chosen(group, choice)
    assert_targets_exist(config)
    assert isinstance(policies_from_config(config), Policies)
    assert config.world in set(World)


@pytest.mark.parametrize(("axis", "choice"), [(axis, choice) for axis in AXES for choice in choices(axis)])
def test_every_policy_is_a_value(axis: str, choice: str) -> None:
    node = composed("run", f"{axis}={choice}")[axis]
    policy = build(node)
    assert policy == build(node)
    hash(policy)  # no lists inside


@pytest.mark.parametrize("group", ["hardware", "model", "limits", "pool"])
def test_values_are_built(group: str) -> None:
    for choice in choices(group):
        if choice == "checkpoint":
            continue  # needs a directory
        # The 70 B model fits the largest accelerator only, and in eight bits.
        beside = ("hardware=h200_sxm", "model.dtype=float8_e4m3") if choice == "llama3_70b" else ()
        config = composed("run", f"{group}={choice}", *beside)
        assert build(config[group]) is not None
        assert build(config.cost).parts_ns is not None


@pytest.mark.parametrize("choice", [name for name in choices("workload") if name not in NEED_A_FILE])
def test_generated_workloads_are_built(choice: str) -> None:
    specs = build(composed("run", f"workload={choice}", "workload.num_requests=20").workload).requests(512)
    assert len(specs) == 20


def test_calibration_workloads_are_built() -> None:
    config = composed("calibrate")
    for name, node in config.calibration.workloads.items():
        assert build(node).requests(config.limits.max_model_len), name
        assert node.seed != config.workload.seed, "what is fitted is not what is predicted"


def test_presets_are_those_of_the_golden_traces() -> None:
    v0 = {"preemption_mode": None, "watermark": 0.01}
    v1 = {"enable_chunked_prefill": True}
    wanted = {
        "vllm_v0": policies_v0({**v0, "chunked_prefill": False}),
        "vllm_v0_chunked": policies_v0({**v0, "chunked_prefill": True}),
        "vllm_v1": policies_v1({**v1, "policy": "fcfs"}),
        "vllm_v1_priority": policies_v1({**v1, "policy": "priority"}),
    }
    for preset, policies in wanted.items():
        assert policies_from_config(composed("run", f"preset={preset}")) == policies, preset


def test_a_choice_on_the_command_line_wins_over_a_preset() -> None:
    policies = policies_from_config(composed("run", "preset=vllm_v0", "restore=swap"))
    wanted = policies_v0({"preemption_mode": "swap", "watermark": 0.01, "chunked_prefill": False})
    assert policies == wanted


def test_presets_touch_no_limits() -> None:
    for preset in choices("preset"):
        for limits in choices("limits"):
            alone = composed("run", f"limits={limits}").limits
            assert composed("run", f"preset={preset}", f"limits={limits}").limits == alone, (preset, limits)


def test_presets_choose_axes_and_nothing_else() -> None:
    plain = OmegaConf.to_container(composed("run"))
    for preset in choices("preset"):
        config = OmegaConf.to_container(composed("run", f"preset={preset}"))
        assert isinstance(config, dict)
        assert isinstance(plain, dict)
        changed = {key for key in plain if config[key] != plain[key]}
        assert changed <= {*AXES, "driver"} if preset.endswith("async") else changed <= set(AXES), preset


@pytest.mark.parametrize("axis", AXES)
def test_no_preset_overrides_an_axis_that_was_chosen(axis: str) -> None:
    for preset in choices("preset"):
        for choice in choices(axis):
            wanted = composed("run", f"{axis}={choice}")[axis]
            for overrides in (
                (f"preset={preset}", f"{axis}={choice}"),
                (f"{axis}={choice}", f"preset={preset}"),
            ):
                assert composed("run", *overrides)[axis] == wanted, overrides


def made(config: DictConfig) -> dict[str, Policies]:
    """The policies of each contender."""
    return {name: make() for name, make in contenders_from_config(config).items()}


def test_both_contenders_differ_in_restore_alone() -> None:
    contenders = made(composed("validate"))
    swap, recompute = contenders["swap"], contenders["recompute"]
    assert [axis for axis in AXES if getattr(swap, axis) != getattr(recompute, axis)] == ["restore"]


def test_a_contender_is_added_on_the_command_line() -> None:
    config = composed("validate", "+victim@contenders.lowest.victim=lowest_priority")
    contenders = made(config)
    assert list(contenders) == ["swap", "recompute", "lowest"]
    assert contenders["lowest"].victim != contenders["swap"].victim
