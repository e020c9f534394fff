"""The keys at the root of a configuration: one dataclass an entry point, whose annotations are checked.

They are not built: an entry point reads the configuration itself, which has passed the check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from omegaconf import DictConfig

from engine.core.backend import Backend
from engine.core.errors import UserError
from engine.core.fields import AtLeast, Count, Natural, NonNegative, Positive
from engine.core.policies.admission import Admission
from engine.core.policies.batching import Batching
from engine.core.policies.order import Order
from engine.core.policies.reservation import Reservation
from engine.core.policies.restore import Restore
from engine.core.policies.victim import Victim
from engine.core.spec import Capacity, Limits
from engine.telemetry.schema import World
from engine.telemetry.window import Measure
from experiments.verdict import Tolerance
from sim.cost.base import CostModel
from sim.hardware import Hardware
from sim.workloads.base import Workload

GROUPS_OF = {World.SIMULATED: ("hardware",), World.MEASURED: ("clock", "attention")}
"""Config groups that come with one of the two backends, and say nothing to the other."""


def check_world(config: DictConfig) -> None:
    """Refuse a group of the world that is not served: added by hand, it would change nothing.

    Raises:
        UserError: names the key.
    """
    for world, groups in GROUPS_OF.items():
        for group in groups:
            if group in config and world != config.world:
                raise UserError(f"{group} is of a {world} run, and this one is {config.world}: leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class SloMs:
    """Limits of a good request in milliseconds; None: no limit."""

    ttft: NonNegative | None
    tpot: NonNegative | None
    e2el: NonNegative | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """`experiments.run`: the config groups, and what the command itself takes."""

    order: Order
    admission: Admission
    batching: Batching
    victim: Victim
    restore: Restore
    reservation: Reservation
    limits: Limits
    pool: Capacity
    model: Any
    workload: Workload
    cost: CostModel
    backend: Backend
    driver: Any
    world: Literal["simulated", "measured"]
    seed: Natural
    journal: Literal["off", "inputs", "plans"]
    laws: bool
    plots: bool
    timeline: bool
    slo_ms: SloMs
    measure: Measure
    num_warm_up_requests: Natural
    repeats: Count
    resume: bool
    sweep_columns: Sequence[str]
    fit_lengths: Literal["scale", "clip", "none"] | None = None
    max_requests: Count | None = None
    """These two, for workloads that do not say otherwise."""
    hardware: Hardware | None = None
    """Comes with backend=simulated."""
    clock: Any = None
    attention: Any = None
    """These two come with backend=torch; they live where torch does, which a simulation does not import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """The axes that a contender names itself; the others are those of the composition."""

    order: Order | None = None
    admission: Admission | None = None
    batching: Batching | None = None
    victim: Victim | None = None
    restore: Restore | None = None
    reservation: Reservation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrating:
    """The group `calibration`."""

    num_rounds: Count
    probe: str
    under_each: Sequence[str]
    workloads: Mapping[str, Workload]
    contenders: Mapping[str, Contender]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions(RunOptions):
    """`experiments.calibrate`."""

    calibration: Calibrating


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions(CalibrateOptions):
    """`experiments.validate`."""

    contenders: Mapping[str, Contender]
    num_repeats: Count
    num_ensemble: Annotated[int, AtLeast(2)]
    loads: Sequence[Positive] | None
    tolerance: Tolerance
