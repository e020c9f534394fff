"""The run log, written in row groups while the run goes on: memory does not grow with its length."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.core.spec import Capacity
from engine.telemetry.arrow import requests_schema, run_metadata
from engine.telemetry.frames import Framer
from engine.telemetry.recorder import Recorder
from engine.telemetry.runlog import REQUESTS, STEPS
from engine.telemetry.schema import World


class RunWriter:
    """Takes from a recorder what is complete (`Recorder.drain`) and writes it into the folder of the run.

    A request's row is written when it has ended; so those of a long run are in that order, chunk by chunk.
    """

    def __init__(self, directory: Path, world: World, capacity: Capacity) -> None:
        self._metadata = run_metadata(world, capacity)
        self._framer = Framer(world, capacity.block_size)
        self._steps_path = directory / STEPS
        self._steps: pq.ParquetWriter | None = None
        self._requests = _writer(directory / REQUESTS, requests_schema())

    def drain(self, recorder: Recorder) -> None:
        """Write what is complete."""
        self._write(*self._framer.take(recorder, is_over=False))

    def close(self, recorder: Recorder) -> None:
        """The run is over: write the rest."""
        self._write(*self._framer.take(recorder, is_over=True))
        assert self._steps is not None
        self._steps.close()
        self._requests.close()

    def _write(self, steps: pa.Table, requests: pa.Table) -> None:
        steps = steps.replace_schema_metadata(self._metadata)
        if self._steps is None:
            self._steps = _writer(self._steps_path, steps.schema)
        elif self._steps.schema.names != steps.schema.names:
            self._widen(steps.schema)
        self._steps.write_table(steps)
        self._requests.write_table(requests)

    def _widen(self, schema: pa.Schema) -> None:
        """A backend named a part for the first time: steps before spent nothing on it. Write them again."""
        assert self._steps is not None
        self._steps.close()
        old = self._steps_path.rename(self._steps_path.with_suffix(".narrow"))
        self._steps = _writer(self._steps_path, schema)
        with pq.ParquetFile(old) as file:
            for index in range(file.num_row_groups):
                group = file.read_row_group(index)
                nothing = pa.repeat(pa.scalar(0.0), len(group))
                columns = [group[name] if name in group.schema.names else nothing for name in schema.names]
                self._steps.write_table(pa.Table.from_arrays(columns, schema=schema))
        old.unlink()


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")
