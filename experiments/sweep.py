"""The table of a sweep (-m): one row a run, what was overridden and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from engine.telemetry.runlog import read_summary
from experiments.output import stdout_console
from experiments.tables import label, number, unit

COLUMNS = (
    "output_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "num_preemptions",
    "recompute_tax",
)  # fmt: skip
"""What is printed; sweep.csv has everything."""


class SweepTable(Callback):
    """Collects the summaries of the runs of a sweep into sweep.csv, and prints the main figures."""

    def __init__(self) -> None:
        self._overrides: dict[str, dict[str, str]] = {}
        self._summaries: dict[str, dict[str, float]] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the summary of a run that went well."""
        hydra = job_return.hydra_cfg
        if job_return.status is not JobStatus.COMPLETED or hydra is None:
            return
        directory = Path(hydra.hydra.runtime.output_dir)
        if (directory / "summary.json").is_file():
            pairs = (str(override).partition("=") for override in hydra.hydra.overrides.task)
            self._overrides[directory.name] = {key: value for key, _, value in pairs}
            self._summaries[directory.name] = read_summary(directory)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print."""
        if not self._summaries:
            return
        overrides = pd.DataFrame.from_dict(self._overrides, orient="index")
        summaries = pd.DataFrame.from_dict(self._summaries, orient="index")
        path = Path(config.hydra.sweep.dir) / "sweep.csv"
        overrides.join(summaries).to_csv(path, index_label="run")
        console = stdout_console()
        console.print(_table(overrides.loc[:, overrides.nunique(dropna=False) > 1], self._summaries))
        console.print(f"written to {path}", soft_wrap=True, highlight=False)


def _table(varied: pd.DataFrame, summaries: dict[str, dict[str, float]]) -> Table:
    """One row a run: the overrides that differ between runs, and COLUMNS."""
    table = Table(title="the sweep", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("run", *varied.columns):
        table.add_column(str(name))
    for metric in COLUMNS:
        table.add_column(f"{label(metric)} {unit(metric)}".strip(), justify="right")
    for run, summary in summaries.items():
        figures = (number(metric, summary[metric]) for metric in COLUMNS)
        table.add_row(run, *map(str, varied.loc[run]), *figures)
    return table
