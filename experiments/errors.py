"""Expected errors become one line on stderr and a non-zero exit code; a bug keeps its traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from engine.core.errors import UserError
from experiments.check import check
from experiments.compose import CONF
from experiments.folders import in_own_folder
from experiments.options import check_world

P = ParamSpec("P")
T = TypeVar("T")


EXPECTED = (UserError, OmegaConfBaseException)
"""What a user can put right; everything else is a bug."""


Main = Callable[[DictConfig, Path], None]


def entry_point(name: str, options: type) -> Callable[[Main], Callable[[], None]]:
    """Decorate a main: it gets a configuration and a folder of its own.

    The configuration is conf/`name`.yaml with the overrides of the command line, checked as `options` says
    before anything is built. With `--quick` it is conf/`name`_quick.yaml, where there is one. A bug shows its
    whole traceback, as Hydra has it with HYDRA_FULL_ERROR=1.
    """

    def decorate(main: Main) -> Callable[[], None]:
        @plain_errors
        @in_own_folder
        @functools.wraps(main)
        def job(config: DictConfig, directory: Path) -> None:
            check(config, options)
            check_world(config)
            main(config, directory)

        composed = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)

        @functools.wraps(main)
        def command() -> None:
            # Otherwise Hydra prints its own errors and ends the process before anybody can add the choices.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            if (Path(CONF) / f"{name}_quick.yaml").exists():
                sys.argv = [f"--config-name={name}_quick" if word == "--quick" else word for word in sys.argv]
            try:
                composed()
            except CompactHydraException as error:
                refuse(error, composition_text(error))

        return command

    return decorate


def plain_errors(main: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function: print `error: ...` and exit with 1 where an expected error ends it.

    With PAGETWIN_TRACEBACK=1 in the environment the exception is let through.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except EXPECTED as error:
            refuse(error, str(error))

    return guarded


def refuse(error: Exception, text: str) -> NoReturn:
    """Print the message and exit with 1; with PAGETWIN_TRACEBACK=1 raise the error itself."""
    if os.environ.get("PAGETWIN_TRACEBACK") == "1":
        raise error
    print(f"error: {text}", file=sys.stderr)
    print("(PAGETWIN_TRACEBACK=1 shows where)", file=sys.stderr)
    sys.exit(1)


def composition_text(error: CompactHydraException) -> str:
    """What Hydra says of a command line that it cannot compose, with the keys that there are."""
    cause = error.__cause__
    text = str(error)
    if not isinstance(cause, OmegaConfBaseException):
        return text
    siblings = cause.parent_node.keys() if isinstance(cause.parent_node, DictConfig) else ()
    names = [str(name) for name in siblings if name != "hydra" and not str(name).startswith("_")]
    return (
        f"{text.splitlines()[0]} {str(cause).splitlines()[0]}: choose {', '.join(names)}" if names else text
    )
