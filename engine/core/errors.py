"""The one base class of what a user can put right; every other exception is a bug and shows where."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what was asked for: a value, a key, a file, a request.

    The message names the key, file or line and says what to do. Entry points print it in one line; any other
    exception keeps its traceback.
    """
