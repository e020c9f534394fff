"""The composition root: the one place that turns configuration into objects."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from engine.core.errors import UserError
from engine.core.policies.base import Policies
from engine.telemetry.schema import World
from experiments.worlds import Stage

CONF = str(Path(__file__).resolve().parents[1] / "conf")


def build(node: DictConfig) -> Any:
    """The object that a config node describes, its inner nodes built first.

    Raises:
        UserError: the target does not exist, or refuses its arguments; the message names the config key.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise _explained(error) from error


def _explained(error: InstantiationException) -> Exception:
    """What lies behind Hydra's wrapper: bad input as a UserError that names the key, a bug as it was."""
    what, _, key = str(error).partition("\nfull_key: ")
    cause, key = error.__cause__, key.strip()
    if isinstance(cause, UserError):
        named = not key or str(cause).startswith(f"{key}.")
        return UserError(str(cause) if named else f"{key}: {cause}")
    if cause is None or isinstance(cause, TypeError | ImportError | AttributeError):
        target = what.split("'")[1] if "'" in what else what
        return UserError(f"{key}: cannot build {target}: {cause or what}")
    return cause if isinstance(cause, Exception) else error


def policies_from_config(config: DictConfig, **replaced: Any) -> Policies:
    """One policy an axis, from the groups of the same names; `replaced` gives some axes other nodes."""
    nodes = {field.name: replaced.get(field.name, config[field.name]) for field in fields(Policies)}
    return Policies(**{axis: build(node) for axis, node in nodes.items()})


def contenders_from_config(config: DictConfig) -> dict[str, Policies]:
    """The policies to compare, by name: the composition, but for the axes that a contender names itself."""
    return {str(name): policies_from_config(config, **axes) for name, axes in config.contenders.items()}


def stage_from_config(config: DictConfig) -> Stage:
    """The world that the group `backend` chose, its backend built."""
    return Stage(World(config.world), build(config.backend), lambda: build(config.driver))


def config_text(config: DictConfig) -> str:
    """The configuration with every interpolation resolved, as YAML."""
    return OmegaConf.to_yaml(config, resolve=True)
