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

from engine.core.errors import UserError
from engine.telemetry.runlog import create_run_directory

SWEEP_FILE = "multirun.yaml"
"""What Hydra writes into the folder of a sweep; into that of a run it writes a folder, `.hydra`."""


class OwnFolder(Callback):
    """Claims the folder of a run or of a sweep before Hydra writes its own files there.

    The folder that the clock names is made here and nowhere else: if a run of the same second has it, this
    one takes NAME-2. A folder that the user chose must hold neither a run nor a sweep: to go elsewhere would
    leave old results under the name that the user reads.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before `.hydra` is written."""
        HydraConfig.instance().set_config(config)  # hydra.run.dir may refer to it
        chosen = self._claim(config, "hydra.run.dir", lambda folder: _claim_run(folder, _hydra_name(config)))
        with flag_override(config.hydra.run, "readonly", False):
            config.hydra.run.dir = str(chosen)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before `multirun.yaml` is written. Each job composes its configuration anew, from the overrides."""
        HydraConfig.instance().set_config(config)
        chosen = self._claim(config, "hydra.sweep.dir", _claim_sweep)
        with flag_override(config.hydra, "readonly", False):
            config.hydra.sweep.dir = str(chosen)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(str(chosen))}")

    def _claim(self, config: DictConfig, key: str, claim: Callable[[Path], None]) -> Path:
        folder = Path(str(OmegaConf.select(config, key)))
        if not any(str(text).partition("=")[0] == key for text in config.hydra.overrides.hydra):
            return create_run_directory(folder.parent, folder.name)
        try:
            claim(folder)
        except FileExistsError:
            # Hydra turns an exception of a callback into a warning, and goes on.
            print(f"error: {_taken(folder)}: choose another {key}, or remove it", file=sys.stderr)
            sys.exit(1)
        return folder


def _taken(folder: Path) -> str:
    return f"{folder} holds a run or a sweep already"


def _claim_run(folder: Path, hydra_name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SWEEP_FILE).exists():
        raise FileExistsError
    (folder / hydra_name).mkdir()  # of two that try at once, one gets it


def _claim_sweep(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ".hydra").exists():
        raise FileExistsError
    (folder / SWEEP_FILE).open("x").close()


def _hydra_name(config: DictConfig) -> str:
    """The folder of Hydra's files in that of a run."""
    return str(config.hydra.output_subdir or ".hydra")


def _quoted(text: str) -> str:
    """A value in the grammar of Hydra's overrides."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def in_own_folder(main: Callable[[DictConfig, Path], None]) -> Callable[[DictConfig], None]:
    """Decorate an entry point: hand it its folder, and free that again if it ends before it wrote there.

    Raises:
        UserError: another job of the sweep has written into this folder.
    """

    @functools.wraps(main)
    def guarded(config: DictConfig) -> None:
        hydra = HydraConfig.get()
        directory = Path(hydra.runtime.output_dir)
        own = directory / str(hydra.output_subdir or ".hydra")
        if hydra.mode is RunMode.MULTIRUN and _written(directory, own):
            raise UserError(f"{_taken(directory)}: hydra.sweep.subdir must differ from job to job")
        try:
            main(config, directory)
        except BaseException:
            if not _written(directory, own):
                shutil.rmtree(own, ignore_errors=True)
            raise

    return guarded


def _written(directory: Path, own: Path) -> bool:
    """Whether there is anything beside Hydra's files."""
    return any(path != own for path in directory.iterdir())
