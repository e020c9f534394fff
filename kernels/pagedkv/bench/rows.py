"""What the bench records: a row a measurement, a file of rows a stage, written while the stage runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pagedkv.roofline import Work

OURS = "pagedkv"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, or the reason why there is none."""

    case: str
    provider: str = OURS
    """Whose kernel: pagedkv, or what it is compared with."""
    seconds: float | None = None
    """A call, the median of several rounds."""
    work: Work = field(default_factory=Work)
    """What had to be done, from `pagedkv.roofline`."""
    status: str = "ok"
    """ok, failed, not installed, skipped, stopped (out of time), or started."""
    note: str = ""

    @property
    def bytes_per_s(self) -> float:
        """Bytes of device memory over time. Raises ValueError where nothing was measured."""
        return self._rate(self.work.num_bytes)

    @property
    def link_bytes_per_s(self) -> float:
        """Bytes over the link to the host over time. Raises ValueError where nothing was measured."""
        return self._rate(self.work.link_bytes)

    @property
    def flops_per_s(self) -> float:
        """FLOPs over time. Raises ValueError where nothing was measured."""
        return self._rate(self.work.flops)

    def _rate(self, amount: int) -> float:
        if not self.seconds:
            raise ValueError(f"{self.case} of {self.provider} has no time: {self.status} {self.note}")
        return amount / self.seconds


class RowFile:
    """The rows of one stage, a line each, so that a stage that dies leaves what it had."""

    def __init__(self, out: Path, stage: str) -> None:
        self.path = out / f"{stage}.jsonl"

    def append(self, row: Row) -> None:
        """Add a row; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def read(self) -> list[Row]:
        """The last row of each case and provider, in the order in which they began."""
        if not self.path.exists():
            return []
        rows = map(_row, self.path.read_text().splitlines())
        return list({(row.case, row.provider): row for row in rows}.values())


def _row(line: str) -> Row:
    content = json.loads(line)
    return Row(**{**content, "work": Work(*content["work"])})
