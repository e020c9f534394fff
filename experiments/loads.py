"""The offered load of a validation, as a multiple of what this machine's engine can serve."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

from omegaconf import DictConfig

from engine.core.errors import UserError
from engine.core.spec import Limits, RequestSpec
from experiments.compose import build
from experiments.worlds import MakePolicies, Run, Stage
from sim.workloads.base import Prepared

RATE = "workload.rate_per_s"


def at_rate(config: DictConfig, rate_per_s: float | None) -> DictConfig:
    """The configuration with requests at this rate; None: as it is."""
    changed = copy.deepcopy(config)
    if rate_per_s is not None:
        changed.workload.rate_per_s = rate_per_s
    return changed


def check_loads(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse loads that cannot be set, before anything is measured.

    Raises:
        UserError: the workload takes no rate, or the command line sets one that the loads would replace.
    """
    if config.loads is None:
        return
    remedy = "give loads=null to serve the workload as it is"
    if not config.loads:
        raise UserError(f"loads is empty: give at least one, or {remedy}")
    if any(text.lstrip("+").startswith(f"{RATE}=") for text in overrides):
        raise UserError(f"{RATE} would have no effect, since loads={list(config.loads)} sets it: {remedy}")
    if "rate_per_s" not in config.workload:
        raise UserError(f"loads={list(config.loads)} sets {RATE}, which this workload lacks: {remedy}")
    try:
        build(at_rate(config, 1.0).workload).prepare(config.limits.max_model_len)
    except UserError as error:
        raise UserError(f"loads={list(config.loads)} sets {RATE}, and {error}: {remedy}") from error


def capacity_per_s(stage: Stage, run: Run) -> float:
    """Requests a second that a simulated engine serves while others wait.

    All are there at once; what counts is the time until the last one is admitted. After that the batch
    drains, which no steady load does: with it a burst of 240 seemed a fifth slower than it is.
    """
    specs = [replace(spec, arrival_ns=0) for spec in run.specs]
    requests = stage.play(replace(run, specs=specs)).log.requests
    admitted_ns = requests["first_scheduled_ns"].max()
    num_served = int((requests["end_ns"] <= admitted_ns).sum())
    if not num_served:  # so few requests that nobody waits
        num_served, admitted_ns = len(requests), requests["end_ns"].max()
    return num_served * 1e9 / int(admitted_ns)


def slowest_per_s(
    twin: Stage, specs: Sequence[RequestSpec], limits: Limits, contenders: Iterable[MakePolicies]
) -> float:
    """Requests a second that every contender can serve: what the slowest of them does."""
    return min(capacity_per_s(twin, Run(specs, limits, make_policies)) for make_policies in contenders)


def workloads_at_loads(
    config: DictConfig, twin: Stage, limits: Limits, contenders: Iterable[MakePolicies]
) -> dict[float | None, tuple[DictConfig, Prepared]]:
    """For each load the configuration that serves it, and its requests; one entry, None, without loads."""
    as_it_is: Prepared = build(config.workload).prepare(limits.max_model_len)
    if config.loads is None:
        return {None: (config, as_it_is)}
    capacity = slowest_per_s(twin, as_it_is.specs, limits, contenders)
    configs = {float(load): at_rate(config, round(load * capacity, 3)) for load in config.loads}
    return {
        load: (node, build(node.workload).prepare(limits.max_model_len)) for load, node in configs.items()
    }
