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
        self.directory = directory
        """Where a single run writes."""

    def __call__(self, main: Callable[[], object], *arguments: str) -> Finished:
        """Run it to its end."""
        folder = [f"hydra.run.dir={self.directory}", f"hydra.sweep.dir={self.directory}"]
        self._monkeypatch.setattr(sys, "argv", ["command", *arguments, *folder])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        return Finished(code, *self._capsys.readouterr())
