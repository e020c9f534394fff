"""Gather a sweep from the disk: every run below a folder, a row each, whoever made it and however it ended.

python -m experiments.gather multirun/2026-11-25/12-00-00
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from engine.core.errors import UserError
from engine.telemetry.runlog import read_summary
from experiments.errors import plain_errors
from experiments.folders import SWEEP_FILE
from experiments.jobs import HYDRA, SUMMARY, SWEEP_KEYS, is_completed, read_error
from experiments.output import print_line, stdout_console
from experiments.repeats import SEED, paired, points, varied
from experiments.sweep_tables import (
    OF_THE_WORKLOAD,
    check_columns,
    default_columns,
    point_tables,
    shown_metrics,
)

FILE, FIGURE = "sweep.csv", "sweep.png"
STATUS, ERROR = "status", "error"


def gather(folder: Path) -> pd.DataFrame:
    """A row for each run below a folder, by its relative path: overrides, status, error, and its summary.

    The status is completed, failed (with its error) or unfinished: the process was stopped, or has not ended.

    Raises:
        UserError: there is no run.
    """
    runs = sorted((path.parent.parent for path in folder.rglob(f"{HYDRA}/overrides.yaml")), key=_natural)
    if not runs:
        raise UserError(f"{folder} holds no run: nothing below it has {HYDRA}/overrides.yaml")
    names = pd.Index([run.relative_to(folder).as_posix() for run in runs], name="run", dtype="object")
    overrides = pd.DataFrame([overrides_of(run) for run in runs], index=names)
    states = pd.DataFrame([_state(run) for run in runs], index=names)
    metrics = pd.DataFrame([_metrics(run) for run in runs], index=names, dtype="float64")
    table = pd.concat([overrides, states, metrics], axis=1)
    table.attrs["axes"] = list(overrides.columns)
    return table


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Run 10 comes after run 9."""
    return [
        [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", part)][:-1]
        for part in path.parts
    ]


def overrides_of(run: Path) -> dict[str, str]:
    """What was overridden in a run, as it was typed; keys of the sweep as a whole are left out."""
    lines = OmegaConf.to_container(OmegaConf.load(run / HYDRA / "overrides.yaml"))
    assert isinstance(lines, list)
    pairs = (str(line).lstrip("+").partition("=") for line in lines)
    return {key: value for key, _, value in pairs if key not in SWEEP_KEYS}


def _state(run: Path) -> dict[str, str]:
    error = read_error(run)
    status = "completed" if is_completed(run) else "failed" if error else "unfinished"
    return {STATUS: status, ERROR: error}


def _metrics(run: Path) -> dict[str, float]:
    return read_summary(run) if is_completed(run) and (run / SUMMARY).exists() else {}


def report(folder: Path, columns: Sequence[str]) -> bool:
    """Gather a folder, write its tables and its figure, print; whether every run was completed."""
    table = gather(folder)
    console = stdout_console()
    files = write_tables(table, folder, columns) + write_figure(table, folder, columns)
    for printed in point_tables(table, columns, console.width):
        console.print(printed)
    for run, row in table[table[STATUS] != "completed"].iterrows():
        print_line(console, f"{run}: {row[STATUS]} {row[ERROR]}".rstrip(), style="yellow")
    print_line(console, f"written to {', '.join(map(str, files))}")
    return bool((table[STATUS] == "completed").all())


def write_tables(table: pd.DataFrame, folder: Path, columns: Sequence[str]) -> list[Path]:
    """sweep.csv with a row a run; with several seeds, the points and their paired differences too."""
    files = [folder / FILE]
    table.to_csv(files[0])
    if SEED in varied(table):
        metrics = shown_metrics(table, columns)
        for name, frame in (("points", points(table, metrics)), ("paired", paired(table, metrics))):
            if not frame.empty:
                files.append(folder / f"sweep_{name}.csv")
                frame.to_csv(files[-1], index=False)
    return files


def write_figure(table: pd.DataFrame, folder: Path, columns: Sequence[str]) -> list[Path]:
    """sweep.png, if some run was completed."""
    from experiments.figures.style import save  # matplotlib is slow to import
    from experiments.figures.sweep import sweep_figure

    metrics = [metric for metric in columns if metric not in OF_THE_WORKLOAD]
    figure = sweep_figure(table, metrics, title(table, folder))
    return [] if figure is None else [save(figure, folder / FIGURE)]


def title(table: pd.DataFrame, folder: Path) -> str:
    """Model, hardware (or device) and workload of the runs; what differs from run to run is left out."""
    path = folder / str(table.index[0]) / HYDRA / "hydra.yaml"
    choices = OmegaConf.load(path).hydra.runtime.choices if path.exists() else {}
    shared = {name: value for name, value in choices.items() if value and name not in varied(table)}
    machine = " on ".join(str(shared[name]) for name in ("model", "hardware") if name in shared)
    return ", ".join(filter(None, (machine, str(shared.get("workload", "")))))


def columns_of(folder: Path) -> list[str]:
    """sweep_columns as the sweep in this folder had them, or as they are by default."""
    path = folder / SWEEP_FILE
    chosen = OmegaConf.select(OmegaConf.load(path), "sweep_columns") if path.exists() else None
    return list(chosen or default_columns())


@plain_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Raises SystemExit with 1 if some run was not completed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of the sweep, or any folder with runs below it")
    parser.add_argument("--columns", help="metrics to print, with commas between them")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UserError(f"{options.folder} is not a folder")
    columns = columns_of(options.folder) if options.columns is None else options.columns.split(",")
    check_columns(columns)
    if not report(options.folder, columns):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
