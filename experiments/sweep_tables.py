"""What is printed of a sweep: a row a run or, with several seeds, a row a point; wrapped, never cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf
from rich import box
from rich.markup import escape
from rich.table import Table

from engine.core.errors import UserError
from engine.core.spec import Capacity
from engine.telemetry.metrics import summarize
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import RunLog
from engine.telemetry.schema import World
from experiments.compose import CONF
from experiments.repeats import SEED, by, estimate, paired, point_axes, varied
from experiments.tables import label, number, unit

OF_THE_WORKLOAD = (
    "offered_rate_per_s", "workload_num_available", "workload_scale", "workload_changed_share",
    "workload_too_long_share", "workload_token_share",
)  # fmt: skip
"""What sim.workloads.treatment adds to the summary."""
OF_CLIENTS = ("num_clients", "jain_index")
"""What engine.telemetry.clients adds where requests have clients."""
IF_ANY = ("num_rejected", "num_failed", "num_aborted", "num_unfinished", "num_fallbacks", "saturated")
"""Shown whenever one run has any."""
IF_DEFINED = ("request_goodput", "slo_attainment", "jain_index")
"""Shown whenever there are limits, or clients."""
GAP = 3
"""Characters between two columns."""
MAX_KEY_WIDTH = 36
"""Longer overrides are folded into lines."""


@cache
def known_metrics() -> tuple[str, ...]:
    """Every metric that a summary can have: those of a run of nothing, with limits, and of its workload."""
    nothing = RunLog.of(Recorder(), World.SIMULATED, Capacity(1, 0, 1))
    return (*summarize(nothing, {"ttft": 1.0}), *OF_CLIENTS, *OF_THE_WORKLOAD)


def check_columns(columns: Sequence[str]) -> None:
    """Refuse metrics that no summary has.

    Raises:
        UserError: names the first, and lists all that there are.
    """
    for column in columns:
        if column not in known_metrics():
            raise UserError(f"sweep_columns: {column} is no metric: choose from {', '.join(known_metrics())}")


def default_columns() -> list[str]:
    """sweep_columns of conf/run.yaml."""
    return list(OmegaConf.load(Path(CONF) / "run.yaml").sweep_columns)


def shown_metrics(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The metrics to print: completed, what there is any of, the columns that were chosen, goodput."""
    some = [metric for metric in IF_ANY if metric in table and (table[metric].fillna(0) != 0).any()]
    goodput = [metric for metric in IF_DEFINED if metric in table and table[metric].notna().any()]
    wanted = dict.fromkeys(("completed", *some, *columns, *goodput))
    return [metric for metric in wanted if metric in table and table[metric].notna().any()]


def point_tables(table: pd.DataFrame, columns: Sequence[str], width: int) -> Iterator[Table]:
    """The tables of a gathered sweep, each no wider than `width` characters if its columns allow it."""
    metrics = shown_metrics(table, columns)
    if SEED not in varied(table):
        yield from _tables("the sweep", _run_cells(table, metrics), width)
        return
    yield from _tables("the sweep, mean and 95 % interval over seeds", _point_cells(table, metrics), width)
    differences = paired(table, metrics)
    if not differences.empty:
        title = "difference in % on equal seeds, mean and 95 % interval"
        some = differences.groupby("metric")["mean"].transform(
            lambda means: bool((means.fillna(0) != 0).any())
        )
        if some.any():
            yield from _tables(title, _paired_cells(differences[some]), width)


Cells = tuple[pd.DataFrame, pd.DataFrame]
"""What names the rows, and their figures; all of it text."""


def _run_cells(table: pd.DataFrame, metrics: Sequence[str]) -> Cells:
    names = table[varied(table)].fillna("").astype(str)
    names.insert(0, "run", table.index)
    if (table["status"] != "completed").any():
        names["status"] = table["status"]
    figures = {_header(metric): [number(metric, value) for value in table[metric]] for metric in metrics}
    return names, pd.DataFrame(figures, index=table.index)


def _point_cells(table: pd.DataFrame, metrics: Sequence[str]) -> Cells:
    axes, names, figures = point_axes(table), [], []
    for key, runs in by(table, axes).items():
        num_completed = int((runs["status"] == "completed").sum())
        of = f"{num_completed}" if num_completed == len(runs) else f"{num_completed} of {len(runs)}"
        names.append({**dict(zip(axes, key, strict=True)), "runs": of})
        row = {metric: estimate(runs[metric].to_list()) for metric in metrics}
        figures.append(
            {
                _header(name): _with_interval(number(name, it.mean), number(name, it.half))
                for name, it in row.items()
            }
        )
    return pd.DataFrame(names), pd.DataFrame(figures)


def _paired_cells(differences: pd.DataFrame) -> Cells:
    axes = [name for name in differences.columns if name not in ("metric", "mean", "half", "num_runs")]
    names, figures = [], []
    for key, rows in by(differences, axes).items():
        names.append(dict(zip(axes, key, strict=True)))
        figures.append(
            {
                label(str(row["metric"])): _with_interval(
                    _percent(row["mean"], "+"), _percent(row["half"], "")
                )
                for row in rows.to_dict("records")
            }
        )
    return pd.DataFrame(names), pd.DataFrame(figures)


def _percent(value: float, sign: str) -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.2f}"


def _with_interval(mean: str, half: str) -> str:
    return mean if half == "-" else f"{mean} ± {half}"


def _header(metric: str) -> str:
    return f"{label(metric)}\n{unit(metric)}".strip()


def _tables(title: str, cells: Cells, width: int) -> Iterator[Table]:
    """As many tables as it takes, each with the names of the rows."""
    names, figures = cells
    room = width - sum(min(_width(names, column), MAX_KEY_WIDTH + GAP) for column in names)
    packs: list[list[object]] = [[]]
    left = room
    for column in figures:
        needed = _width(figures, column)
        if needed > left and packs[-1]:
            packs.append([])
            left = room
        packs[-1].append(column)
        left -= needed
    for i, pack in enumerate(packs):
        yield _table(title if i == 0 else f"{title}, continued", names, figures[pack])


def _width(frame: pd.DataFrame, column: object) -> int:
    """Characters of a column, with the gap to the next."""
    texts = [str(column), *map(str, frame[column])]
    return GAP + max(len(line) for text in texts for line in text.split("\n"))


def _table(title: str, names: pd.DataFrame, figures: pd.DataFrame) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in names:
        table.add_column(escape(str(column)), overflow="fold", max_width=MAX_KEY_WIDTH)
    for column in figures:
        least = _width(figures, column) - GAP
        table.add_column(escape(str(column)), justify="right", no_wrap=True, min_width=least)
    for name, figure in zip(names.to_numpy(), figures.to_numpy(), strict=True):
        table.add_row(*(escape(str(text)) for text in (*name, *figure)))
    return table
