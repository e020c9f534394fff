"""How far simulated runs are from a measured run of vLLM, in the format of LLMServingSim's validation runs.

    python -m experiments.against_vllm requests.jsonl outputs/run/... [outputs/run/... ...]

`requests.jsonl` has one request a line: queued_ts, first_token_ts, last_token_ts (seconds of one clock) and
output_toks (github.com/casys-kaist/LLMServingSim). sim/cost/README.md has the command that simulates such a
run, and what came out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from engine.core.errors import UserError
from engine.telemetry.runlog import read_summary
from experiments.errors import plain_errors
from experiments.output import stdout_console
from experiments.tables import label, number, percent

METRICS = tuple(
    f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p90")
)


def measured_summary(path: Path) -> dict[str, float]:
    """Mean and p90 of the latencies in ms, by the names of summary.json; UserError, naming the line.

    vLLM stamps `queued_ts` when its scheduler first sees a request, between two steps; latencies count from
    there, as in LLMServingSim's own summary. A request of one token has no TPOT.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: name the requests.jsonl of a measured run")
    rows = []
    for number_of_line, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append(
                [float(row[key]) for key in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number_of_line}: not a measured request ({error!r})") from None
    if not rows:
        raise UserError(f"{path}: no requests in it")
    queued_s, first_s, last_s, num_tokens = np.array(rows).T
    several = num_tokens > 1
    latencies_s = {
        "ttft": first_s - queued_s,
        "tpot": (last_s - first_s)[several] / (num_tokens[several] - 1),
        "e2el": last_s - queued_s,
    }
    summary = {f"mean_{name}_ms": float(1e3 * values.mean()) for name, values in latencies_s.items()}
    p90 = {f"p90_{name}_ms": float(1e3 * np.quantile(values, 0.9)) for name, values in latencies_s.items()}
    return summary | p90


def error_table(measured: dict[str, float], folders: Sequence[Path]) -> Table:
    """A row a metric: what was measured, and (simulated - measured) / measured of each run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("metric", "measured, ms", *(f"{folder.name}, error %" for folder in folders)):
        table.add_column(column, justify="left" if column == "metric" else "right")
    summaries = [read_summary(folder) for folder in folders]
    for metric in METRICS:
        errors = [percent(summary[metric] / measured[metric] - 1, signed=True) for summary in summaries]
        table.add_row(label(metric), number(metric, measured[metric]), *errors)
    return table


@plain_errors
def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requests", type=Path, help="requests.jsonl of the measured run")
    parser.add_argument("folders", type=Path, nargs="+", help="folders of simulated runs")
    args = parser.parse_args()
    stdout_console().print(error_table(measured_summary(args.requests), args.folders))


if __name__ == "__main__":
    main()
