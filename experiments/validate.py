"""The main job: calibrate, simulate, execute, compare, and say whether the simulator may be believed.

    python -m experiments.validate
    python -m experiments.validate --quick
    python -m experiments.validate workload=azure workload.path=AzureLLMInferenceTrace_conv.csv

One process builds the engine once. Each contender serves the same requests at each load, on the engine
`num_repeats` times in turn with the others, and in the simulator. Limits, pool, policies and requests are the
same in both worlds; the engine's clock skips idle time and nothing else. The engine is calibrated with other
requests before, between and after these runs, and a probe tells the machine's speed between any two of them.
No step of the runs enters the fit that they are judged by.

The exit code is 1 if the answer is FAIL, and 0 if it is PASS or that the machine is too noisy to tell.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from engine.core.backend import Capacity, RequestSpec
from engine.core.errors import UserError
from engine.telemetry.schema import World
from experiments.calibrate import Calibration, coefficient_table, provenance, write_calibration
from experiments.compare import Summary, compare
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
from experiments.loads import check_loads, workloads_at_loads
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
from experiments.probe import Probe
from experiments.trials import Campaign, Cell, Trial, play
from experiments.twins import Twins, biases, repeats_of, residuals, simulated_stage
from experiments.validation_tables import bias_table, comparison_table, engine_table, winners_table
from experiments.verdict import Answer, Tolerance, Verdict, judge
from experiments.worlds import Run, Stage, replays_equal
from sim.cost.fitted import Fitted
from sim.workloads.base import Prepared

FIRST_FIT = "first_fit.json"
"""The cost model before any run: what policies weigh that weigh costs, in both worlds."""

STYLES = {Answer.PASS: "bold green", Answer.FAIL: "bold red", Answer.TOO_NOISY: "bold yellow"}

Requests = Mapping[float | None, tuple[DictConfig, Prepared]]
"""For each load the configuration that serves it, and its requests."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, and the cost models that were fitted to the calibration alone."""

    trials: list[Trial]
    calibration: Calibration
    probe: Probe
    cost: Fitted
    undrifted_cost: Fitted
    """At the average speed of the machine, the drift that the probe saw taken out of the calibration."""

    @property
    def paces(self) -> list[float]:
        """How slow the machine was during each trial."""
        return [self.probe.pace(trial.block) for trial in self.trials]


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
            "it empty, and with workload=prompts set workload.stop_at_eos=false; "
            "then lengths end sequences in both"
        )


def measure(
    config: DictConfig, engine: Stage, calibration: Calibration, directory: Path, console: Console
) -> tuple[DictConfig, Requests, Measured]:
    """Calibrate and run in turn; the configuration with the first fit for policies that weigh costs."""
    limits = build(config.limits)
    calibration.warm_up()
    campaign = Campaign(engine, calibration, Probe(engine, calibration.probe_run))
    campaign.calibrate()
    first_fit = calibration.fit(provenance(config))
    first_fit.save(directory / FIRST_FIT)
    config = with_first_costs(config, directory / FIRST_FIT)
    contenders = contenders_from_config(config)
    twin = simulated_stage(engine.backend.capacity, first_fit, limits.max_model_len)
    requests = workloads_at_loads(config, twin, limits, contenders.values())
    for load, (_, workload) in requests.items():
        print_load(console, load, workload)
    runs = {
        Cell(load, name): Run(workload.specs, limits, make_policies)
        for load, (_, workload) in requests.items()
        for name, make_policies in contenders.items()
    }
    # After fitting and simulating, the engine's next run was 5.8 % slower than priced (mean of 17, standard
    # error 1.6), later ones 0.4 to 2.7 %; with this, 0.9 % (mean of 7, standard error 3.1): likely, not
    # proven.
    calibration.warm_up()
    trials = campaign.execute(runs, config.num_repeats, directory)
    cost = calibration.fit(provenance(config))
    undrifted = calibration.fit(provenance(config), campaign.round_paces)
    return config, requests, Measured(trials, calibration, campaign.probe, cost, undrifted)


def print_load(console: Console, load: float | None, workload: Prepared) -> None:
    """What is going to be served, and how fast it comes."""
    share = "as the workload says" if load is None else f"{load:.0%} of what the engine can serve"
    print_line(console, f"load: {share}")
    print_workload(console, workload)


