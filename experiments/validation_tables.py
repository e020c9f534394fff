"""What a person reads at the end of a validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd
from rich.markup import escape
from rich.table import Table

from engine.telemetry.agreement import half_width, kendall_tau, pooled_std, winner
from experiments.campaign import CellRun
from experiments.compare import MEANS, PERCENTILES
from experiments.tables import label, number, percent, plain_table, unit
from experiments.verdict import HOLDS_CONFIDENCE
from sim.cost.base import CostModel

LOWER_IS_BETTER = {"output_throughput": False, "mean_e2el_ms": True, "p90_ttft_ms": True}
"""What policies are ranked by."""
ANSWERS = {"holds": "[green]holds[/green]", "off": "[red]OFF[/red]", "unclear": "[yellow]unclear[/yellow]"}


def comparison_table(comparison: pd.DataFrame, load: float | None, policy: str) -> Table:
    """Simulated against measured for one policy at one load; `comparison` is that of experiments.compare.

    Errors as they are and with the step bias taken out, each with half of its 90 % interval; with the drift
    of the machine taken out; with its speed from second to second taken out; the spread of the engine's own
    runs, and that of simulations with the noise of single steps.
    """
    rows = _rows(comparison, load, policy=policy)
    limits = [percent(limit) for limit in sorted(set(rows["limit"].dropna()))]
    place = policy if load is None else f"{policy} at load {load:g}"
    title = f"{place}: errors in %, limits {' and '.join(limits)} (-x: x taken out)"
    errors = ("error", "±", "-bias", "±", "-drift", "-speed", "runs", "noise", "")
    table = plain_table(title, "metric", "simulated", "measured", *errors)
    for row in rows.to_dict("records"):
        metric = row["metric"]
        name = label(metric) + (f", {unit(metric)}" if unit(metric) else "")
        values = ("error", "error_half", "unbiased", "half", "undrifted", "followed")
        # A few preemptions more or less are large errors that say little: counts are shown side by side.
        shown = [percent(row[v], signed="half" not in v) if row["answer"] else "-" for v in values]
        table.add_row(
            name.replace(" latency", "").removeprefix("output throughput, "),
            number(metric, row["simulated"]),
            number(metric, row["measured"]),
            *shown,
            percent(row["spread"]),
            percent(row["ensemble"]),
            ANSWERS.get(row["answer"], row["answer"]),
        )
    return table


def median_errors(comparison: pd.DataFrame) -> str:
    """How large the errors of means and percentiles are, by what is taken out, in one line."""
    texts = []
    for kind, metrics in (("means", MEANS), ("percentiles", PERCENTILES)):
        rows = comparison[comparison["metric"].isin(metrics)]
        sizes = [percent(rows[name].abs().median()) for name in ("error", "unbiased", "followed")]
        if len(rows):
            texts.append(
                f"of {len(rows)} {kind} {sizes[0]} % as they are, {sizes[1]} % without the step bias, "
                f"{sizes[2]} % without the speed"
            )
    return f"median size of the errors: {'; '.join(texts)}"


def _rows(comparison: pd.DataFrame, load: float | None, **columns: str) -> pd.DataFrame:
    mine = comparison["load"].isna() if load is None else comparison["load"] == load
    for name, value in columns.items():
        mine &= comparison[name] == value
    return comparison[mine]


def winners_table(
    comparison: pd.DataFrame, load: float | None, lower_is_better: Mapping[str, bool] = LOWER_IS_BETTER
) -> Table:
    """Which policy wins in each world, by how much against the worst, and Kendall's tau of the rankings."""
    title = "who wins, and by how much against the worst" + ("" if load is None else f", at load {load:g}")
    table = plain_table(title, "metric", "simulated", "margin %", "measured", "margin %", "Kendall tau", "")
    for metric, lower in lower_is_better.items():
        rows = _rows(comparison, load, metric=metric)
        worlds = [dict(zip(rows["policy"], rows[name], strict=True)) for name in ("simulated", "measured")]
        if not rows.empty and all(any(not math.isnan(value) for value in world.values()) for world in worlds):
            best = [winner(world, lower_is_better=lower) for world in worlds]
            margins = [percent(_margin(world, name)) for world, name in zip(worlds, best, strict=True)]
            tau = kendall_tau(*worlds)
            table.add_row(
                label(metric),
                *(escape(best[0]), margins[0], escape(best[1]), margins[1]),
                "-" if math.isnan(tau) else f"{tau:+.2f}",
                "same" if best[0] == best[1] else "[red]DIFFERENT[/red]",
            )
    return table


def engine_table(
    cell_runs: Sequence[CellRun], replayed: Mapping[str, bool], cost: CostModel, paces: Sequence[float]
) -> Table:
    """Each run of the engine: does a fresh core plan the same, and how does the cost model price its steps.

    The core is fed with the run's journal. The error of the step times is that of the cost model alone; no
    difference in decisions enters it. The pace is that of the probe, before and after the run.
    """
    table = plain_table(
        "the engine's runs", "run", "plans", "replayed", "step times, error %", "machine slower by %"
    )
    for cell_run, pace in zip(cell_runs, paces, strict=True):
        name = cell_run.folder.name
        table.add_row(
            escape(name),
            f"{len(cell_run.outcome.log.steps):,}",
            "byte-equal" if replayed[name] else "[red]DIFFERENT[/red]",
            percent(cell_run.samples.bias(cost), signed=True),
            percent(pace - 1, signed=True),
        )
    return table


def bias_table(bias: Mapping[int, float], residuals: pd.DataFrame) -> Table:
    """The error common to all step times, and what is left of it by kind of step, repeat by repeat."""
    columns = [f"repeat {repeat} %" for repeat in bias]
    table = plain_table("step times: priced / measured - 1", "steps", "number", *columns, "mean %", "±")
    rows = [("all: the step bias", residuals["num_steps"].sum(), dict(bias))]
    for name, group in residuals.groupby("kind", sort=False):
        left = dict(zip(group["repeat"], group["residual"], strict=True))
        rows.append((f"{name}, bias out", group["num_steps"].sum(), left))
    for name, num_steps, values in rows:
        half = half_width(*pooled_std([list(values.values())]), len(values), HOLDS_CONFIDENCE)
        shown = [percent(values.get(repeat, math.nan), signed=True) for repeat in bias]
        table.add_row(
            name, f"{num_steps:,}", *shown, percent(fmean(values.values()), signed=True), percent(half)
        )
    return table


def _margin(values: Mapping[str, float], best: str) -> float:
    """The largest distance of another policy from the best one, relative to that policy."""
    others = [value for value in values.values() if value and not math.isnan(value)]
    return max((abs(values[best] - value) / abs(value) for value in others), default=math.nan)
