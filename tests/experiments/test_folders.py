"""A folder holds one run, and what is printed and listed of a run is its own."""

from __future__ import annotations

from datetime import datetime
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from engine.telemetry.runlog import read_summary
from experiments import run, validate
from experiments.output import print_files, print_unserved
from experiments.sweep_tables import default_columns, point_tables
from experiments.tables import summary_table
from experiments.validation_tables import comparison_table, winners_table
from tests.experiments.cli import QUICK, Cli
from tests.telemetry.scripted import two_requests

FEW = (*QUICK, "workload.num_requests=3")
BAD = (*QUICK, "workload.num_requests=0")


class StoppedClock(datetime):
    """It is always the same second."""

    @classmethod
    def now(cls, tz: object = None) -> StoppedClock:
        return cls(2026, 11, 25, 12, 0, 0)


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydra.core.utils.datetime", StoppedClock)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("one_second")
def test_runs_of_one_second_have_folders_of_their_own(cli: Cli, tmp_path: Path) -> None:
    for seed, name in ((1, "12-00-00"), (2, "12-00-00-2"), (3, "12-00-00-3")):
        finished = cli.as_typed(run.main, *FEW, f"seed={seed}")
        folder = tmp_path / "outputs/run/2026-11-25" / name
        assert finished.code == 0, finished.err
        assert f"written to {folder}:" in finished.out
        assert f"seed: {seed}" in (folder / "config.yaml").read_text()
        assert f"seed={seed}" in (folder / ".hydra/overrides.yaml").read_text()


@pytest.mark.usefixtures("one_second")
def test_sweeps_of_one_second_have_folders_of_their_own(cli: Cli, tmp_path: Path) -> None:
    for name, seeds in (("12-00-00", (1, 2)), ("12-00-00-2", (3, 4))):
        seed = ",".join(map(str, seeds))
        finished = cli.as_typed(run.main, "-m", *FEW, f"seed={seed}")
        folder = tmp_path / "multirun/2026-11-25" / name
        assert finished.code == 0, finished.err
        assert pd.read_csv(folder / "sweep.csv")["seed"].tolist() == list(seeds)
        for job, seed in enumerate(seeds):
            assert f"seed: {seed}" in (folder / str(job) / "config.yaml").read_text()


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_written(cli: Cli) -> None:
    assert cli(run.main, "workload.num_requests=3").code == 0
    before = {name: (cli.directory / name).read_bytes() for name in files(cli.directory)}
    for again in (
        cli.again(run.main, *FEW, "seed=1"),
        cli.again(run.main, "-m", *FEW, "seed=1,2"),
        cli.again(validate.main),
    ):
        assert again.code == 1
        assert f"error: {cli.directory} holds a run or a sweep already: choose another hydra." in again.err
        assert again.out == ""
    assert {name: (cli.directory / name).read_bytes() for name in files(cli.directory)} == before


def test_a_folder_that_holds_a_sweep_is_refused(cli: Cli) -> None:
    assert cli(run.main, "-m", *FEW, "seed=1,2").code == 0
    assert "choose another hydra.run.dir" in cli.again(run.main, *FEW).err
    assert "choose another hydra.sweep.dir" in cli.again(run.main, "-m", *FEW, "seed=1,2").err


def test_a_folder_is_free_again_after_a_run_that_did_not_start(cli: Cli) -> None:
    assert cli(run.main, *BAD).code == 1
    assert files(cli.directory) == set()
    assert cli.again(run.main, *FEW).code == 0


def test_only_files_of_this_run_are_listed(cli: Cli) -> None:
    """A journal or a figure that lies in the folder already is not claimed."""
    folder = cli.directory = cli.directory / "run"
    folder.mkdir(parents=True)
    for name in ("journal.jsonl", "memory.png"):
        (folder / name).write_text("of somebody else")
    finished = cli.again(run.main, *FEW)
    assert finished.code == 0
    assert "journal.jsonl" not in finished.out and "memory.png" not in finished.out


def test_square_brackets_in_a_folder_and_in_what_is_swept(cli: Cli) -> None:
    cli.directory = cli.directory.parent / "[bold]x[/red]"
    swept = "hardware.name='[/red]','[bold]b'"
    finished = cli.again(run.main, "-m", *FEW, swept)
    assert finished.code == 0, finished.err
    assert f"written to {cli.directory}/sweep.csv" in finished.out
    assert read_summary(cli.directory / "1")["num_requests"] == 3


def printed(*things: object) -> str:
    console = Console(file=StringIO(), width=200)
    for thing in things:
        console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["[bold]", "[/red]", "a[red]b", "\\[x]"])
def test_no_name_is_read_as_markup(name: str) -> None:
    row = {"load": None, "policy": name, "metric": "mean_e2el_ms", "answer": "holds"}
    errors = (
        "simulated",
        "measured",
        "error",
        "error_half",
        "unbiased",
        "half",
        "undrifted",
        "followed",
        "followed_half",
        "spread",
    )
    comparison = pd.DataFrame([{**row, **dict.fromkeys((*errors, "ensemble", "limit"), 1.0)}])
    summary = dict.fromkeys(default_columns(), 1.0)
    gathered = pd.DataFrame(
        {name: ["a", name], "status": "completed", "mean_e2el_ms": 1.0}, index=["0", name]
    )
    gathered.attrs["axes"] = [name]
    for table in (
        summary_table({name: summary}),
        comparison_table(comparison, None, name),
        winners_table(comparison, None),
        *point_tables(gathered, ["mean_e2el_ms"], 200),
    ):
        assert name in printed(table)


def test_lines_are_printed_as_they_are() -> None:
    console = Console(file=StringIO(), width=20)
    folder = Path("/somewhere/[bold]/else")
    print_files(console, folder, [folder / "[red].json"])
    log = two_requests().log()
    log.requests["status"] = "rejected"
    log.requests["reason"] = "because [red] is too long"
    print_unserved(console, log)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.splitlines()[:2] == ["written to /somewhere/[bold]/else:", "  [red].json"]
    assert "because [red] is too long" in text
