"""Expected errors become one line on stderr and a non-zero exit code; a bug keeps its traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from omegaconf.errors import OmegaConfBaseException

from engine.core.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


EXPECTED = (UserError, OmegaConfBaseException)
"""What a user can put right; everything else is a bug."""


def plain_errors(main: Callable[P, T]) -> Callable[P, T]:
    """Decorate an entry point: print `error: ...` and exit with 1 where an expected error ends it.

    With PAGETWIN_TRACEBACK=1 in the environment the exception is let through.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except EXPECTED as error:
            if os.environ.get("PAGETWIN_TRACEBACK") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            print("(PAGETWIN_TRACEBACK=1 shows where)", file=sys.stderr)
            sys.exit(1)

    return guarded
