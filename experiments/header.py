"""What a run is, in the words that chose it: its header line, and the title of its figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from omegaconf import DictConfig, OmegaConf

from engine.core.policies.base import Policies
from engine.core.spec import Capacity
from sim.workloads.base import Prepared

AXES = tuple(field.name for field in fields(Policies))


@dataclass(frozen=True, slots=True)
class Header:
    """World, model, hardware, pool, policies and workload of a run."""

    world: str
    machine: str
    """The model, and on what it runs."""
    pool: str
    policies: Mapping[str, str]
    """What each axis was set to: the name of the choice in its config group."""
    workload: str

    @classmethod
    def of(
        cls,
        config: DictConfig,
        choices: Mapping[str, str | None],
        capacity: Capacity,
        workload: Prepared,
    ) -> Header:
        """The header of a run of `config`; `choices` has the choice of each group (Hydra's runtime)."""
        device = choices.get("hardware") or OmegaConf.select(config, "model.device") or "cpu"
        return cls(
            world=str(config.world),
            machine=f"{choices.get('model')} on {device}",
            pool=f"{capacity.num_blocks:,} blocks of {capacity.block_size} tokens",
            policies={axis: str(choices.get(axis)) for axis in AXES},
            workload=f"{choices.get('workload')}, {_load(workload)}",
        )

    def of_contender(self, name: str, world: str, choices: Mapping[str, str | None]) -> Header:
        """The same with the axes that a contender names itself, in one of the worlds."""
        own = {axis: choices.get(f"{axis}@contenders.{name}.{axis}") for axis in AXES}
        named = {axis: choice for axis, choice in own.items() if choice is not None}
        return replace(self, world=world, policies={**self.policies, **named})

    def line(self) -> str:
        """All of it, for the first line of a run."""
        policies = ", ".join(f"{axis} {choice}" for axis, choice in self.policies.items())
        return f"{self.world}: {self.machine}, {self.pool}; {policies}; {self.workload}"

    def title(self) -> str:
        """Two lines for a figure: where it was and what was served, and the policies that decided."""
        return f"{self.world}: {self.machine}, {self.workload}\n{' · '.join(self.policies.values())}"

    def title_of(self, contenders: Iterable[str]) -> str:
        """Two lines for a figure that compares: what was served where, and who served it."""
        return f"{self.machine}, {self.pool}\n{self.workload}: {' against '.join(contenders)}"


def _load(workload: Prepared) -> str:
    """How many requests, and how fast they are offered."""
    number = len(workload.specs)
    if number < 2:
        return f"{number} request" if number else "no request"
    rate_per_s = workload.figures["offered_rate_per_s"]
    return f"{number:,} requests " + ("at once" if math.isnan(rate_per_s) else f"at {rate_per_s:.3g}/s")
