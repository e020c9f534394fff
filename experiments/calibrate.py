"""Measure this machine's engine and fit a cost model to its steps.

    python -m experiments.calibrate model=tiny_llama

The steps are those of the real loop under short workloads, so what is priced is what a simulated step must
take: planning, execution and bookkeeping.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from engine.core.errors import UserError
from engine.core.spec import Limits, RequestSpec
from engine.core.work import Work
from experiments.compose import build, contenders_from_config, served_model, stage_from_config
from experiments.errors import entry_point
from experiments.options import CalibrateOptions
from experiments.output import print_files, print_line, stdout_console
from experiments.samples import StepSamples
from experiments.twin_command import twin_command
from experiments.worlds import MakePolicies, Run, Stage
from sim.cost.fit import fit
from sim.cost.fitted import Fitted
from sim.cost.kinds import kind
from sim.cost.setup import Setup, described

if TYPE_CHECKING:
    from engine.runtime.model import LoadedModel


class Calibration:
    """Short workloads that the engine serves to be measured, and the steps that were measured so far.

    A round serves the workloads `under_each` under each of the contenders, and every other one, which is the
    same work under any of them, under one: the contenders in turn. Rounds may lie between other runs of the
    engine: the speed of a shared machine drifts, and what is compared should be measured at the same times.
    """

    def __init__(
        self,
        stage: Stage,
        limits: Limits,
        model: Mapping[str, Any],
        pairs_per_token: float,
        contenders: Mapping[str, MakePolicies],
        workloads: Mapping[str, Sequence[RequestSpec]],
        under_each: Sequence[str],
        probe: str,
    ) -> None:
        self.rounds: list[StepSamples] = []
        """What was measured so far, in order of time."""
        self._stage = stage
        self._pairs_per_token = pairs_per_token
        policies_by_name = {name: str(make()) for name, make in contenders.items()}
        self.setup = Setup(model, stage.backend.capacity, limits, policies_by_name)
        # With a journal, since the runs to be predicted write one: it is part of the period of a step.
        journal = Path(os.devnull)
        self._runs = {
            name: [
                Run(specs, limits, make_policies, f"calibrating: {name}, {contender}", journal)
                for contender, make_policies in contenders.items()
            ]
            for name, specs in workloads.items()
        }
        self._under_each = frozenset(under_each)
        for key, name in [("probe", probe), *(("under_each", name) for name in under_each)]:
            if name not in workloads:
                names = ", ".join(workloads)
                raise UserError(
                    f"calibration.{key} is {name!r}: choose one of calibration.workloads, {names}"
                )
        policies = next(iter(contenders.values()))
        self.probe_run = Run(workloads[probe], limits, policies, "probing the speed of the machine", journal)
        """What tells the speed of the machine: one of the workloads, alone."""

    @classmethod
    def from_config(cls, config: DictConfig, stage: Stage) -> Calibration:
        """As the group `calibration` says; UserError if there is no engine to measure."""
        from engine.runtime.backend import TorchBackend  # of the extra engine, whose absence `check` explains

        if not isinstance(stage.backend, TorchBackend):
            raise UserError("a calibration measures an engine: choose backend=torch")
        limits: Limits = build(config.limits)
        workloads = {
            str(name): build(node).requests(limits.max_model_len)
            for name, node in config.calibration.workloads.items()
        }
        contenders = contenders_from_config(config, config.calibration.contenders)
        ratio = pairs_per_token(stage.backend.model)
        return cls(
            stage,
            limits,
            described(**served_model(config)),
            ratio,
            contenders,
            workloads,
            config.calibration.under_each,
            config.calibration.probe,
        )

    def warm_up(self) -> None:
        """Serve the first workload once and look away: the first steps of a process are slow."""
        self._stage.warm_up(next(iter(self._runs.values()))[0])

    def round(self) -> None:
        """Measure."""
        samples = StepSamples()
        for run in self._runs_of_round(len(self.rounds)):
            self._stage.play(replace(run, observers=(samples,)))
        self.rounds.append(samples)

    def _runs_of_round(self, number: int) -> Iterator[Run]:
        for i, (name, runs) in enumerate(self._runs.items()):
            yield from runs if name in self._under_each else [runs[(number + i) % len(runs)]]

    @property
    def samples(self) -> StepSamples:
        """All steps so far."""
        return StepSamples.joined(self.rounds)

    def fit(self, provenance: Mapping[str, str], paces: Sequence[float] | None = None) -> Fitted:
        """The cost model of all steps so far.

        With `paces`, one a round, the steps of each are taken to have been slower by that factor than they
        would be at the speed that is to be described.
        """
        samples = self.samples
        periods_ns = samples.periods_ns
        if paces is not None:
            pairs = zip(self.rounds, paces, strict=True)
            periods_ns = [round(ns / pace) for part, pace in pairs for ns in part.periods_ns]
        return fit(samples.steps, periods_ns, self.setup, self._pairs_per_token, provenance)


def pairs_per_token(model: LoadedModel) -> float:
    """Arithmetic of attention for one query and one KV position, as a share of a token's in linear layers.

    4 x layers x heads x head size over 2 x parameters that are no embedding table. With experts, of which a
    token sees a few, the share is too small: a floor that is too low.
    """
    config: Any = model.module.config.get_text_config()  # type: ignore[union-attr, operator]
    shape = model.attention_shape
    num_tables = 1 if getattr(config, "tie_word_embeddings", True) else 2
    num_weights = model.weight_bytes // model.dtype.itemsize
    num_linear = num_weights - num_tables * config.vocab_size * config.hidden_size
    num_heads = int(config.num_attention_heads)
    return 4 * shape.num_layers * num_heads * shape.head_dim / (2 * int(num_linear))


def provenance(config: DictConfig) -> dict[str, str]:
    """Where and when the steps were measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {_cpu_name()}",
        "model": str(config.model.get("path", config.model.get("architecture", config.model._target_))),
        "kernels": str(config.attention._target_),
        "threads": str(config.backend.num_threads),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def coefficient_table(cost: Fitted) -> Table:
    """What one unit of each term costs, and its share of all the time that was measured."""
    report = cost.report
    title = (
        f"step times, fitted to {report.num_steps:,} steps: median error {report.median_abs_error:.1%}, "
        f"p90 {report.p90_abs_error:.1%}, total {report.total_error:+.1%}, R2 {report.r2:.3f}, "
        f"knee at {cost.knee_tokens} tokens"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("term", "us a unit", "share %"):
        table.add_column(column, justify="left" if column == "term" else "right")
    for name, ns in asdict(cost.coefficients).items():
        text = "not measured" if name in report.unmeasured else f"{ns / 1e3:,.3f}"
        label = name.removeprefix("ns_per_").replace("_", " ")
        table.add_row(label, text, f"{100 * report.share_of_term[name]:.1f}")
    return table


def write_calibration(cost: Fitted, samples: StepSamples, directory: Path) -> list[Path]:
    """The cost model, the steps that it was fitted to, and the figure."""
    from experiments.figures.calibration import calibration_figure  # matplotlib is slow to import
    from experiments.figures.style import save

    model, steps = directory / "cost_model.json", directory / "calibration_steps.csv"
    cost.save(model)
    frame = pd.DataFrame(samples.steps, columns=list(Work._fields))
    frame.assign(period_ns=samples.periods_ns).to_csv(steps, index=False)
    predicted = pd.DataFrame([cost.parts_ns(step) for step in samples.steps])
    figure = calibration_figure(samples.periods_ns, predicted, [kind(step) for step in samples.steps])
    return [model, steps, save(figure, directory / "calibration.png")]


@entry_point("calibrate", CalibrateOptions)
def main(config: DictConfig, directory: Path) -> None:
    """The entry point."""
    console = stdout_console()
    calibration = Calibration.from_config(config, stage_from_config(config))
    calibration.warm_up()
    for _ in range(config.calibration.num_rounds):
        calibration.round()
    cost = calibration.fit(provenance(config))
    console.print(coefficient_table(cost))
    if cost.caveat is not None:
        print_line(console, f"warning: {cost.caveat}", style="yellow")
    files = write_calibration(cost, calibration.samples, directory)
    print_files(console, directory, files)
    command = twin_command(files[0], config, calibration.setup)
    print_line(console, f"simulate this engine: {command}")


if __name__ == "__main__":
    main()
