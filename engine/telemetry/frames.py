"""From what the recorder appended to tables: rows of steps and of requests, a chunk of a run at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.telemetry.arrow import requests_schema, steps_schema
from engine.telemetry.record import RequestRecord
from engine.telemetry.recorder import IN_FLIGHT_STEPS, Recorder
from engine.telemetry.schema import MOVED, PLANNED, REQUEST_COLUMNS, STEP_COLUMNS, UNFINISHED, World
from engine.telemetry.tokens import Ints, TokenTimes, token_times

SPECIFIED = ("request_id", "arrival_ns", "num_prompt_tokens", "max_tokens", "n", "priority", "client")
"""Columns of requests that are fields of `RequestSpec`."""
HELD = ("num_table_blocks", "num_unused_slots")
"""Columns of steps that sum over block tables."""


class Framer:
    """Takes what is complete from a recorder, as two tables: steps, and requests that have ended.

    Steps: one row a step; world, STEP_COLUMNS, and a float64 column `part_<name>_ns` for each part. A step
    whose backend did not name a part spent nothing on it.

    Requests: one row a request; world and REQUEST_COLUMNS. Within a chunk they are in order of arrival.
    """

    def __init__(self, world: World, block_size: int) -> None:
        self._world = world
        self._block_size = block_size
        self._first_step = 0
        self._held = dict.fromkeys(HELD, 0)
        """The sums over block tables before the first step that was not taken."""
        self._changes = {name: np.zeros(0, dtype=np.int64) for name in HELD}
        """What requests that were taken change in these sums from there on, step by step."""
        self._parts: list[str] = []

    def take(self, recorder: Recorder, *, is_over: bool) -> tuple[pa.Table, pa.Table]:
        """The steps and the requests that are complete; if the run is over, all that are left."""
        records = recorder.take_requests(is_over=is_over)
        planned = np.array(recorder.steps, dtype=np.int64).reshape(-1, len(PLANNED))
        ends_ns = planned[:, PLANNED.index("end_ns")]
        tokens = token_times(records, ends_ns, self._first_step)
        self._note_tables(records, tokens, len(planned))
        num_steps = recorder.num_complete_steps(is_over=is_over) - self._first_step
        columns = dict(zip(PLANNED, planned[:num_steps].T, strict=True))
        columns |= self._moved(recorder, num_steps) | self._derived(columns, num_steps)
        parts = self._parts_ns(recorder, num_steps)
        del recorder.steps[: num_steps * len(PLANNED)]
        self._first_step += num_steps
        return self._steps_table(columns, parts), self._requests_table(records, tokens)

    def _moved(self, recorder: Recorder, num_steps: int) -> dict[str, Ints]:
        """MOVED for the next `num_steps` steps, taken from the recorder."""
        moves = np.array(recorder.moves, dtype=np.int64).reshape(-1, 1 + len(MOVED))
        num_taken = int(np.searchsorted(moves[:, 0], self._first_step + num_steps))
        moved = np.zeros((num_steps, len(MOVED)), dtype=np.int64)
        moved[moves[:num_taken, 0] - self._first_step] = moves[:num_taken, 1:]
        del recorder.moves[: num_taken * (1 + len(MOVED))]
        return dict(zip(MOVED, moved.T, strict=True))

    def _parts_ns(self, recorder: Recorder, num_steps: int) -> dict[str, NDArray[np.float64]]:
        """The parts of the durations of the next `num_steps` steps, taken from the recorder."""
        parts = {name: np.zeros(num_steps) for name in self._parts}
        for names, (steps, values) in recorder.parts_ns.items():
            numbers = np.array(steps, dtype=np.int64) - self._first_step
            num_taken = int(np.searchsorted(numbers, num_steps))
            matrix = np.array(values[: num_taken * len(names)]).reshape(num_taken, len(names))
            for i, name in enumerate(names):
                parts.setdefault(name, np.zeros(num_steps))[numbers[:num_taken]] = matrix[:, i]
            del steps[:num_taken], values[: num_taken * len(names)]
        self._parts = sorted(parts)
        return parts

    def _derived(self, columns: dict[str, Ints], num_steps: int) -> dict[str, Ints]:
        num_decode_tokens = columns["num_seqs"] - columns["num_prefill_chunks"]
        derived = {
            "num_decode_tokens": num_decode_tokens,
            "num_prefill_tokens": columns["num_tokens"] - num_decode_tokens,
        }
        for name in HELD:
            sums = self._held[name] + np.cumsum(self._changes[name][:num_steps])
            derived[name] = sums
            self._held[name] = int(sums[-1]) if num_steps else self._held[name]
            self._changes[name] = self._changes[name][num_steps:]
        return derived

    def _note_tables(self, records: Sequence[RequestRecord], tokens: TokenTimes, num_steps: int) -> None:
        """The lengths of all device block tables summed, and their slots that never get KV.

        The final lengths of these requests are known by now, so a table of a blocks over a sequence that ends
        with the KV of f tokens has max(0, a * block_size - f) slots that nobody will ever write to.
        """
        changes = _joined(record.tables for record in records).reshape(-1, 3)
        seqs = np.repeat(tokens.first_seq[:-1], [len(record.tables) // 3 for record in records])
        steps, numbers, num_blocks = changes[:, 0] - self._first_step, changes[:, 1] + seqs, changes[:, 2]
        unused = np.maximum(0, num_blocks * self._block_size - _final_lengths(records, tokens)[numbers])
        for name, values in zip(HELD, (num_blocks, unused), strict=True):
            pending = self._changes[name]
            grown = np.zeros(max(num_steps + 3 + IN_FLIGHT_STEPS, len(pending)), dtype=np.int64)
            grown[: len(pending)] = pending
            _add_changes(grown, steps, numbers, values)
            self._changes[name] = grown

    def _steps_table(self, columns: dict[str, Ints], parts: dict[str, NDArray[np.float64]]) -> pa.Table:
        schema = steps_schema(self._parts)
        world = pa.repeat(self._world.value, len(columns["step_id"]))
        arrays = [world, *(pa.array(columns[name]) for name in STEP_COLUMNS)]
        arrays += [pa.array(parts[name]) for name in self._parts]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _requests_table(self, records: Sequence[RequestRecord], tokens: TokenTimes) -> pa.Table:
        values: dict[str, Any] = {
            name: [getattr(record, name) for record in records]
            for name in REQUEST_COLUMNS
            if name in RequestRecord.__slots__
        }
        for name in SPECIFIED:
            values[name] = [getattr(record.spec, name) for record in records]
        values["world"] = pa.repeat(self._world.value, len(records))
        values["status"] = [UNFINISHED if one.ending is None else one.ending.value for one in records]
        values["reason"] = [str(record.reason) for record in records]
        first_token = tokens.first_token[tokens.first_seq]
        values["num_output_tokens"] = np.diff(first_token)
        values["first_token_ns"], values["last_token_ns"] = tokens.bounds_ns()
        values["seq_num_output_tokens"] = _lists(tokens.first_seq, np.diff(tokens.first_token))
        values["token_times_ns"] = _lists(first_token, tokens.times_ns)
        phases = [record.phases for record in records]
        begins = np.cumsum([0, *map(len, phases)])
        values["phases"] = _lists(begins, [phase.value for phase, _ in chain(*phases)])
        values["phase_times_ns"] = _lists(begins, [time_ns for _, time_ns in chain(*phases)])
        schema = requests_schema()
        return pa.Table.from_arrays(
            [_array(values[field.name], field.type) for field in schema], schema=schema
        )


def _array(values: Any, dtype: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, dtype)


def _lists(begins: Ints, values: Any) -> pa.Array:
    """Lists of values, where each begins, and where the last ends."""
    return pa.ListArray.from_arrays(pa.array(begins, pa.int32()), pa.array(values))


def _joined(arrays: Iterable[array[int]]) -> Ints:
    """The numbers of all, one after the other."""
    return np.frombuffer(b"".join(map(bytes, arrays)), dtype=np.int64)


def _final_lengths(records: Sequence[RequestRecord], tokens: TokenTimes) -> Ints:
    """Tokens of each sequence that ever had KV; of those sampled, the newest has none."""
    num_seqs = np.diff(tokens.first_seq)
    num_prompt_tokens = np.repeat([record.spec.num_prompt_tokens for record in records], num_seqs)
    without_output = np.repeat([record.max_computed_tokens for record in records], num_seqs)
    sampled = tokens.num_sampled
    return np.where(sampled > 0, num_prompt_tokens + sampled - 1, without_output)


def _add_changes(changes: Ints, steps: Ints, tables: Ints, values: Ints) -> None:
    """What values that are 0 at first, and change at given steps, change in the sum over all tables."""
    # In order of the steps: with plans in flight an end is told before the last growth of a table is.
    order = np.lexsort((steps, tables))
    tables, values = tables[order], values[order]
    before = np.zeros_like(values)
    before[1:] = np.where(tables[1:] == tables[:-1], values[:-1], 0)
    np.add.at(changes, steps[order], values - before)
