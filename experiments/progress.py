"""A progress bar for runs of more than two seconds, on stderr; cheap enough for a simulator's loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.core.events import ENDINGS, Event
from engine.core.plan import StepPlan, StepResult
from engine.core.spec import RequestSpec

SILENT_S = 2.0
REFRESH_S = 0.5


class ProgressBar:
    """An observer that counts ended requests (engine.core.serving.Observer) and now and then draws.

    It draws between two steps and on no thread of its own, so that a measured step is never disturbed.
    """

    def __init__(self, progress: Progress, title: str, num_requests: int) -> None:
        self._progress = progress
        self._title = title
        self._num_requests = num_requests
        self._num_ended = 0
        self._next_s = monotonic() + SILENT_S

    def arrived(self, spec: RequestSpec, now_ns: int) -> None:
        """Arrivals are not progress."""

    def refused(self, spec: RequestSpec, reason: str, now_ns: int) -> None:
        """A refusal is an end."""
        self._num_ended += 1

    def stepped(
        self, plan: StepPlan, result: StepResult, start_ns: int, end_ns: int, events: Sequence[Event]
    ) -> None:
        """Count, and draw if it is time."""
        if not events:
            return
        self._num_ended += sum(event.kind in ENDINGS for event in events)
        if monotonic() >= self._next_s:
            self._draw()

    def closed(self, now_ns: int) -> None:
        """Nor are periods."""

    def _draw(self) -> None:
        if not self._progress.tasks:
            self._progress.start()
            self._progress.add_task(self._title, total=self._num_requests)
        self._progress.update(self._progress.tasks[0].id, completed=self._num_ended)
        self._progress.refresh()
        self._next_s = monotonic() + REFRESH_S


@contextmanager
def progress_bar(title: str, num_requests: int) -> Iterator[ProgressBar]:
    """A bar that appears after SILENT_S and is gone afterwards; in a notebook, whose stderr is none, none."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, force_jupyter=False)
    progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
    try:
        yield ProgressBar(progress, title, num_requests)
    finally:
        if progress.tasks:
            progress.stop()
