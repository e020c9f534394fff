"""The composition root: the one place that turns configuration into objects."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from engine.core.errors import UserError
from engine.core.fields import annotations_of, check_value
from engine.core.policies.base import Policies
from engine.telemetry.schema import World
from experiments.check import check
from experiments.worlds import MakePolicies, Stage

CONF = str(Path(__file__).resolve().parents[1] / "conf")
UNMEASURED = "sim.cost.base.unmeasured"
"""What stands for the costs of an engine that nobody has measured (conf/cost/unmeasured.yaml)."""


def build(node: DictConfig) -> Any:
    """The object that a config node describes, its inner nodes built first.

    Raises:
        UserError: the node does not fit its target, or the target refuses it; the message names the key.
    """
    check(node, key=str(node._get_full_key(None)))
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        key, cause = str(error).partition("\nfull_key: ")[2].strip(), error.__cause__
        if isinstance(cause, UserError):
            leaf = key.rpartition(".")[2]
            named = not key or str(cause).startswith((f"{leaf}.", f"{leaf}:"))
            raise UserError(str(cause) if named else f"{key}: {cause}") from cause
        raise (cause or error) from None  # a bug shows where, without Hydra's wrapper


def policies_from_config(config: DictConfig, **replaced: Any) -> Policies:
    """One policy an axis, from the groups of the same names.

    `replaced` gives some axes other nodes, or a class or function that makes the policy.

    Raises:
        UserError: they cannot work under the limits of the configuration.
    """
    nodes = {field.name: replaced.get(field.name, config[field.name]) for field in fields(Policies)}
    policies = {axis: node() if callable(node) else build(node) for axis, node in nodes.items()}
    for axis, protocol in annotations_of(Policies).items():
        check_value(axis, policies[axis], protocol)
    built = Policies(**policies)
    built.check(build(config.limits))  # every scheduler does, but only when a model has been loaded
    return built


def policies_maker(config: DictConfig, **replaced: Any) -> MakePolicies:
    """What builds these policies anew for each run. Raises UserError now if it cannot build them."""
    policies_from_config(config, **replaced)
    return partial(policies_from_config, config, **replaced)


def contenders_from_config(
    config: DictConfig, contenders: DictConfig | None = None
) -> dict[str, MakePolicies]:
    """What builds the policies of each contender, by name.

    They are the composition, but for the axes that a contender names itself.
    `contenders` is a node of `config`; None for those to compare.
    """
    named = config.contenders if contenders is None else contenders
    return {str(name): policies_maker(config, **axes) for name, axes in named.items()}


def check_no_choice_is_lost(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an axis that was chosen on the command line if every contender names its own.

    Raises:
        UserError: names the override and says how to change the contenders.
    """
    for field in fields(Policies):
        chosen = next((text for text in overrides if text.startswith(f"{field.name}=")), None)
        if chosen is not None and all(field.name in axes for axes in config.contenders.values()):
            example = f"{field.name}@contenders.{next(iter(config.contenders))}.{chosen}"
            raise UserError(
                f"{chosen} would have no effect: contenders {', '.join(map(str, config.contenders))} name "
                f"their own {field.name}. Change one, such as {example}"
            )


def with_fitted_costs(config: DictConfig, path: Path) -> DictConfig:
    """The configuration with the cost model at `path`, as cost=fitted cost.path=... makes it."""
    fitted = OmegaConf.load(Path(CONF) / "cost" / "fitted.yaml")
    changed = copy.deepcopy(config)
    with open_dict(changed):
        changed.cost = OmegaConf.merge(fitted, {"path": str(path)})
    return changed


def with_first_costs(config: DictConfig, path: Path) -> DictConfig:
    """The same for policies that weigh costs on an engine, unless the configuration names some costs."""
    return with_fitted_costs(config, path) if config.cost.get("_target_") == UNMEASURED else config


def served_model(config: DictConfig) -> Mapping[str, Any]:
    """The model as a cost model of it is told: the arguments of sim.cost.setup.described."""
    node = with_fitted_costs(config, Path("cost_model.json")).cost.model
    return cast(Mapping[str, Any], OmegaConf.to_container(node, resolve=True))


def stage_from_config(config: DictConfig) -> Stage:
    """The world that the group `backend` chose, its backend built."""
    return Stage(World(config.world), build(config.backend), lambda: build(config.driver))


def config_text(config: DictConfig) -> str:
    """The configuration with every interpolation resolved, as YAML."""
    return OmegaConf.to_yaml(config, resolve=True)
