"""The main job: calibrate, simulate, execute, compare.

    python -m experiments.validate
    python -m experiments.validate workload=azure workload.path=AzureLLMInferenceTrace_conv.csv

One process builds the engine once. Each contender serves the same requests on the engine, `num_repeats` times
in turn with the others, and in the simulator. Limits, pool, policies and requests are the same in both
worlds; the engine's clock skips idle time and nothing else. The engine is calibrated with other requests
before, between and after these runs: the speed of a shared machine drifts, and a cost model of some minutes
ago would predict another machine. No step of the runs themselves enters the fit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import box
from rich.markup import escape
from rich.table import Table

from engine.core.backend import Capacity, RequestSpec
from engine.core.errors import UserError
from engine.core.policies.base import Limits
from engine.telemetry.schema import World
from experiments.calibrate import Calibration, coefficient_table, provenance, write_calibration
from experiments.compare import METRICS, Summary, compare
from experiments.compose import (
    build,
    check_no_choice_is_lost,
    config_text,
    contenders_from_config,
    stage_from_config,
    with_first_costs,
)
from experiments.effort import peak_rss_bytes
from experiments.errors import entry_point
from experiments.header import Header
from experiments.options import ValidateOptions
from experiments.output import (
    JOURNAL,
    Wanted,
    print_fallbacks,
    print_files,
    print_line,
    print_remark,
    print_unserved,
    print_workload,
    stdout_console,
    write_outcome,
)
from experiments.samples import StepSamples
from experiments.tables import comparison_table, winners_table
from experiments.worlds import MakePolicies, Outcome, Run, Stage, replays_equal
from sim.backend import SimulatedBackend
from sim.cost.base import CostModel
from sim.loop import simulate
from sim.workloads.base import Prepared

FIRST_FIT = "first_fit.json"
"""The cost model before any run: what policies weigh that weigh costs, in both worlds."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One contender in one world, and what came out."""

    contender: str
    folder: Path
    make_policies: MakePolicies
    outcome: Outcome
    samples: StepSamples


def simulated_stage(capacity: Capacity, cost: CostModel, limits: Limits) -> Stage:
    """The simulated twin of an engine."""
    backend = SimulatedBackend(capacity, cost, limits.max_model_len)
    return Stage(World.SIMULATED, backend, lambda: simulate)


def capacity_per_s(stage: Stage, run: Run) -> float:
    """Requests a second that a simulated engine serves when all of them are there at once."""
    specs = [replace(spec, arrival_ns=0) for spec in run.specs]
    end_ns = int(stage.play(replace(run, specs=specs)).log.steps["end_ns"].max())
    return len(specs) * 1e9 / end_ns


def workload_at_load(
    config: DictConfig, twin: Stage, limits: Limits, contenders: Mapping[str, MakePolicies]
) -> Prepared:
    """The requests at `config.load` times the rate that the slowest contender serves; noted in `config`."""
    workload: Prepared = build(config.workload).prepare(limits.max_model_len)
    if config.load is None:
        return workload
    runs = [Run(workload.specs, limits, make_policies) for make_policies in contenders.values()]
    slowest = min(capacity_per_s(twin, run) for run in runs)
    config.workload.rate_per_s = round(config.load * slowest, 3)
    at_load: Prepared = build(config.workload).prepare(limits.max_model_len)
    return at_load


def execute(
    stage: Stage, runs: Mapping[str, Run], num_repeats: int, calibration: Calibration, directory: Path
) -> list[Trial]:
    """Every contender on the engine, `num_repeats` times in turn; after each run a round of calibration."""
    trials = []
    for repeat in range(1, num_repeats + 1):
        for contender, run in runs.items():
            trials.append(play(stage, run, contender, f"measured-{repeat}", directory))
            calibration.round()
    return trials


def play(stage: Stage, run: Run, contender: str, name: str, directory: Path) -> Trial:
    """One contender in one world, with a folder of its own."""
    folder = directory / f"{contender}-{name}"
    folder.mkdir(parents=True)
    samples = StepSamples()
    run = replace(run, title=folder.name, journal_path=folder / JOURNAL, observers=(samples,))
    return Trial(contender, folder, run.make_policies, stage.play(run), samples)


def compared(trials: Sequence[Trial], summaries: Sequence[Summary]) -> pd.DataFrame:
    """The table of errors and spreads; a contender has one simulated trial and one or more measured ones."""
    simulated: dict[str, Summary] = {}
    measured: dict[str, list[Summary]] = {}
    for trial, summary in zip(trials, summaries, strict=True):
        if trial.outcome.log.world is World.SIMULATED:
            simulated[trial.contender] = summary
        else:
            measured.setdefault(trial.contender, []).append(summary)
    return compare(simulated, measured)


def write_figures(
    comparison: pd.DataFrame, trials: Sequence[Trial], directory: Path, title: str
) -> list[Path]:
    """comparison.csv, comparison.png, and the latencies of all runs in one figure."""
    from experiments.figures.comparison import comparison_figure  # matplotlib is slow to import
    from experiments.figures.latency import Curve, latency_figure
    from experiments.figures.style import save

    table = directory / "comparison.csv"
    comparison.to_csv(table, index=False)
    curves = [Curve(trial.contender, trial.outcome.log.world, trial.outcome.log.requests) for trial in trials]
    return [
        table,
        save(comparison_figure(comparison, METRICS, title), directory / "comparison.png"),
        save(latency_figure(curves, title), directory / "latency.png"),
    ]


