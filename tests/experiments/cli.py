"""Entry points in the test's own process: a command line without the start of an interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

QUICK = ("plots=false", "timeline=false", "journal=off")


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Cli:
    """Runs `main` with command line arguments, in a folder of the test."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], directory: Path
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._root = directory
        self._num_runs = 0
        self.directory = directory
        """Where the last run has written."""

    def __call__(self, main: Callable[[], object], *arguments: str) -> Finished:
        """Run it to its end, in a folder of its own."""
        self._num_runs += 1
        self.directory = self._root / f"run-{self._num_runs}"
        return self.again(main, *arguments)

    def again(self, main: Callable[[], object], *arguments: str) -> Finished:
        """Run it to its end in the folder of the last run."""
        folder = f"'{self.directory}'"
        return self.as_typed(main, *arguments, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}")

    def as_typed(self, main: Callable[[], object], *arguments: str) -> Finished:
        """Run it to its end, in the folder that it takes by itself."""
        self._monkeypatch.setattr(sys, "argv", ["command", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        return Finished(code, *self._capsys.readouterr())