def objections(trials: Sequence[Trial], differing: Sequence[str]) -> list[str]:
    """Reasons to fail that are no matter of time: other plans in a replay, requests that were not served."""
    texts = [f"{name}: a fresh core, told the same, planned otherwise" for name in differing]
    for trial in trials:
        status = trial.outcome.log.requests["status"]
        num_unserved = int((status != "finished").sum())
        if num_unserved:
            kinds = ", ".join(sorted(set(status) - {"finished"}))
            texts.append(
                f"{trial.folder.name}: {num_unserved} of {len(status)} requests were not served ({kinds})"
            )
    return texts


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of the comparison."""

    comparison: pd.DataFrame
    bias: Mapping[int, float]
    """The error common to all step times, by repeat."""
    residuals: pd.DataFrame
    replayed: Mapping[str, bool]
    """Whether the journal of each run gives the same plans again, by the name of its folder."""
    verdict: Verdict


def evaluate(
    config: DictConfig, capacity: Capacity, measured: Measured, summaries: Sequence[Summary]
) -> Findings:
    """Simulate what was measured, compare, and judge; `summaries` are those of the measured trials."""
    trials, cost, samples = measured.trials, measured.cost, measured.calibration.samples
    tolerance: Tolerance = build(config.tolerance)
    runs = {trial.cell: trial.run for trial in trials}
    twins = Twins(capacity, runs, Wanted.by(config))
    repeats = repeats_of(trials, twins, summaries, cost, measured.undrifted_cost, measured.paces)
    ensembles = {cell: twins.ensemble(cell, cost, samples, config.num_ensemble, config.seed) for cell in runs}
    comparison = compare(repeats, ensembles, tolerance)
    bias = biases(trials, cost)
    replayed = {t.folder.name: replays_equal(t.folder / JOURNAL, t.run.make_policies()) for t in trials}
    verdict = judge(
        comparison,
        list(bias.values()),
        tolerance,
        objections=objections(trials, [name for name, equal in replayed.items() if not equal]),
        doubts=[] if cost.caveat is None else [cost.caveat],
    )
    return Findings(comparison, bias, residuals(trials, cost), replayed, verdict)


def write_trials(
    trials: Sequence[Trial],
    requests: Requests,
    headers: Mapping[float | None, Header],
) -> tuple[list[Summary], list[Path]]:
    """Everything about each run into its folder; the summaries, and all files."""
    choices = HydraConfig.get().runtime.choices
    summaries, files = [], []
    for trial in trials:
        config, workload = requests[trial.cell.load]
        header = headers[trial.cell.load].of_contender(trial.cell.contender, trial.outcome.log.world, choices)
        text, wanted = config_text(config), Wanted.by(config)
        summary, paths = write_outcome(
            trial.outcome, trial.folder, text, wanted, workload.figures, header.title()
        )
        summaries.append(summary)
        files += paths
    return summaries, files


def write_results(found: Findings, directory: Path) -> list[Path]:
    """comparison.csv, residuals.csv and verdict.json."""
    paths = [directory / name for name in ("comparison.csv", "residuals.csv", "verdict.json")]
    found.comparison.to_csv(paths[0], index=False)
    found.residuals.to_csv(paths[1], index=False)
    document: dict[str, Any] = {**asdict(found.verdict), "step_bias": list(found.bias.values())}
    paths[2].write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return paths


def write_figures(
    comparison: pd.DataFrame, trials: Sequence[Trial], headers: Mapping[float | None, Header], directory: Path
) -> list[Path]:
    """comparison.png, and the latencies of all runs in one figure a load."""
    # matplotlib is slow to import
    from experiments.figures.comparison import comparison_figure
    from experiments.figures.latency import Curve, latency_figure
    from experiments.figures.style import save

    contenders = list(dict.fromkeys(trial.cell.contender for trial in trials))
    paths = [save(comparison_figure(comparison), directory / "comparison.png")]
    for load, header in headers.items():
        mine = [trial.outcome.log for trial in trials if trial.cell.load == load]
        names = [trial.cell.contender for trial in trials if trial.cell.load == load]
        curves = [Curve(name, log.world, log.requests) for name, log in zip(names, mine, strict=True)]
        path = directory / ("latency.png" if load is None else f"latency-load-{load:g}.png")
        paths.append(save(latency_figure(curves, header.title_of(contenders)), path))
    return paths


@entry_point("validate", ValidateOptions)
def main(config: DictConfig, directory: Path) -> None:
    """The entry point."""
    began_s = time.monotonic()
    console = stdout_console()
    if config.world != World.MEASURED:
        raise UserError("validate compares the simulator with an engine: choose backend=torch")
    overrides = HydraConfig.get().overrides.task
    check_no_choice_is_lost(config, overrides)
    # A bad workload is told now, not after the calibration.
    check_comparable(build(config.workload).requests(config.limits.max_model_len))
    check_loads(config, overrides)
    build(config.tolerance)
    engine = stage_from_config(config)
    calibration = Calibration.from_config(config, engine)
    config, requests, measured = measure(config, engine, calibration, directory, console)

    cost, trials = measured.cost, measured.trials
    twin = simulated_stage(engine.backend.capacity, cost, config.limits.max_model_len)
    runs = {trial.cell: trial.run for trial in trials}
    simulated = [play(twin, run, cell, "simulated", directory) for cell, run in runs.items()]
    headers = {
        load: Header.of(node, HydraConfig.get().runtime.choices, engine.backend.capacity, workload)
        for load, (node, workload) in requests.items()
    }
    summaries, files = write_trials([*simulated, *trials], requests, headers)
    found = evaluate(config, engine.backend.capacity, measured, summaries[len(simulated) :])

    console.print(coefficient_table(cost))
    for cell in runs:
        console.print(comparison_table(found.comparison, cell.load, cell.contender))
    for load in requests:
        console.print(winners_table(found.comparison, load))
    console.print(engine_table(trials, found.replayed, cost, measured.paces))
    console.print(bias_table(found.bias, found.residuals))
    print_line(console, measured.probe.describe())
    for trial, summary in zip([*simulated, *trials], summaries, strict=True):
        print_unserved(console, trial.outcome.log, trial.folder.name)
        print_fallbacks(console, summary, trial.folder.name)
        if cost.caveat is None:  # otherwise every run would say it, and the verdict does
            print_remark(console, trial.outcome, trial.folder.name)
    own = [directory / FIRST_FIT, *write_calibration(cost, measured.calibration.samples, directory)]
    own += write_results(found, directory)
    own += write_figures(found.comparison, [*simulated, *trials], headers, directory)
    print_files(console, directory, own + files)
    print_line(console, f"{time.monotonic() - began_s:.0f} s, peak RSS {peak_rss_bytes() / 2**20:,.0f} MiB")
    print_line(console, str(found.verdict), style=STYLES[found.verdict.answer])
    if found.verdict.answer is Answer.FAIL:
        sys.exit(1)


if __name__ == "__main__":
    main()
