"""The command that simulates the engine that was calibrated."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import cast

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from engine.core.policies.base import Policies
from sim.cost.setup import Setup

CHOSEN = ("model", "preset", "workload")
"""Groups of which the twin makes the same choice."""
SHARED = (*CHOSEN, "seed", *(field.name for field in fields(Policies)))
"""Groups and keys that mean the same in both worlds; the pool and the limits are told in numbers."""

ENGINES_OWN = ("model.device", "model.prepack", "model.seed")
"""Keys that backend=torch adds to the model."""


def twin_command(path: Path, config: DictConfig, setup: Setup) -> str:
    """The command line of a simulation with the cost model at `path`: same model, pool, limits, policies,
    requests.

    `config` is that of the calibration, within whose Hydra job this is called. What the two worlds default to
    differently is said by its key.
    """
    job = HydraConfig.get()
    words = [f"{group}={job.runtime.choices[group]}" for group in CHOSEN]
    words += [word for word in job.overrides.task if _is_shared(word) and word not in words]
    words += ["pool=blocks", *_numbers("limits", asdict(setup.limits)), *_numbers("pool", asdict(setup.pool))]
    words += ["cost=fitted", _said("cost.path", str(path))]
    words += _differences(_plain(compose("run", words)), _plain(config))
    return shlex.join(["python", "-m", "experiments.run", *words])


def _is_shared(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+")
    return key.partition(".")[0] in SHARED and key not in ENGINES_OWN


def _plain(config: DictConfig) -> Mapping[str, object]:
    return cast(Mapping[str, object], OmegaConf.to_container(config, resolve=True))


def _numbers(group: str, values: Mapping[str, object]) -> list[str]:
    return [_said(f"{group}.{name}", value) for name, value in values.items()]


def _differences(twin: Mapping[str, object], measured: Mapping[str, object]) -> Iterator[str]:
    """What to say so that the twin has the values of the measured configuration, key by key."""
    for group in SHARED:
        wanted = dict(_leaves(group, measured.get(group)))
        for key, value in _leaves(group, twin.get(group)):
            if key in wanted and wanted[key] != value and not key.endswith("._target_"):
                yield _said(key, wanted[key])


def _leaves(key: str, node: object) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(f"{key}.{name}", value)
    else:
        yield key, node


def _said(key: str, value: object) -> str:
    """An override in Hydra's grammar, of which JSON is a part; plain words need no quotes."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) is not None
    return f"{key}={value if is_plain else json.dumps(value)}"
