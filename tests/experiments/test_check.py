"""Every number in conf/ is checked for type and range before anything is built; an error names its key."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from omegaconf import DictConfig, OmegaConf

from engine.core.errors import UserError
from engine.core.fields import Above, AtLeast, AtMost, Below, Bound, is_union
from experiments.check import check, parts
from experiments.options import CalibrateOptions, RunOptions, ValidateOptions
from tests.test_configs import GROUPS, choices, chosen, composed

OPTIONS = {"run": RunOptions, "calibrate": CalibrateOptions, "validate": ValidateOptions}
MODELS_OWN = "model.config."
"""Below it are the keys of transformers, which sim.models and engine.runtime.model look at."""
NODES = [
    (group, choice)
    for group in GROUPS
    if group not in ("preset", "calibration")  # the one has no keys of its own, the other is at a root
    for choice in choices(group)
]


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    return list(get_args(annotation)) if is_union(annotation) else [annotation]


def bounds_of(annotation: Any) -> list[Bound]:
    """The ends of the range of a number."""
    found = [a for a in alternatives(annotation) if get_origin(a) is Annotated]
    return [marker for a in found for marker in get_args(a)[1:] if isinstance(marker, Bound)]


def is_number(annotation: Any) -> bool:
    """An int or a float, or null."""
    kinds = [get_args(a)[0] if get_origin(a) is Annotated else a for a in alternatives(annotation)]
    return any(kind in (int, float) for kind in kinds)


def beyond(bound: Bound) -> float:
    """A value that is just out of range."""
    steps = {AtLeast: -1, Above: 0, AtMost: 1, Below: 0}
    return bound.number + steps[type(bound)]


def spoilt(config: DictConfig, key: str) -> Iterator[tuple[Any, Any]]:
    """(bad value, configuration with it) for a key: of a wrong type, then out of its range."""
    annotation = {part.key: part.annotation for part in all_parts(config)}[key]
    for value in ["fast", True, float("nan"), *map(beyond, bounds_of(annotation))]:
        bad = copy.deepcopy(config)
        OmegaConf.update(bad, key, value, force_add=True)
        yield value, bad


def all_parts(config: DictConfig, options: Any = Any) -> list[Any]:
    return list(parts(OmegaConf.to_container(config, resolve=True), "", options))


def numeric_keys(config: DictConfig) -> Iterator[str]:
    """The keys whose value or annotation is a number."""
    for part in all_parts(config):
        has_number = isinstance(part.value, int | float) and not isinstance(part.value, bool)
        if part.key.startswith(MODELS_OWN):
            continue
        assert not has_number or is_number(part.annotation), f"{part.key} has no annotation that checks it"
        if is_number(part.annotation):
            yield part.key


@pytest.mark.parametrize(("group", "choice"), NODES)
def test_every_number_of_every_choice(group: str, choice: str) -> None:
    config = OmegaConf.create({group: resolved(group, choice)})
    check(config)
    for key in numeric_keys(config):
        for value, bad in spoilt(config, key):
            with pytest.raises(UserError) as caught:
                check(bad)
            assert str(caught.value).startswith(f"{key} is {value!r}: must be "), (key, value)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_number_at_the_root(name: str) -> None:
    """Those that no target builds: seed, slo_ms, num_repeats and so on."""
    config, options = composed(name), OPTIONS[name]
    check(config, options)
    own = [part for part in all_parts(config, options) if is_number(part.annotation)]
    own = [part for part in own if not any(part.key.startswith(f"{group}.") for group in (*GROUPS, "driver"))]
    assert {part.key for part in own} >= {"seed", "slo_ms.tpot", "num_warm_up_requests"}
    for part in own:
        for value in ["fast", *map(beyond, bounds_of(part.annotation))]:
            bad = copy.deepcopy(config)
            OmegaConf.update(bad, part.key, value)
            with pytest.raises(UserError) as caught:
                check(bad, options)
            assert str(caught.value).startswith(f"{part.key} is {value!r}: must be "), part.key


@pytest.mark.parametrize(
    ("key", "value"),
    [("hardware.memory_bytes", 0), ("pool.utilization", 90), ("limits.max_model_len", 2.5), ("seed", -1)],
)
def test_a_value_is_blamed_where_it_was_written(key: str, value: float) -> None:
    """Not where an interpolation uses it, such as pool.hardware.memory_bytes or workload.seed."""
    bad = copy.deepcopy(composed("run"))
    OmegaConf.update(bad, key, value)
    with pytest.raises(UserError, match=f"^{key} is {value}: must be "):
        check(bad, RunOptions)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("foo", "choose order, admission"),
        ("tensor_parallel", "choose order, admission"),
        ("limits.foo", "choose max_num_seqs, max_num_batched_tokens, max_model_len"),
        ("hardware.foo", "choose name, peak_flops"),
        ("slo_ms.foo", "choose ttft, tpot, e2el"),
        ("workload.arrivals.foo", "choose burstiness"),
        ("victim.foo", "LastAdmitted takes no keys"),
        ("calibration.foo", "choose num_rounds, probe, under_each, workloads, contenders"),
        ("contenders.swap.foo", "choose order, admission"),
    ],
)
def test_unknown_keys_list_the_known_ones(key: str, known: str) -> None:
    name = "validate" if key.startswith(("calibration", "contenders")) else "run"
    bad = copy.deepcopy(composed(name))
    OmegaConf.update(bad, key, 1, force_add=True)
    with pytest.raises(UserError, match=f"^{key} is not known: {known}"):
        check(bad, OPTIONS[name])


def test_every_class_of_conf_has_an_annotation_for_each_key() -> None:
    """A key whose annotation cannot be resolved would not be checked."""
    for group, choice in NODES:
        for part in all_parts(OmegaConf.create({group: resolved(group, choice)})):
            free = part.key.startswith(("model.config.", "cost.model.")) or part.key == "driver.clock"
            assert free or part.annotation is not Any, part.key


def resolved(group: str, choice: str) -> Any:
    """A node of conf/ without interpolations."""
    return OmegaConf.to_container(chosen(group, choice)[group], resolve=True)
