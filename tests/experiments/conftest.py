from __future__ import annotations

from pathlib import Path

import pytest
import transformers  # noqa: F401  its log handler keeps the stderr of its first import, so not that of one test

from tests.experiments.cli import Cli


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys, tmp_path / "out")
