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
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from engine.core.errors import UserError
from engine.core.spec import RequestSpec
from engine.telemetry.schema import World
from experiments.calibrate import Calibration, coefficient_table, write_calibration
from experiments.campaign import CellRun, play
from experiments.compare import Summary
from experiments.compose import (
    build,
    check_no_choice_is_lost,
    config_text,
    stage_from_config,
)
from experiments.effort import peak_rss_bytes
from experiments.errors import entry_point
from experiments.header import Header
from experiments.loads import check_loads
from experiments.options import ValidateOptions
from experiments.output import (
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
from experiments.twins import simulated_stage
from experiments.validation import FIRST_FIT, Findings, Requests, evaluate, measure
from experiments.validation_tables import (
    bias_table,
    comparison_table,
    engine_table,
    median_errors,
    winners_table,
)
from experiments.verdict import Answer
from sim.workloads.base import Prepared

STYLES = {Answer.PASS: "bold green", Answer.FAIL: "bold red", Answer.TOO_NOISY: "bold yellow"}


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


def print_load(console: Console, load: float | None, workload: Prepared) -> None:
    """What is going to be served, and how fast it comes."""
    share = "as the workload says" if load is None else f"{load:.0%} of what the engine can serve"
    print_line(console, f"load: {share}")
    print_workload(console, workload)


def write_cell_runs(
    cell_runs: Sequence[CellRun],
    requests: Requests,
    headers: Mapping[float | None, Header],
) -> tuple[list[Summary], list[Path]]:
    """Everything about each run into its folder; the summaries, and all files."""
    choices = HydraConfig.get().runtime.choices
    summaries, files = [], []
    for cell_run in cell_runs:
        (load, contender), log = cell_run.cell, cell_run.outcome.log
        header = headers[load].of_contender(contender, log.world, choices)
        config, workload = requests[load]
        text, wanted = config_text(config), Wanted.by(config)
        summary, paths = write_outcome(
            cell_run.outcome, cell_run.folder, text, wanted, workload.figures, header.title()
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
    comparison: pd.DataFrame,
    cell_runs: Sequence[CellRun],
    headers: Mapping[float | None, Header],
    directory: Path,
) -> list[Path]:
    """comparison.png, and the latencies of all runs in one figure a load."""
    # matplotlib is slow to import
    from experiments.figures.comparison import comparison_figure
    from experiments.figures.latency import Curve, latency_figure
    from experiments.figures.style import save

    contenders = list(dict.fromkeys(cell_run.cell.contender for cell_run in cell_runs))
    paths = [save(comparison_figure(comparison), directory / "comparison.png")]
    for load, header in headers.items():
        mine = [cell_run.outcome.log for cell_run in cell_runs if cell_run.cell.load == load]
        names = [cell_run.cell.contender for cell_run in cell_runs if cell_run.cell.load == load]
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
    config, requests, measured = measure(config, engine, calibration, directory, partial(print_load, console))

    cost, cell_runs = measured.cost, measured.cell_runs
    capacity, in_flight = engine.backend.capacity, config.driver.in_flight
    twin = simulated_stage(capacity, cost, config.limits.max_model_len, in_flight)
    runs = {cell_run.cell: cell_run.run for cell_run in cell_runs}
    simulated = [play(twin, run, cell, "simulated", directory) for cell, run in runs.items()]
    headers = {
        load: Header.of(node, HydraConfig.get().runtime.choices, capacity, workload)
        for load, (node, workload) in requests.items()
    }
    summaries, files = write_cell_runs([*simulated, *cell_runs], requests, headers)
    found = evaluate(config, capacity, measured, summaries[len(simulated) :])

    console.print(coefficient_table(cost))
    for cell in runs:
        console.print(comparison_table(found.comparison, cell.load, cell.contender))
    for load in requests:
        console.print(winners_table(found.comparison, load))
    console.print(engine_table(cell_runs, found.replayed, cost, measured.paces))
    console.print(bias_table(found.bias, found.residuals))
    print_line(console, median_errors(found.comparison))
    print_line(console, measured.probe.describe())
    for cell_run, summary in zip([*simulated, *cell_runs], summaries, strict=True):
        print_unserved(console, cell_run.outcome.log, cell_run.folder.name)
        print_fallbacks(console, summary, cell_run.folder.name)
        if cost.caveat is None:  # otherwise every run would say it, and the verdict does
            print_remark(console, cell_run.outcome, cell_run.folder.name)
    own = [directory / FIRST_FIT, *write_calibration(cost, measured.calibration.samples, directory)]
    own += write_results(found, directory)
    own += write_figures(found.comparison, [*simulated, *cell_runs], headers, directory)
    print_files(console, directory, own + files)
    print_line(console, f"{time.monotonic() - began_s:.0f} s, peak RSS {peak_rss_bytes() / 2**20:,.0f} MiB")
    print_line(console, str(found.verdict), style=STYLES[found.verdict.answer])
    if found.verdict.answer is Answer.FAIL:
        sys.exit(1)


if __name__ == "__main__":
    main()
