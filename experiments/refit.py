"""Fit a cost model to the steps of runs that are over, from their folders alone.

    python -m experiments.refit outputs/run/... [outputs/run/... ...] --out refit

Any run will do, in either world: steps.parquet says what each step computed and how long its period was,
config.yaml of which model. It must be one model, in blocks of one size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from engine.core.errors import UserError
from engine.core.policies.base import Policies
from engine.core.work import Work
from engine.telemetry.runlog import RunLog, read_run
from experiments.calibrate import coefficient_table, write_calibration
from experiments.compose import build, served_model
from experiments.errors import plain_errors
from experiments.output import print_files, print_line, stdout_console
from experiments.samples import StepSamples
from sim.cost.fit import fit
from sim.cost.fitted import Fitted
from sim.cost.setup import Setup, described
from sim.models import model_shape


def refit(folders: Sequence[Path]) -> tuple[Fitted, StepSamples]:
    """The cost model of all steps of some runs, and these steps.

    Raises:
        UserError: a folder is not that of a run, or the runs are not of one model in blocks of one size; or
            the steps are too few.
    """
    logs, configs = [read_run(folder) for folder in folders], [_config(folder) for folder in folders]
    setups = [_setup(*run) for run in zip(folders, logs, configs, strict=True)]
    for folder, setup in zip(folders, setups, strict=True):
        try:
            setups[0].check(folders[0], setup.pool.block_size, setup.model)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
    samples = StepSamples.joined(samples_of(log) for log in logs)
    ratio, date = _pairs_per_token(configs[0]), datetime.now(UTC).isoformat(timespec="seconds")
    provenance = {"date": date, "runs": ", ".join(map(str, folders))}
    return fit(samples.steps, samples.periods_ns, setups[0], ratio, provenance), samples


def samples_of(log: RunLog) -> StepSamples:
    """The steps of a run that computed or moved something, and their periods."""
    samples = StepSamples()
    steps = log.steps[(log.steps["num_tokens"] > 0) | (log.steps["num_transfers"] > 0)]
    samples.steps = [Work(*row) for row in steps[list(Work._fields)].to_numpy().tolist()]
    samples.periods_ns = (steps["closed_ns"] - steps["start_ns"]).tolist()
    return samples


def _config(folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist, so it is not known of which model {folder} is a run")
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig) or not {"model", "limits"} <= config.keys():
        raise UserError(f"{path} is not the configuration of a run: it has no model, or no limits")
    return config


def _setup(folder: Path, log: RunLog, config: DictConfig) -> Setup:
    targets = [config.get(field.name, {}).get("_target_", "none") for field in fields(Policies)]
    policies = ", ".join(target.rpartition(".")[2] for target in targets)
    model = described(**served_model(config))
    return Setup(model, log.capacity, build(config.limits), {folder.name: policies})


def _pairs_per_token(config: DictConfig) -> float:
    """As for a calibration; 0, which is no floor, for a model whose sizes the simulator does not know."""
    try:
        shape = model_shape(**served_model(config))
    except UserError:
        return 0.0
    return shape.flops_per_attention_pair / shape.flops_per_token


@plain_errors
def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("refit"), help="where to write the cost model")
    arguments = parser.parse_args()
    console = stdout_console()
    cost, samples = refit(arguments.folders)
    console.print(coefficient_table(cost))
    if cost.caveat is not None:
        print_line(console, f"warning: {cost.caveat}", style="yellow")
    arguments.out.mkdir(parents=True, exist_ok=True)
    print_files(console, arguments.out, write_calibration(cost, samples, arguments.out))
    print_line(console, f"simulate with it: cost=fitted cost.path={arguments.out / 'cost_model.json'}")


if __name__ == "__main__":
    main()
