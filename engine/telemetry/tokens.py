"""When each token came, unrolled from the recorder's log of runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.events import EventKind
from engine.telemetry.recorder import Recorder

Ints = NDArray[np.int64]


class TokenTimes(NamedTuple):
    """The output tokens of a run: by request in order of arrival, by sequence, by time.

    The sequences of all requests are numbered through: request r has `first_seq[r]` to `first_seq[r + 1]` -
    1, and sequence s has the times from `first_token[s]` to `first_token[s + 1]` - 1.
    """

    times_ns: Ints
    first_token: Ints
    first_seq: Ints
    num_sampled: Ints
    """Of each sequence, the token of a step that its request did not live to see the end of included."""

    def of_request(self, row: int) -> Ints:
        """Times in ns of all tokens of a request, sequence after sequence."""
        first, last = self.first_token[self.first_seq[row : row + 2]]
        return self.times_ns[first:last]

    def num_of_request(self, row: int) -> Ints:
        """Tokens of each sequence of a request."""
        return np.diff(self.first_token[self.first_seq[row] : self.first_seq[row + 1] + 1])


def token_times(recorder: Recorder, ends_ns: Ints) -> TokenTimes:
    """Unroll the token log; `ends_ns` says when each step ended.

    A token of the step that told of an abort is left out: the request was gone before the step was committed.
    So is one of the step in which the request failed: it sampled none.
    """
    records = list(recorder.records.values())
    first_seq = np.cumsum([0, *(record.spec.n for record in records)], dtype=np.int64)
    last_steps = np.full(first_seq[-1], recorder.num_steps, dtype=np.int64)
    for record in records:
        if record.ending in (EventKind.ABORTED, EventKind.FAILED):
            last_steps[first_seq[record.row] : first_seq[record.row + 1]] = record.end_step
    seqs = _owner_seqs(recorder, first_seq)
    firsts, lasts = _spans(recorder)
    order = np.argsort(seqs, kind="stable")
    seqs, firsts, lasts = seqs[order], firsts[order], lasts[order]
    num_tokens = np.maximum(0, np.minimum(lasts, last_steps[seqs]) - firsts)
    num_sampled = np.zeros(first_seq[-1], dtype=np.int64)
    np.add.at(num_sampled, seqs, lasts - firsts)
    # Step numbers of a span count up from its first; subtract where the span begins in the unrolled array.
    begins = np.cumsum(num_tokens) - num_tokens
    steps = np.arange(num_tokens.sum()) + np.repeat(firsts - begins, num_tokens)
    per_seq = np.zeros(first_seq[-1] + 1, dtype=np.int64)
    np.add.at(per_seq, seqs + 1, num_tokens)
    return TokenTimes(ends_ns[steps], np.cumsum(per_seq), first_seq, num_sampled)


def _owner_seqs(recorder: Recorder, first_seq: Ints) -> Ints:
    """The number of the sequence that each entry of `token_owners` stands for."""
    number: dict[str | tuple[str, int], int] = {}
    for request_id, record in recorder.records.items():
        first = int(first_seq[record.row])
        if record.spec.n == 1:
            number[request_id] = first
        else:
            number |= {(request_id, seq): first + seq for seq in range(record.spec.n)}
    owners = recorder.token_owners
    return np.fromiter(map(number.__getitem__, owners), dtype=np.int64, count=len(owners))


def _spans(recorder: Recorder) -> tuple[Ints, Ints]:
    """First step, and the one after the last, of the run that each entry of `token_owners` belongs to."""
    runs = np.array(recorder.token_runs, dtype=np.int64).reshape(-1, 2)
    num_owners = np.diff(runs[:, 1], append=len(recorder.token_owners))
    ends = np.append(runs[1:, 0], recorder.num_steps)[: len(runs)]
    return np.repeat(runs[:, 0], num_owners), np.repeat(ends, num_owners)
