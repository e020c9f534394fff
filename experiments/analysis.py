"""What a notebook needs: runs from Python, runs and sweeps from the disk, and policies side by side.

    from experiments.analysis import serve
    run = serve("pool=blocks", "pool.num_blocks=1200", "restore=swap")
    run.summary["p99_ttft_ms"], run.log.requests, run.picture()

Nothing is written to the disk.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import DictConfig, open_dict
from rich.console import Console

from engine.core.errors import UserError
from engine.telemetry.metrics import summarize
from engine.telemetry.runlog import Log, read_run, read_summary
from experiments.check import check
from experiments.compose import CONF, build
from experiments.figures.memory import memory_figure
from experiments.gather import gather
from experiments.header import Header
from experiments.options import RunOptions, check_world
from experiments.output import Wanted
from experiments.repeats import estimate
from experiments.run import serve as serve_config
from sim.cost.base import CostModel

__all__ = [
    "Picture", "Served", "Validation", "cost_model", "gather", "interval", "over", "paired", "quick",
    "read_run", "read_summary", "read_validation", "relative", "serve",
]  # fmt: skip

QUICK = "PAGETWIN_QUICK"

Contender = Sequence[str] | Mapping[str, Callable[[], object]]
"""Overrides, or policies without a YAML by their axes, as `serve` takes them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a notebook shows it: a PNG whose bytes are the same wherever it is drawn."""

    figure: Figure
    dpi: int = 110

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=self.dpi, metadata={"Software": None})
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Served:
    """A run that is over."""

    header: Header
    log: Log
    """The frames `steps` and `requests`; engine.telemetry.schema explains the columns."""
    summary: Mapping[str, float]
    """The metrics of summary.json, by the same names."""

    def picture(self) -> Picture:
        """The pool, the queues and the preemptions over time."""
        return Picture(memory_figure(self.log, self.header.title()))


def serve(*overrides: str, **policies: Callable[[], object]) -> Served:
    """Serve a workload as `python -m experiments.run` does with these overrides, and keep what happened.

    A keyword is an axis (victim, restore, ...) and gives it a policy that has no YAML: its class, or
    whatever else makes a new one. `laws=true` checks every law after every step.

    Raises:
        UserError: an override or a policy that the command line would refuse too.
    """
    config, choices = _composed(overrides)
    choices |= {axis: str(getattr(make, "__name__", make)) for axis, make in policies.items()}
    outcome, workload, header = serve_config(config, choices, None, Console(quiet=True), **policies)
    wanted = Wanted.by(config)
    summary = summarize(outcome.log, wanted.slo_ms, wanted.measure) | dict(workload.figures)
    return Served(header, outcome.log, summary)


def cost_model(*overrides: str) -> CostModel:
    """The cost model that a simulation with these overrides would take."""
    return cast(CostModel, build(_composed(overrides)[0].cost))


def over(
    policies: Mapping[str, Contender],
    key: str,
    values: Iterable[object],
    common: Sequence[str] = (),
    seeds: Iterable[int] = (0,),
) -> pd.DataFrame:
    """Serve under every policy, with every value of a key, with every seed: a row each.

    `policies` gives each its name. The columns are policy, `key`, seed, and all metrics of the summary. All
    policies meet the same requests at equal seeds, so differences are to be taken seed by seed (`paired`).
    """
    rows = [
        {"policy": name, key: value, "seed": seed}
        | dict(_serve_as(contender, *common, f"{key}={value}", f"seed={seed}").summary)
        for seed in seeds
        for value in values
        for name, contender in policies.items()
    ]
    return pd.DataFrame(rows)


def relative(runs: pd.DataFrame, metric: str, baseline: str, key: str) -> pd.Series:
    """For each row of `over` by how much it differs from the baseline policy's at the same value and seed.

    As a share of the latter; 0 for the baseline itself.
    """
    of_baseline = runs[runs["policy"] == baseline].set_index([key, "seed"])[metric]
    places = pd.MultiIndex.from_frame(runs[[key, "seed"]])
    return pd.Series(runs[metric] / of_baseline.loc[places].to_numpy() - 1)


def _serve_as(contender: Contender, *overrides: str) -> Served:
    """Under one of the policies that `over` compares."""
    if isinstance(contender, Mapping):
        return serve(*overrides, **contender)
    return serve(*overrides, *contender)


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t); NaN for a single value."""
    found = estimate(list(values))
    return found.mean, found.half


def paired(runs: pd.DataFrame, metric: str, policy: str, baseline: str) -> tuple[float, float]:
    """By how much a policy differs from another at equal seeds, as a share of that: mean and half width.

    `runs` has the columns policy, seed and `metric`, one row a policy and seed.
    """
    by_seed = runs.pivot(index="seed", columns="policy", values=metric)
    return interval(by_seed[policy] / by_seed[baseline] - 1)


@dataclass(frozen=True, slots=True)
class Validation:
    """What `python -m experiments.validate` found."""

    comparison: pd.DataFrame
    """A row a load, policy and metric; experiments.compare explains the columns."""
    residuals: pd.DataFrame
    """A row a kind of step and repeat: what is left of the errors of the step times, the bias taken out."""
    answer: str
    reasons: Sequence[str]
    step_bias: Sequence[float]
    """The error that all step times of a repeat have in common, by repeat."""


def read_validation(directory: Path) -> Validation:
    """What a validation wrote into its folder: comparison.csv, residuals.csv and verdict.json.

    Raises:
        UserError: one of them is missing.
    """
    paths = [directory / name for name in ("comparison.csv", "residuals.csv", "verdict.json")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist: {directory} is not the folder of a finished validation")
    verdict = json.loads(paths[2].read_text(encoding="utf-8"))
    comparison = pd.read_csv(paths[0], dtype={"answer": "str"}).fillna({"answer": ""})
    return Validation(comparison, pd.read_csv(paths[1]), **verdict)


def quick(full: Any, small: Any) -> Any:
    """`small` where the environment sets PAGETWIN_QUICK=1, as the tests of the notebooks do; else `full`."""
    return small if os.environ.get(QUICK) == "1" else full


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The checked configuration of a run, and the choice of each group."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("run", list(overrides), return_hydra_config=True)
    choices: dict[str, Any] = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    check(config, RunOptions)
    check_world(config)
    return config, choices
