"""The README's commands: each is executed, or composed and checked, or listed here with a reason."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.check import check
from experiments.compose import CONF
from experiments.options import RunOptions

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALL = ("workload.num_requests=8", "plots=false", "timeline=false", "journal=off")
ELSEWHERE = {
    "pip install": "installation: .ci/run takes the second from here, in a fresh environment",
    "python -m experiments.validate": "minutes of an engine: tests/experiments/test_validate.py",
    "python -m pagedkv.bench": "needs a GPU: tests/kernels/test_bench.py",
    "python -m experiments.bench_engine": "tests/experiments/test_bench_engine.py",
    "python -m experiments.bench_core": "a measurement of a minute",
    "python -m experiments.bench_sim": "minutes: tests/experiments/test_bench_sim.py",
    "python -m experiments.soak": "hours of random steps: tests/experiments/test_cli.py, tests/laws",
}
"""What is not executed here, by the start of the command, and why."""
FILES = {"workload=mooncake", "workload=prompts"}
"""Runs of files that the user brings."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The commands of all bash blocks, without comments."""
    lines = [line.partition(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def is_elsewhere(command: str) -> bool:
    """Listed above."""
    return command.startswith(tuple(ELSEWHERE))


HERE = [command for command in commands() if not is_elsewhere(command)]
COMPOSED = [c for c in HERE if "backend=torch" in c or any(name in c.split() for name in FILES)]
EXECUTED = [c for c in HERE if c not in COMPOSED]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the repository with the policy of the README and its YAML."""
    for language in ("python", "yaml"):
        for text in blocks(language):
            named = re.match(r"# ([\w/.]+)", text)
            if named is not None:
                path = tmp_path / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def execute(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python -m MODULE ...` in this process, small."""
    _, _, module, *arguments = shlex.split(command)
    if module == "experiments.run":
        small = [*SMALL, "repeats=2"] if "repeats=" in command else SMALL
        keys = tuple(f"{text.partition('=')[0]}=" for text in small)
        arguments = [text for text in arguments if not text.startswith(keys)] + [*small]
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    main: Callable[[], object] = import_module(module).main
    main()


def test_what_is_listed_is_in_the_readme() -> None:
    for start in ELSEWHERE:
        assert any(command.startswith(start) for command in commands()), f"{start}: no longer in the README"
    assert EXECUTED
    assert COMPOSED


def test_the_commands_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in EXECUTED:
        try:
            execute(command, monkeypatch)
        except SystemExit as exit_:
            assert not exit_.code, f"{command}: {capsys.readouterr().err}"
    assert (workplace / "sweep" / "sweep.csv").is_file()
    assert "least_computed" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMPOSED)
def test_commands_of_an_engine_or_a_file_compose(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    assert module == "experiments.run"
    with initialize_config_dir(CONF, version_base="1.3"):
        check(compose("run", overrides=[text for text in arguments if text != "-m"]), RunOptions)


def test_figures_and_pages_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (Path(__file__).parents[1] / link).is_file(), link