def engine_table(trials: Sequence[Trial], cost: CostModel) -> Table:
    """Each run of the engine: does a fresh core plan the same, and how does the cost model price its steps.

    The core is fed with the run's journal. The error of the step times is that of the cost model alone, with
    the drift of the machine since the calibration; no difference in decisions enters it.
    """
    table = Table(title="the engine's runs", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("run", "plans", "replayed", "step times, error %"):
        table.add_column(column, justify="left" if column in ("run", "replayed") else "right")
    for trial in trials:
        if trial.outcome.log.world is World.MEASURED:
            equal = replays_equal(trial.folder / JOURNAL, trial.make_policies())
            verdict = "byte-equal" if equal else "[red]DIFFERENT[/red]"
            error = f"{100 * trial.samples.total_error(cost):+.1f}"
            table.add_row(escape(trial.folder.name), f"{len(trial.outcome.log.steps):,}", verdict, error)
    return table


@entry_point("validate", ValidateOptions)
def main(config: DictConfig, directory: Path) -> None:
    """The entry point."""
    began_s = time.monotonic()
    console = stdout_console()
    if config.world != World.MEASURED:
        raise UserError("validate compares the simulator with an engine: choose backend=torch")
    check_no_choice_is_lost(config, HydraConfig.get().overrides.task)
    limits = build(config.limits)
    # A bad trace is told now, not after the calibration.
    check_comparable(build(config.workload).requests(limits.max_model_len))
    engine = stage_from_config(config)
    calibration = Calibration.from_config(config, engine)
    calibration.warm_up()
    calibration.round()

    first_fit, first_path = calibration.fit(provenance(config)), directory / FIRST_FIT
    first_fit.save(first_path)
    config = with_first_costs(config, first_path)
    contenders = contenders_from_config(config)
    first_guess = simulated_stage(engine.backend.capacity, first_fit, limits)
    workload = workload_at_load(config, first_guess, limits, contenders)
    print_workload(console, workload)
    print_line(console, describe_load(config))
    runs = {name: Run(workload.specs, limits, make) for name, make in contenders.items()}
    # After fitting and simulating, the engine's next run was 5.8 % slower than priced (mean of 17, standard
    # error 1.6), later ones 0.4 to 2.7 %; with this, 0.9 % (mean of 7, standard error 3.1): likely, not
    # proven.
    calibration.warm_up()
    measured = execute(engine, runs, config.num_repeats, calibration, directory)
    cost = calibration.fit(provenance(config))
    console.print(coefficient_table(cost))
    twin = simulated_stage(engine.backend.capacity, cost, limits)
    trials = [play(twin, run, name, "simulated", directory) for name, run in runs.items()] + measured

    text, wanted = config_text(config), Wanted.by(config)
    choices = HydraConfig.get().runtime.choices
    header = Header.of(config, choices, engine.backend.capacity, workload)
    written = []
    for trial in trials:
        title = header.of_contender(trial.contender, trial.outcome.log.world, choices).title()
        written.append(write_outcome(trial.outcome, trial.folder, text, wanted, workload.figures, title))
    comparison = compared(trials, [summary for summary, _ in written])
    files = [first_path, *write_calibration(cost, calibration.samples, directory)]
    files += write_figures(comparison, trials, directory, header.title_of(contenders))
    for name in contenders:
        console.print(comparison_table(comparison, name))
    console.print(winners_table(comparison))
    console.print(engine_table(trials, cost))
    for trial, (summary, _) in zip(trials, written, strict=True):
        print_unserved(console, trial.outcome.log, trial.folder.name)
        print_fallbacks(console, summary, trial.folder.name)
        print_remark(console, trial.outcome, trial.folder.name)
    print_files(console, directory, files + [path for _, paths in written for path in paths])
    console.print(
        f"{int(comparison['holds'].sum())} of {len(comparison)} errors within 10 % or twice the spread; "
        f"{time.monotonic() - began_s:.0f} s, peak RSS {peak_rss_bytes() / 2**20:,.0f} MiB"
    )


def check_comparable(specs: Sequence[RequestSpec]) -> None:
    """Refuse requests of which the two worlds would not do the same work.

    Raises:
        UserError: some have stop tokens.
    """
    stops = next((spec.sampling.stop_token_ids for spec in specs if spec.sampling.stop_token_ids), ())
    if stops:
        raise UserError(
            f"workload.shape.stop_token_ids is {list(stops)}: a stop token ends a sequence on the engine "
            "only, since a simulation draws no tokens, so the two worlds would not do the same work. Leave "
            "it empty here; the recorded lengths end sequences in both"
        )


def describe_load(config: DictConfig) -> str:
    """How fast the requests come, and with how much memory they are served."""
    share = (
        "as the workload says" if config.load is None else f"{config.load:.0%} of what the engine can serve"
    )
    return f"load: {share}; pool of {config.pool.num_blocks} blocks"


if __name__ == "__main__":
    main()
