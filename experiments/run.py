"""Serve a workload in one world and write what happened.

python -m experiments.run backend=simulated restore=swap victim=last_admitted
python -m experiments.run -m backend=simulated restore=swap,recompute
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from engine.telemetry.schema import World
from experiments.answers import ANSWERS, Answers
from experiments.compose import build, config_text, policies_maker, stage_from_config
from experiments.errors import entry_point
from experiments.header import Header
from experiments.options import RunOptions
from experiments.output import (
    JOURNAL,
    Wanted,
    print_clients,
    print_effort,
    print_fallbacks,
    print_files,
    print_line,
    print_measure,
    print_remark,
    print_saturated,
    print_unserved,
    print_workload,
    stdout_console,
    write_outcome,
)
from experiments.tables import summary_table
from experiments.worlds import Outcome, Run
from sim.workloads.base import Prepared


def serve(
    config: DictConfig,
    choices: Mapping[str, str | None],
    directory: Path | None,
    console: Console,
    **policies: Callable[[], object],
) -> tuple[Outcome, Prepared, Header]:
    """Compose the world that `config` describes, say what it is and what it will serve, and serve it.

    `choices` has the choice of each config group. Run log and journal go into `directory`, if there is one,
    and what an engine answered to prompts.
    `policies` makes those of axes for which `config` does not have what is wanted.
    """
    make_policies, limits = policies_maker(config, **policies), build(config.limits)
    workload: Prepared = build(config.workload).prepare(limits.max_model_len)
    specs = workload.specs
    stage = stage_from_config(config)
    header = Header.of(config, choices, stage.backend.capacity, workload)
    print_line(console, header.line())  # when nothing can be refused any more
    print_workload(console, workload)
    if config.num_warm_up_requests:
        stage.warm_up(Run(specs[: config.num_warm_up_requests], limits, make_policies))
    answers = Answers()
    journal_path = None if directory is None or config.journal == "off" else directory / JOURNAL
    outcome = stage.play(
        Run(
            specs,
            limits,
            make_policies,
            title=str(config.world),
            journal_path=journal_path,
            with_plans=config.journal == "plans",
            laws=config.laws,
            log_directory=directory,
            observers=(answers,) if workload.prompts is not None else (),
        )
    )
    if workload.prompts is not None and stage.world is World.MEASURED and directory is not None:
        answers.write(directory / ANSWERS, workload.prompts, outcome.log.requests)
    return outcome, workload, header


def print_stop_tokens(console: Console, config: DictConfig) -> None:
    """Say of a simulation that stop tokens had no effect."""
    stop_token_ids = OmegaConf.select(config, "workload.shape.stop_token_ids")
    if config.world == World.SIMULATED and stop_token_ids:
        text = (
            f"workload.shape.stop_token_ids is {stop_token_ids}, without effect: a simulation draws no tokens"
        )
        print_line(console, f"{text}, so sequences end at their recorded lengths", style="yellow")


@entry_point("run", RunOptions)
def main(config: DictConfig, directory: Path) -> None:
    """The entry point."""
    console = stdout_console()
    outcome, workload, header = serve(config, HydraConfig.get().runtime.choices, directory, console)
    text, wanted = config_text(config), Wanted.by(config)
    summary, files = write_outcome(outcome, directory, text, wanted, workload.figures, header.title())
    console.print(summary_table({config.world: summary}))
    print_clients(console, outcome.log)
    print_stop_tokens(console, config)
    print_unserved(console, outcome.log)
    print_measure(console, outcome.log, wanted.measure)
    print_saturated(console, summary)
    print_remark(console, outcome)
    print_fallbacks(console, summary)
    print_effort(console, outcome.effort, summary)
    files += [path for path in (directory / ANSWERS,) if path.is_file()]
    print_files(console, directory, files)


if __name__ == "__main__":
    main()
