"""The folder of a run is its own: claimed before anything is written into it, and never shared."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from engine.telemetry.runlog import create_run_directory
from experiments.jobs import HYDRA, run_job

SWEEP_FILE = "multirun.yaml"
"""What Hydra writes into the folder of a sweep; into that of a run it writes a folder."""


class OwnFolder(Callback):
    """Claims the folder of a run before Hydra writes its own files there.

    The folder that the clock names is made here and nowhere else: if a run of the same second has it, this
    one takes NAME-2. A folder that the user chose must hold neither a run nor a sweep: to go elsewhere would
    leave old results under the name that the user reads.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before `.hydra` is written."""
        HydraConfig.instance().set_config(config)  # hydra.run.dir may refer to it
        chosen = claimed(config, "hydra.run.dir", lambda folder: _claim_run(folder, _hydra_name(config)))
        with flag_override(config.hydra.run, "readonly", False):
            config.hydra.run.dir = str(chosen)


def claimed(config: DictConfig, key: str, claim: Callable[[Path], None]) -> Path:
    """The folder that `key` names, if `claim` gets it, or the next free one if the clock named it."""
    folder = Path(str(OmegaConf.select(config, key)))
    if not any(str(text).partition("=")[0] == key for text in config.hydra.overrides.hydra):
        return create_run_directory(folder.parent, folder.name)
    try:
        claim(folder)
    except FileExistsError:
        # Hydra turns an exception of a callback into a warning, and goes on.
        print(
            f"error: {folder} holds a run or a sweep already: choose another {key}, or remove it"
            + ("; resume=true goes on with a sweep" if key == "hydra.sweep.dir" else ""),
            file=sys.stderr,
        )
        sys.exit(1)
    return folder


def _claim_run(folder: Path, hydra_name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SWEEP_FILE).exists():
        raise FileExistsError
    (folder / hydra_name).mkdir()  # of two that try at once, one gets it


def claim_sweep(folder: Path) -> None:
    """Make a folder that of a sweep. Raises FileExistsError if it holds a run or a sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / HYDRA).exists():
        raise FileExistsError
    (folder / SWEEP_FILE).open("x").close()


def _hydra_name(config: DictConfig) -> str:
    """The folder of Hydra's files in that of a run."""
    return str(config.hydra.output_subdir or HYDRA)


def in_own_folder(main: Callable[[DictConfig, Path], None]) -> Callable[[DictConfig], None]:
    """Decorate an entry point: hand it its folder, and free that again if it ends before it wrote there.

    A job of a sweep keeps its folder, with the error that ended it: see `experiments.jobs`.
    """

    @functools.wraps(main)
    def guarded(config: DictConfig) -> None:
        hydra = HydraConfig.get()
        directory = Path(hydra.runtime.output_dir)
        if hydra.mode is RunMode.MULTIRUN:
            run_job(main, config, directory)
            return
        own = directory / str(hydra.output_subdir or HYDRA)
        try:
            main(config, directory)
        except BaseException:
            if all(path == own for path in directory.iterdir()):
                shutil.rmtree(own, ignore_errors=True)
            raise

    return guarded
