"""The benchmark of simulations reads what runs of a checkout cost."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from experiments import bench_sim
from experiments.by_turns import HERE


def test_a_simulation_of_this_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    bench_sim.main(["--requests", "4", "--rates", "4.5", "--json", "timeline=false", "journal=off"])
    figures = json.loads(capsys.readouterr().out)
    assert {name.partition(": ")[0] for name in figures} == {"4.5 requests/s"}
    (process_s, loop_s, steps_per_s, requests_per_s, rss_mib) = (values[0] for values in figures.values())
    assert requests_per_s * loop_s == pytest.approx(4)
    assert steps_per_s > requests_per_s
    assert process_s > loop_s > 0
    assert 20 < rss_mib < 2000


def test_checkouts_take_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    for name, loop_s in (("there", 4.0), ("here", 1.0)):
        make_checkout(
            tmp_path / name,
            f"""
            import json, sys; from pathlib import Path
            assert sys.argv[1] == "plots=false" and sys.argv[3:5] == ["workload.num_requests=7", "laws=true"]
            with Path({str(turns)!r}).open("a") as file: print(Path.cwd().name, sys.argv[2], file=file)
            folder = Path(sys.argv[5].removeprefix("hydra.run.dir="))
            folder.mkdir()
            (folder / "summary.json").write_text(json.dumps({{"num_steps": 80, "num_requests": 7}}))
            (folder / "effort.json").write_text(json.dumps({{"cpu_s": {loop_s}}}))
            """,
        )
    monkeypatch.setattr(bench_sim, "HERE", tmp_path / "here")
    options = [
        "--against",
        str(tmp_path / "there"),
        "--requests",
        "7",
        "--rates",
        "1",
        "20",
        "--repeats",
        "2",
    ]
    bench_sim.main([*options, "laws=true"])
    expected = [
        f"{tree} workload.rate_per_s={rate}" for rate in ("1.0", "20.0") for tree in ("there", "here") * 2
    ]
    assert turns.read_text().splitlines() == expected
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    assert "1 requests/s: steps a CPU s of the loop 20.0 80.0 4.000 4.000 to 4.000" in rows


def make_checkout(tree: Path, run: str) -> None:
    (tree / "experiments").mkdir(parents=True)
    (tree / "experiments" / "__init__.py").touch()
    (tree / "experiments" / "run.py").write_text(dedent(run))


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_sim.main(["--against", str(tmp_path)])
    assert f"{tmp_path} has no experiments.run" in capsys.readouterr().err


def test_a_run_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_sim.main(["--requests", "4", "restore=magic"])
    error = capsys.readouterr().err
    assert f"the simulation in {HERE} failed" in error
    assert "magic" in error
