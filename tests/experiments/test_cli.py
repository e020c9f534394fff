"""The command `pagetwin`, and what it does where the extra `engine` is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli
from tests.experiments.cli import QUICK

SMALL = ("workload.num_requests=20", *QUICK)
WITHOUT = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "safetensors", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refused())
from experiments.cli import main
main()
"""
"""A Python in which only what `pip install pagetwin` brings can be imported."""


def without_the_engine(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pagetwin ARGUMENTS` in a process that has no torch."""
    root = Path(__file__).parents[2]
    program = f"import sys; sys.path[:0] = [{str(root)!r}]\n{WITHOUT}"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_simulation_and_a_sweep_need_no_torch(tmp_path: Path) -> None:
    finished = without_the_engine(
        tmp_path, "run", "-m", "backend=simulated", "restore=swap,recompute", "hydra.sweep.dir=out", *SMALL
    )
    assert finished.returncode == 0, finished.stderr
    summaries = sorted((tmp_path / "out").glob("*/summary.json"))
    assert len(summaries) == 2
    assert json.loads(summaries[0].read_text())
    assert (tmp_path / "out" / "sweep.csv").is_file()


def test_an_engine_without_torch_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    finished = without_the_engine(tmp_path, "validate")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    error = finished.stderr.splitlines()[0]
    assert error.startswith("error: ")
    assert "needs torch" in error
    assert "pip install 'pagetwin[engine]'" in error


def test_every_verb_is_listed_and_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pagetwin"])
    cli.main()
    out = capsys.readouterr().out
    for verb, (module, text) in cli.VERBS.items():
        assert verb in out
        assert text in out
        source = Path(__file__).parents[2] / f"{module.replace('.', '/')}.py"
        assert "def main(" in source.read_text(encoding="utf-8")


def test_what_follows_the_verb_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pagetwin", "soak", "--steps", "200", "--seed", "3"])
    cli.main()
    assert capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("rum",), ("sweep",), ("sweep", "gathr")])
def test_a_verb_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pagetwin", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert "no such verb: choose run, validate, calibrate, sweep gather, soak" in capsys.readouterr().err
