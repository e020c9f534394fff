"""A sweep (-m): what is done before its first job and after its last. The rest is Hydra's."""

from __future__ import annotations

import functools
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from engine.core.errors import UserError
from engine.core.fields import Count, check_value
from experiments.errors import plain_errors
from experiments.folders import SWEEP_FILE, claim_sweep, claimed
from experiments.gather import report
from experiments.jobs import SWEEP_ID, SWEPT
from experiments.sweep_tables import check_columns


def loud(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate a method of a callback: end the process where it fails; Hydra would warn and go on."""

    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            plain_errors(method)(*args, **kwargs)
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    return guarded


class Sweep(Callback):
    """Claims the folder of a sweep, seeds its points, and gathers it at the end."""

    @loud
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before `multirun.yaml` is written. Each job composes its configuration anew, from the overrides."""
        HydraConfig.instance().set_config(config)
        check_value("repeats", config.repeats, Count)
        check_value("resume", config.resume, bool)
        check_columns(config.sweep_columns)
        overrides = expanded(list(config.hydra.overrides.task), config.repeats, config.seed)
        if config.resume:
            folder = resumed(config, overrides)
        else:
            folder = claimed(config, "hydra.sweep.dir", claim_sweep)
        with flag_override(config.hydra, "readonly", False):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.task = overrides
            config.hydra.overrides.hydra += [
                f"hydra.sweep.dir={_quoted(str(folder))}",
                "hydra.output_subdir=null",  # see experiments.jobs
                f"+hydra.job.env_set.{SWEEP_ID}=id{uuid.uuid4().hex[:12]}",
                f"+hydra.job.env_set.{SWEPT}={_quoted(' '.join(swept_keys(overrides)))}",
            ]

    @loud
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather and print. Ends the process with 1 if some job was not completed."""
        if not report(Path(config.hydra.sweep.dir), list(config.sweep_columns)):
            sys.exit(1)


def expanded(overrides: Sequence[str], repeats: int, seed: int) -> list[str]:
    """The overrides of the jobs: without the keys that end here, and with `seed` as a sweep over the repeats.

    Raises:
        UserError: repeats or resume is swept, or both repeats and several seeds are given.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for key in ("repeats", "resume"):
        if any(override.key_or_group == key and override.is_sweep_override() for override in parsed):
            raise UserError(f"{key} is of the sweep as a whole: give one value")
    kept = [override for override in parsed if override.key_or_group not in ("repeats", "resume")]
    if repeats == 1:
        return [str(override.input_line) for override in kept]
    if any(override.key_or_group == "seed" and override.is_sweep_override() for override in kept):
        raise UserError("repeats chooses the seeds, from `seed` on: give one seed, or leave repeats out")
    lines = [str(override.input_line) for override in kept if override.key_or_group != "seed"]
    return [*lines, f"seed=range({seed},{seed + repeats})"]


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that differ from job to job."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def resumed(config: DictConfig, overrides: Sequence[str]) -> Path:
    """The folder of the sweep to go on with.

    Raises:
        UserError: it holds no sweep, or one of other overrides.
    """
    folder = Path(str(config.hydra.sweep.dir))
    path = folder / SWEEP_FILE
    if not path.exists():
        raise UserError(f"{folder} holds no sweep: resume=true needs hydra.sweep.dir=FOLDER of the old one")
    old = OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task")
    if old is not None and list(old) != list(overrides):  # None: it was stopped before its first job
        raise UserError(
            f"{folder} holds a sweep of other overrides ({' '.join(old)}): resume it with the same, in "
            "the same order, or choose another hydra.sweep.dir"
        )
    return folder


def _quoted(text: str) -> str:
    """A value in the grammar of Hydra's overrides."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
