"""The folder of a run: what is written into it, and what is printed about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from engine.telemetry.clients import client_table
from engine.telemetry.metrics import summarize
from engine.telemetry.runlog import REQUESTS, STEPS, Log, RunLog, write_log, write_results
from engine.telemetry.timeline import write_timeline
from engine.telemetry.window import Measure, requests_within
from experiments.effort import Effort
from experiments.tables import clients_table
from experiments.worlds import Outcome
from sim.workloads.base import Prepared

Summary = Mapping[str, float]

JOURNAL = "journal.jsonl"
PIPE_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run writes beside the run log itself."""

    slo_ms: Mapping[str, float]
    timeline: bool
    plots: bool
    measure: Measure

    @classmethod
    def by(cls, config: DictConfig) -> Wanted:
        """The keys slo_ms, timeline, plots and measure."""
        slo_ms = {str(name): limit for name, limit in config.slo_ms.items() if limit is not None}
        return cls(slo_ms, config.timeline, config.plots, Measure(**config.measure))


def write_outcome(
    outcome: Outcome,
    directory: Path,
    config_text: str,
    wanted: Wanted,
    workload: Mapping[str, float],
    title: str = "",
) -> tuple[Summary, list[Path]]:
    """Write everything about a run into its folder; the summary, and the files.

    The summary has the figures of the workload too, so that a sweep can tabulate them. `title` says in the
    figures what was run.
    """
    summary = summarize(outcome.log, wanted.slo_ms, wanted.measure) | dict(workload)
    files = [directory / STEPS, directory / REQUESTS]
    if isinstance(outcome.log, RunLog):
        write_log(outcome.log, directory)
    files += write_results(outcome.log, directory, summary, config_text)
    files.append(directory / "effort.json")
    # A file of its own: everything else in the folder of a simulation is the same on every machine.
    files[-1].write_text(json.dumps(asdict(outcome.effort), indent=2) + "\n", encoding="utf-8")
    clients = client_table(outcome.log.requests)
    if len(clients):
        files.append(directory / "clients.csv")
        clients.to_csv(files[-1])
    if outcome.journal_path is not None:
        files.append(outcome.journal_path)
    if wanted.timeline:
        files.append(directory / "timeline.json")
        write_timeline(outcome.log, files[-1])
    if wanted.plots:
        # matplotlib takes as long to import as everything else together.
        from experiments.figures.latency import Curve, latency_figure
        from experiments.figures.memory import memory_figure
        from experiments.figures.style import save

        curve = Curve("", outcome.log.world, outcome.log.requests)
        files.append(save(memory_figure(outcome.log, title), directory / "memory.png"))
        files.append(save(latency_figure([curve], title), directory / "latency.png"))
    return summary, files


def stdout_console() -> Console:
    """A console that is wide enough for the tables where the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """A line as it is: neither wrapped nor coloured, and no part of it, a path say, is read as markup."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def print_effort(console: Console, effort: Effort, summary: Summary) -> None:
    """How fast the loop went, and how much memory the process took."""
    num_steps, num_requests = summary["num_steps"], summary["num_requests"]
    print_line(
        console,
        f"{num_steps:,.0f} steps and {num_requests:,.0f} requests in {effort.cpu_s:.2f} s of CPU time "
        f"({effort.wall_s:.2f} s wall): {num_steps / effort.cpu_s:,.0f} steps and "
        f"{num_requests / effort.cpu_s:,.0f} requests a CPU second; "
        f"peak RSS {effort.peak_rss_bytes / 2**20:,.0f} MiB",
    )


def print_remark(console: Console, outcome: Outcome, name: str = "") -> None:
    """What whoever reads the figures of a run must know, where there is something."""
    if outcome.remark is not None:
        text = f"{name}: {outcome.remark}" if name else outcome.remark
        print_line(console, text, style="yellow")


def print_workload(console: Console, workload: Prepared) -> None:
    """What is going to be served, and what was done to it."""
    for note in workload.notes:
        print_line(console, note)
    for warning in workload.warnings:
        print_line(console, f"warning: {warning}", style="yellow")


def print_clients(console: Console, log: Log) -> None:
    """How the clients fared, if there are any."""
    clients = client_table(log.requests)
    if len(clients):
        console.print(clients_table(clients))


def print_fallbacks(console: Console, summary: Summary, name: str = "") -> None:
    """How many preemptions did not do what the restore policy said."""
    num_fallbacks, num_preemptions = int(summary["num_fallbacks"]), int(summary["num_preemptions"])
    if num_fallbacks:
        text = (
            f"{num_fallbacks:,} of {num_preemptions:,} preemptions fell back from swap to "
            "recompute, for want of host blocks: raise pool.num_host_blocks or pool.swap_space_bytes"
        )
        print_line(console, f"{name}: {text}" if name else text, style="yellow")


def print_measure(console: Console, log: Log, measure: Measure) -> None:
    """Say what of the run the figures are of, if not all."""
    if measure.leaves_out(log):
        (begin_ns, end_ns), first_ns = measure.window_ns(log), int(log.requests["arrival_ns"].min())
        seconds = f"{(begin_ns - first_ns) / 1e9:,.1f} to {(end_ns - first_ns) / 1e9:,.1f} s"
        num = len(requests_within(log, (begin_ns, end_ns)))
        print_line(console, f"measured: {seconds}, {num:,} of {len(log.requests):,} requests arrived then")


def print_saturated(console: Console, summary: Summary, name: str = "") -> None:
    """Say so where requests came faster than they were served."""
    if summary["saturated"] == 1:
        offered, served = summary["offered_rate_per_s"], summary["request_throughput"]
        text = (
            f"saturated: {offered:.3g} requests/s came and {served:.3g} were served; the queue grew for as "
            "long as they came, so latencies tell how long the run was"
        )
        print_line(console, f"{name}: {text}" if name else text, style="yellow")


def print_unserved(console: Console, log: Log, name: str = "") -> None:
    """How many requests of a run were rejected, how many failed, and one of the reasons."""
    for status in ("rejected", "failed"):
        ended = log.requests[log.requests["status"] == status]
        if len(ended):
            first = ended.iloc[0]
            share = f"{len(ended)} of {len(log.requests)} requests {status}"
            text = f"{share}, {first.request_id}: {first.reason}"
            print_line(console, f"{name}: {text}" if name else text, style="yellow")


def print_files(console: Console, directory: Path, files: Sequence[Path]) -> None:
    """Where everything is: the files of the folder, then the inner folders, those with equal names
    together.
    """
    names: dict[Path, tuple[str, ...]] = {}
    for path in files:
        folder = path.parent.relative_to(directory)
        names[folder] = (*names.get(folder, ()), path.name)
    folders: dict[tuple[str, ...], list[str]] = {}
    for folder, inside in names.items():
        folders.setdefault(inside, []).append("" if folder == Path() else f"{folder}/")
    print_line(console, f"written to {directory}:")
    for inside, where in folders.items():
        print_line(console, "  " + " ".join([*filter(None, where), *inside]))
