"""`python -m pagedkv.bench`: checks and measures the kernels on a GPU, within the time there is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pagedkv.bench.output import Report, meta
from pagedkv.bench.registry import STAGES
from pagedkv.bench.stages import Measurement, Stage, run_here
from pagedkv.bench.supervise import Budget, Outcome, launcher, run
from pagedkv.roofline import ACCELERATORS, floor_s

NEEDS = 2
"""Exit status where something that the bench needs is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; 0 if all ended and no check failed, 1 if not, 2 if this machine cannot run them."""
    options = _parser().parse_args(arguments)
    chosen = [s for s in STAGES if (s.name in options.stage if options.stage else not s.on_request)]
    if options.dry_run:
        print("\n".join(dry_run(chosen)))
        return 0
    missing = what_is_missing()
    if missing:
        print(
            f"python -m pagedkv.bench cannot run here: {missing}; --dry-run lists what it does",
            file=sys.stderr,
        )
        return NEEDS
    options.out.mkdir(parents=True, exist_ok=True)
    if options.here:
        for stage in chosen:
            run_here(stage, torch.device("cuda"), options.out)
        return 0
    return _run_all(chosen, options.out, options.minutes * 60)


def _run_all(stages: Sequence[Stage], out: Path, seconds: float) -> int:
    report = Report(out, [stage.name for stage in STAGES], meta())

    def tell(outcome: Outcome) -> None:
        print(
            f"{outcome.stage}: {outcome.status} in {outcome.seconds:.0f} s {outcome.note}".rstrip(),
            flush=True,
        )
        report.add(outcome)

    outcomes = run(stages, Budget(seconds), launcher(out), tell)
    print(f"{len(report.failed)} cases failed; see {out / 'results.md'}")
    return int(bool(report.failed) or any(outcome.status == "failed" for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pagedkv.bench", description=(__doc__ or "").split(": ")[1]
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--out", type=Path, default=Path("kernel-bench"), help="directory of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="what is not begun by then is skipped")
    parser.add_argument("--stage", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true", help="list stages and cases with their floors")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser


def what_is_missing() -> str:
    """What this machine lacks; empty if nothing."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set, so kernels would run in the interpreter; unset it"
    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer, and torch with CUDA"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return ""


def dry_run(stages: Sequence[Stage]) -> list[str]:
    """Stages with their cases, and what these would take at least."""
    lines = []
    for stage in stages:
        lines.append(f"{stage.name}: {stage.what}; {stage.limit_s:.0f} s at most")
        for measurement in _planned(stage, lines):
            floors = [(a.name, floor_s(measurement.work, a) * 1e6) for a in ACCELERATORS]
            times = ", ".join(f"{name} {us:.1f} us" for name, us in floors if us)
            lines.append(f"  {measurement.case} ({measurement.provider}){times and ': ' + times}")
    return lines


def _planned(stage: Stage, lines: list[str]) -> list[Measurement]:
    try:
        return stage.plan()
    except ImportError as error:
        lines.append(f"  cannot be listed here: {error}")
        return []


if __name__ == "__main__":
    sys.exit(main())
