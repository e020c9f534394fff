"""A stage is a list of measurements, each a case of a provider; every row is saved as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pagedkv.bench.rows import OURS, Row, RowFile
from pagedkv.roofline import Work


class NotApplicableError(Exception):
    """A measurement makes no sense for this provider or device; the text says why."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row to be."""

    case: str
    run: Callable[[torch.device], float | None]
    """Seconds a call; None for a check, which raises where it fails. Raises ImportError where the provider is
    not installed, NotApplicableError where it cannot do this."""
    work: Work = field(default_factory=Work)
    provider: str = OURS


@dataclass(frozen=True, slots=True)
class Stage:
    """Measurements that belong together; planning them takes neither a GPU nor much time."""

    name: str
    what: str
    plan: Callable[[], list[Measurement]]
    limit_s: float
    """It is stopped after so long."""
    needs_s: float = 20.0
    """It is not begun with less time left."""
    on_request: bool = False
    """Whether it runs only when asked for by name."""


def run_here(stage: Stage, device: torch.device, out: Path) -> None:
    """Run the stage in this process, without the cases that an earlier process of it has begun.

    Raises RuntimeError where a measurement has left the device unusable: the rest needs a new process.
    """
    file = RowFile(out, stage.name)
    begun = {(row.case, row.provider) for row in file.read()}
    for measurement in stage.plan():
        if (measurement.case, measurement.provider) not in begun:
            file.append(_row(measurement, "started"))
            file.append(attempt(measurement, device))
            _recover(device)


def attempt(measurement: Measurement, device: torch.device) -> Row:
    """The row of a measurement, or of why there is none."""
    try:
        return _row(measurement, "ok", seconds=measurement.run(device))
    except ImportError as error:
        return _row(measurement, "not installed", _short(error))
    except NotApplicableError as error:
        return _row(measurement, "skipped", str(error))
    except Exception as error:
        return _row(measurement, "failed", _short(error))


def _row(measurement: Measurement, status: str, note: str = "", seconds: float | None = None) -> Row:
    return Row(measurement.case, measurement.provider, seconds, measurement.work, status, note)


def _short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 300 else f"{text[:300]} ..."


def _recover(device: torch.device) -> None:
    """Give back memory; an error of a kernel that was still running shows here at the latest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
