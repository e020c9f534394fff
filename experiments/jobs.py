"""A job of a sweep: its folder, its error, its line.

A job ends in its folder, whatever launcher started it and in whatever process: what it printed is in
output.txt, the error that ended it in error.json, and `.hydra/completed` says that it came to its end. So
one job stops no other, and `experiments.gather` reads everything from the disk.

Hydra would write its files before anybody could look whether the folder is taken, so in a sweep it writes
none (hydra.output_subdir=null, set by `experiments.sweep`), and the job does once the folder is its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from engine.core.errors import UserError
from engine.telemetry.runlog import read_summary
from experiments.tables import label, number, unit

HYDRA = ".hydra"
COMPLETED = "completed"
"""An empty file in HYDRA."""
ERROR = "error.json"
OUTPUT = "output.txt"
SUMMARY = "summary.json"
SWEEP_ID = "PAGETWIN_SWEEP"
"""Environment of a job: which start of which sweep it belongs to. The name of its claim."""
SWEPT = "PAGETWIN_SWEPT"
"""Environment of a job: the keys that differ from job to job."""
SWEEP_KEYS = ("repeats", "resume", "sweep_columns")
"""Keys of the sweep as a whole, that change nothing in a job."""
NUM_FIGURES = 4
"""Metrics in the line of a job: the first of sweep_columns."""


def run_job(main: Callable[[DictConfig, Path], None], config: DictConfig, directory: Path) -> None:
    """Run a job of a sweep in its folder; an error is written there, and not raised.

    A job that has come to its end in a sweep that is resumed is not run again.
    """
    began_s = time.monotonic()
    try:
        if not claim_job(directory, config):
            print_job(directory, "finished before")
            return
    except UserError as error:
        # The folder is not this job's: what it holds stays as it is, and the error gets one of its own.
        directory = directory.with_name(f"{directory.name}-job{HydraConfig.get().job.num}")
        _write_hydra_files(directory, config)
        write_error(directory, error)
    else:
        _run(main, config, directory)
    print_job(directory, f"{time.monotonic() - began_s:.1f} s")


def _run(main: Callable[[DictConfig, Path], None], config: DictConfig, directory: Path) -> None:
    (directory / ERROR).unlink(missing_ok=True)
    try:
        with (directory / OUTPUT).open("w", encoding="utf-8") as output, redirect_stdout(output):
            main(config, directory)
    except KeyboardInterrupt:
        folder = HydraConfig.get().sweep.dir
        hint = (
            f"resume=true hydra.sweep.dir={folder} goes on; python -m experiments.gather {folder} tabulates"
        )
        print(f"interrupted: {hint}", file=sys.stderr)
        raise
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit) or error.code:
            write_error(directory, error)
            return
    (directory / HYDRA / COMPLETED).touch()


def claim_job(directory: Path, config: DictConfig) -> bool:
    """Make a folder this job's; False if it has come to its end there, in a sweep that is resumed.

    Raises:
        UserError: another job of this sweep has the folder, or it holds a run of another configuration.
    """
    claim = directory / HYDRA / f"claim-{os.environ.get(SWEEP_ID, 'sweep')}"
    claim.parent.mkdir(parents=True, exist_ok=True)
    try:
        claim.touch(exist_ok=False)  # of two that try at once, one gets it
    except FileExistsError:
        raise UserError(
            f"{directory} is the folder of another job: hydra.sweep.subdir must differ from job to job"
        ) from None
    if is_completed(directory):
        check_same(directory, config)
        return False
    _write_hydra_files(directory, config)
    return True


def is_completed(directory: Path) -> bool:
    """Whether the job of this folder came to its end. Old folders, without claims, say so by a summary."""
    own = directory / HYDRA
    return (own / COMPLETED).exists() or (not any(own.glob("claim-*")) and (directory / SUMMARY).exists())


def check_same(directory: Path, config: DictConfig) -> None:
    """Refuse to take the run in a folder for one of this configuration if it is not.

    Raises:
        UserError: names the first key that differs.
    """
    old, new = (_leaves(node) for node in (OmegaConf.load(directory / HYDRA / "config.yaml"), config))
    for key in (*new, *old):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{directory} holds a run of another configuration, with {key}={old.get(key)} and not "
                f"{new.get(key)}: choose another hydra.sweep.dir"
            )


def _leaves(config: object) -> dict[str, object]:
    """Every value by its full key, but for SWEEP_KEYS."""
    leaves: dict[str, object] = {}

    def walk(node: object, key: str) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for name, value in items:
            walk(value, f"{key}.{name}" if key else str(name))
        if not isinstance(node, (dict, list)):
            leaves[key] = node

    walk(OmegaConf.to_container(config) if isinstance(config, DictConfig) else config, "")
    return {key: value for key, value in leaves.items() if key.partition(".")[0] not in SWEEP_KEYS}


def _write_hydra_files(directory: Path, config: DictConfig) -> None:
    """What Hydra writes into the folder of a run."""
    folder = directory / HYDRA
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    OmegaConf.save(HydraConfig.instance().cfg, folder / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")


def write_error(directory: Path, error: BaseException) -> None:
    """Keep what ended a job: one line for the table, and where it happened."""
    if isinstance(error, SystemExit):
        text = f"exit code {error.code}: see {OUTPUT}"
    else:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    content = {"error": text, "traceback": "".join(traceback.format_exception(error))}
    (directory / ERROR).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_error(directory: Path) -> str:
    """The line of `write_error`; empty if there is none."""
    path = directory / ERROR
    return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.exists() else ""


def print_job(directory: Path, ending: str) -> None:
    """One line: number, what was swept, the main figures or the error, how long it took."""
    hydra, keys = HydraConfig.get(), os.environ.get(SWEPT, "").split()
    swept = " ".join(text for text in hydra.overrides.task if text.lstrip("+").partition("=")[0] in keys)
    error = read_error(directory)
    print(
        f"#{hydra.job.num} {swept}: {f'FAILED: {error}' if error else _figures(directory)}, {ending}",
        flush=True,
    )


def _figures(directory: Path) -> str:
    if not (directory / SUMMARY).exists():
        return "done"
    summary = read_summary(directory)
    wanted = OmegaConf.select(OmegaConf.load(directory / HYDRA / "config.yaml"), "sweep_columns") or ()
    shown = [metric for metric in ("completed", *wanted) if metric in summary][: 1 + NUM_FIGURES]
    return ", ".join(
        f"{label(metric)} {number(metric, summary[metric])} {unit(metric)}".strip() for metric in shown
    )
