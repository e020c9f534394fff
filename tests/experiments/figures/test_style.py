from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import figures
from experiments.figures.latency import latency_figure
from experiments.figures.memory import memory_figure
from experiments.figures.style import save
from tests.telemetry.scripted import Script, two_requests

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("script", [two_requests(), Script()], ids=["two requests", "empty"])
def test_equal_figures_are_equal_files(script: Script, tmp_path: Path) -> None:
    log = script.log()
    for draw in (memory_figure, lambda log: latency_figure({"run": log.requests})):
        first, second = (save(draw(log), tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
        assert first[:8] == PNG and first == second


def test_plotting_leaves_pyplot_alone() -> None:
    modules = ", ".join(f"experiments.figures.{path.stem}" for path in Path(figures.__path__[0]).glob("*.py"))
    code = f"import sys, {modules}; print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"
