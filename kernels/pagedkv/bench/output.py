"""What a run leaves in its directory: tables, plots, and under what they came about."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
import torch

from pagedkv.bench import tables, targets
from pagedkv.bench.rows import OURS, Row, RowFile
from pagedkv.bench.supervise import Outcome
from pagedkv.markdown import table
from pagedkv.roofline import ACCELERATORS, Accelerator

RIVALS = ("flashinfer", "flex")
"""Stages that measure cases of others."""
PACKAGES = ("torch", "triton", "numpy", "pandas", "flashinfer-python")


class Plot(NamedTuple):
    """A picture of some rows."""

    stages: tuple[str, ...]
    prefix: str
    """Of the cases that are drawn."""
    column: str
    scale: float
    unit: str
    ceiling: str
    """A case that is drawn as a line."""


PLOTS = {
    "decode": Plot(("decode", *RIVALS), "decode", "bytes_per_s", 1e-9, "GB/s", targets.COPY),
    "prefill": Plot(("prefill", *RIVALS), "prefill", "flops_per_s", 1e-12, "TFLOP/s", "bf16 matmul"),
    "memory": Plot(("memory",), "", "bytes_per_s", 1e-9, "GB/s", targets.COPY),
    "swap": Plot(("swap",), "", "link_bytes_per_s", 1e-9, "GB/s to the host", targets.PINNED["out"]),
}


def accelerator(name: str) -> Accelerator:
    """Rates of the data sheet for a device of this name; infinite, so no floor, for one that is not known."""
    known = [a for a in ACCELERATORS if a.name in name]
    return known[0] if known else Accelerator(name, float("inf"), float("inf"), float("inf"), "not known")


def meta() -> dict[str, Any]:
    """Device, driver, versions, date, commit."""
    content: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        **{package: _version(package) for package in PACKAGES},
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        content |= {"gpu": device.name, "gpu_bytes": device.total_memory, "l2_bytes": device.L2_cache_size}
        content |= {"num_sms": device.multi_processor_count}
    return content


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Report:
    """Writes what there is after each stage, so that a run that is cut short has what came before."""

    def __init__(self, out: Path, stages: Sequence[str], about: dict[str, Any]) -> None:
        self._out = out
        self._stages = stages
        self._about = about
        self._outcomes: list[Outcome] = []
        self._accelerator = accelerator(about.get("gpu", "no GPU"))
        self.failed: list[str] = []
        """Cases of ours that failed."""

    def add(self, outcome: Outcome) -> None:
        """A stage has ended."""
        self._outcomes.append(outcome)
        measured = {stage: RowFile(self._out, stage).read() for stage in self._stages}
        every = [row for found in measured.values() for row in found]
        verdicts, ceilings = targets.judge(every), tables.ceilings(every)
        frames = {
            name: tables.frame(found, self._accelerator, ceilings, verdicts)
            for name, found in measured.items()
            if found
        }
        for name, data in frames.items():
            _write(self._out / name, data, tables.markdown(data))
        _write(self._out / "targets", targets.frame(verdicts), targets.markdown(verdicts))
        outcomes = [o._asdict() for o in self._outcomes]
        (self._out / "meta.json").write_text(json.dumps({**self._about, "stages": outcomes}, indent=1) + "\n")
        (self._out / "results.md").write_text(self._summary(frames, verdicts))
        self._plot(outcome.stage, measured)
        self.failed = [row.case for row in every if row.provider == OURS and row.status == "failed"]

    def _summary(self, frames: dict[str, pd.DataFrame], verdicts: list[targets.Verdict]) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self._about.items() if value is not None)
        ended = table(Outcome._fields, [o._replace(seconds=round(o.seconds, 1)) for o in self._outcomes])
        details = [f"## {name}\n\n{tables.markdown(data)}" for name, data in frames.items()]
        parts = ["# Kernels, measured", about, ended, f"## Targets\n\n{targets.markdown(verdicts)}", *details]
        return "\n\n".join(parts) + "\n"

    def _plot(self, stage: str, measured: dict[str, list[Row]]) -> None:
        for name, drawn in PLOTS.items():
            found = [row for source in drawn.stages for row in measured.get(source, ()) if row.seconds]
            chosen = [row for row in found if row.case.startswith(drawn.prefix)]
            if stage in drawn.stages and chosen:
                ceilings = [r for r in measured.get("ceilings", ()) if r.case == drawn.ceiling and r.seconds]
                lines = {row.case: getattr(row, drawn.column) * drawn.scale for row in ceilings}
                bars = {(r.case, r.provider): getattr(r, drawn.column) * drawn.scale for r in chosen}
                plot(bars, drawn.unit, lines, self._out / f"{name}.png")


def _write(path: Path, data: pd.DataFrame, text: str) -> None:
    data.to_parquet(path.with_suffix(".parquet"))
    path.with_suffix(".md").write_text(text + "\n")


def plot(bars: dict[tuple[str, str], float], unit: str, lines: dict[str, float], path: Path) -> None:
    """Horizontal bars, a group a case and a colour a provider; ceilings as vertical lines."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(case for case, _ in bars))
    providers = list(dict.fromkeys(provider for _, provider in bars))
    height = 0.8 / len(providers)
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.25 * len(cases) * len(providers)), layout="constrained")
    for i, provider in enumerate(providers):
        mine = {y: bars[case, provider] for y, case in enumerate(cases) if (case, provider) in bars}
        axes.barh([y + i * height for y in mine], list(mine.values()), height, label=provider)
    for name, value in lines.items():
        axes.axvline(value, color="black", linestyle="--", label=name)
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(y=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(providers) + len(lines), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
