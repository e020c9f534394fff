"""A sweep loses nothing: what failed, what was stopped, what another process ran."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments import gather, run
from experiments.analysis import serve
from experiments.figures.sweep import sweep_figure
from experiments.jobs import COMPLETED
from experiments.repeats import estimate, paired
from experiments.sweep import expanded
from experiments.sweep_tables import default_columns, known_metrics, point_tables
from tests.experiments.cli import QUICK, Cli

POINTS = ("-m", *QUICK, "workload.num_requests=5", "restore=swap,recompute", "limits.max_num_seqs=2,0")
"""Four points; those without a sequence fail."""


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep.csv", index_col="run")


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_stopped_sweep_is_resumed_to_the_table_of_an_undisturbed_one(cli: Cli, launcher: str) -> None:
    arguments = (*POINTS, f"hydra/launcher={launcher}")
    finished = cli(run.main, *arguments)
    assert finished.code == 1
    assert_failed_points_are_rows(cli.directory)
    if launcher == "basic":  # other processes do not write where pytest looks
        lines = finished.out.splitlines()
        assert [line.partition(" ")[0] for line in lines[:4]] == [f"#{job}" for job in range(4)]
        assert lines[1].startswith("#1 restore=swap limits.max_num_seqs=0: FAILED: limits.max_num_seqs")
    undisturbed = (cli.directory / "sweep.csv").read_bytes()
    stop_in_the_middle(cli.directory)
    gathered = cli.as_typed(gather.main, str(cli.directory))
    assert gathered.code == 1
    assert table_of(cli.directory)["status"].tolist() == ["completed", "failed", "unfinished"]
    before = (cli.directory / "0/steps.parquet").stat().st_mtime_ns
    assert cli.again(run.main, *arguments, "resume=true").code == 1
    assert (cli.directory / "sweep.csv").read_bytes() == undisturbed
    assert (cli.directory / "0/steps.parquet").stat().st_mtime_ns == before


def assert_failed_points_are_rows(folder: Path) -> None:
    table = table_of(folder)
    assert table["status"].tolist() == ["completed", "failed"] * 2
    assert table["error"][1].startswith("limits.max_num_seqs")
    assert "Traceback" in json.loads((folder / "1/error.json").read_text())["traceback"]


def stop_in_the_middle(folder: Path) -> None:
    """As if the process had been killed in its third job."""
    (folder / "sweep.csv").unlink()
    shutil.rmtree(folder / "3")
    (folder / "2/.hydra" / COMPLETED).unlink()
    (folder / "2/summary.json").write_text('{"half')


def test_a_sweep_is_not_resumed_as_another(cli: Cli) -> None:
    few = ("-m", *QUICK, "workload.num_requests=3")
    assert cli(run.main, *few, "seed=1,2").code == 0
    before = table_of(cli.directory)
    other = cli.again(run.main, *few, "seed=1,3", "resume=true")
    assert other.code == 1
    assert "holds a sweep of other overrides" in other.err
    config = cli.directory / "0/.hydra/config.yaml"
    config.write_text(
        config.read_text().replace("journal: 'off'", "journal: plans")
    )  # a YAML of conf/ has changed
    changed = cli.again(run.main, *few, "seed=1,2", "resume=true")
    assert changed.code == 1
    assert "holds a run of another configuration, with journal=plans and not off" in changed.out
    after = table_of(cli.directory)
    assert after["status"].to_dict() == {"0": "completed", "0-job0": "failed", "1": "completed"}
    assert after.loc[["0", "1"], "mean_e2el_ms"].tolist() == before["mean_e2el_ms"].tolist()


def test_jobs_of_a_sweep_do_not_share_a_folder(cli: Cli) -> None:
    finished = cli(run.main, "-m", *QUICK, "workload.num_requests=3", "seed=1,2", "hydra.sweep.subdir=a/same")
    table = table_of(cli.directory)
    assert finished.code == 1
    assert table["status"].to_dict() == {"a/same": "completed", "a/same-job1": "failed"}
    assert "hydra.sweep.subdir must differ from job to job" in table["error"]["a/same-job1"]
    for name in ("config.yaml", ".hydra/config.yaml"):
        assert "seed: 1" in (cli.directory / "a/same" / name).read_text()


def test_repeats_are_seeds(cli: Cli) -> None:
    finished = cli(run.main, "-m", *QUICK, "workload.num_requests=20", "seed=5", "repeats=2")
    assert finished.code == 0, finished.err
    assert table_of(cli.directory)["seed"].tolist() == [5, 6]
    points = pd.read_csv(cli.directory / "sweep_points.csv")
    assert (points["num_runs"] == 2).all()
    assert " ± " in finished.out


@pytest.mark.parametrize(
    ("overrides", "error"),
    [(["repeats=2,3"], "repeats is of the sweep"), (["seed=1,2"], "repeats chooses the seeds")],
)
def test_repeats_are_given_once(overrides: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        expanded(overrides, 2, 0)


def test_columns_are_metrics(cli: Cli) -> None:
    finished = cli(run.main, "-m", *QUICK, "seed=1,2", "sweep_columns=[p42_ttft_ms]")
    assert finished.code == 1
    assert "p42_ttft_ms is no metric: choose from num_requests, completed" in finished.err


def test_students_interval() -> None:
    """Table of t: 4.303 at 97.5 % and 2 degrees of freedom."""
    result = estimate([1.0, 2.0, 3.0, float("nan")])
    assert (result.mean, result.num_runs) == (2.0, 3)
    assert result.half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_differences_are_taken_seed_by_seed() -> None:
    """Seeds differ by a factor of 10, policies by 1 %: paired, there is no noise."""
    rows = [
        {"restore": name, "seed": str(seed), "x": 10.0**seed * factor, "status": "completed"}
        for name, factor in (("swap", 1.0), ("recompute", 1.01))
        for seed in (3, 1, 2)
    ]
    table = pd.DataFrame(rows[:3] + rows[:2:-1])
    table.attrs["axes"] = ["restore", "seed"]
    (difference,) = paired(table, ["x"]).to_dict("records")
    assert difference["against"] == "swap" and difference["restore"] == "recompute"
    assert difference["mean"] == pytest.approx(1.0) and difference["half"] == pytest.approx(0.0, abs=1e-9)


def gathered(*rows: dict[str, object]) -> pd.DataFrame:
    table = pd.DataFrame([{"status": "completed", **row} for row in rows])
    table.attrs["axes"] = ["restore", "rate", "seed"]
    return table


def test_the_figure_has_a_line_a_choice_over_the_first_number_and_intervals_of_the_seeds() -> None:
    table = gathered(
        *(
            {"restore": name, "rate": str(rate), "seed": str(seed), "x": rate * factor + seed}
            for name, factor in (("swap", 1.0), ("recompute", 2.0))
            for rate in (4, 2, 10)
            for seed in (0, 2)
        )
    )
    figure = sweep_figure(table, ["x", "nothing"])
    assert figure is not None
    (axes,) = figure.axes
    lines = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert list(lines) == ["swap", "recompute"]
    assert lines["recompute"].get_xydata().tolist() == [[2, 5], [4, 9], [10, 21]]
    ends = axes.containers[0].lines[2][0].get_segments()[0]
    assert ends[1][1] - ends[0][1] == pytest.approx(2 * 12.706, rel=1e-3)  # Student's t, 1 degree of freedom


def test_without_a_number_there_are_bars_and_without_a_run_no_figure() -> None:
    run = {"rate": "1", "seed": "0", "x": 1.0}
    table = gathered(*({"restore": name, **run} for name in ("swap", "recompute")))
    figure = sweep_figure(table, ["x"], "a title")
    assert figure is not None and len(figure.axes[0].patches) == 2
    assert figure.get_suptitle() == "a title"
    assert sweep_figure(table, ["y"]) is None


def test_points_without_intervals_stand_where_they_belong() -> None:
    """Lines are moved apart for the sake of their intervals only."""
    rows = [
        {"restore": name, "rate": rate, "x": float(rate)} for name in ("swap", "recompute") for rate in "24"
    ]
    alone = gathered(*({**row, "seed": "0"} for row in rows))
    several = gathered(*({**row, "seed": seed, "x": float(seed)} for row in rows for seed in "01"))
    for table, is_moved in ((alone, False), (several, True)):
        figure = sweep_figure(table, ["x"])
        assert figure is not None
        (axes,) = figure.axes
        places = [bars.lines[0].get_transform().transform((2, 2)) for bars in axes.containers]
        assert (places[0].tolist() != places[1].tolist()) is is_moved


def test_no_figure_of_the_table_is_cut() -> None:
    columns = dict.fromkeys(default_columns(), 123456.0)
    table = gathered({"restore": "swap", **columns}, {"restore": "x" * 60, **columns})
    table = table.assign(rate="1", seed="0")
    for width in (60, 110, 1000):
        console = Console(file=StringIO(), width=width)
        console.print(*point_tables(table, default_columns(), width))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "…" not in text and max(map(len, text.splitlines())) <= width
        assert text.count("123,456") == 2 * (len(columns) - 1), text


def test_every_metric_of_a_run_can_be_a_column() -> None:
    clients = "workload.shape.clients={ann: 1, bob: 1}"
    assert set(serve("workload.num_requests=5", clients, "slo_ms.ttft=100").summary) == set(known_metrics())
