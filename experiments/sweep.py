"""The table of a sweep (-m): one row a run, what was overridden and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich import box
from rich.markup import escape
from rich.table import Table

from engine.telemetry.runlog import read_summary
from experiments.output import print_line, stdout_console
from experiments.tables import label, number, unit

COLUMNS = (
    "output_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "num_preemptions",
    "recompute_tax",
)  # fmt: skip
"""What is printed; sweep.csv has everything."""

FILE = "sweep.csv"


class SweepTable(Callback):
    """Collects the summaries of the runs of a sweep into sweep.csv, and prints the main figures.

    The file is written anew after each run, so that a run that fails takes nothing with it.
    """

    def __init__(self) -> None:
        self._overrides: dict[str, dict[str, str]] = {}
        self._summaries: dict[str, dict[str, float]] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the summary of a run that went well."""
        hydra = job_return.hydra_cfg
        if job_return.status is not JobStatus.COMPLETED or hydra is None:
            return
        if hydra.hydra.mode is not RunMode.MULTIRUN:
            return
        directory = Path(hydra.hydra.runtime.output_dir)
        if not (directory / "summary.json").is_file():
            return
        pairs = (str(override).partition("=") for override in hydra.hydra.overrides.task)
        name = str(hydra.hydra.sweep.subdir)
        self._overrides[name] = {key: value for key, _, value in pairs}
        self._summaries[name] = read_summary(directory)
        self._frame().to_csv(Path(hydra.hydra.sweep.dir) / FILE, index_label="run")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print."""
        if not self._summaries:
            return
        console = stdout_console()
        overrides = pd.DataFrame.from_dict(self._overrides, orient="index")
        console.print(sweep_table(overrides.loc[:, overrides.nunique(dropna=False) > 1], self._summaries))
        print_line(console, f"written to {Path(config.hydra.sweep.dir) / FILE}")

    def _frame(self) -> pd.DataFrame:
        """A row a run: its overrides, then its summary."""
        overrides = pd.DataFrame.from_dict(self._overrides, orient="index")
        return overrides.join(pd.DataFrame.from_dict(self._summaries, orient="index"))


def sweep_table(varied: pd.DataFrame, summaries: dict[str, dict[str, float]]) -> Table:
    """One row a run: the overrides that differ between runs, and COLUMNS."""
    table = Table(title="the sweep", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("run", *varied.columns):
        table.add_column(escape(str(name)))
    for metric in COLUMNS:
        table.add_column(f"{label(metric)} {unit(metric)}".strip(), justify="right")
    for run, summary in summaries.items():
        figures = (number(metric, summary[metric]) for metric in COLUMNS)
        table.add_row(*map(escape, map(str, (run, *varied.loc[run]))), *figures)
    return table
