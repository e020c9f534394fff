"""When each token came, unrolled from the steps that a request notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.telemetry.record import RequestRecord

Ints = NDArray[np.int64]


class TokenTimes(NamedTuple):
    """The output tokens of some requests: by request, by sequence, by time.

    The sequences of all requests are numbered through: request r has `first_seq[r]` to `first_seq[r + 1]` -
    1, and sequence s has the times from `first_token[s]` to `first_token[s + 1]` - 1.
    """

    times_ns: Ints
    first_token: Ints
    first_seq: Ints
    num_sampled: Ints
    """Of each sequence, the token of a step that its request did not live to see the end of included."""

    def bounds_ns(self) -> tuple[list[int | None], list[int | None]]:
        """The times of the first and the last token of each request; None for one without any."""
        begins = self.first_token[self.first_seq]
        spoke = np.flatnonzero(np.diff(begins))
        bounds = []
        for reduce in (np.minimum.reduceat, np.maximum.reduceat):
            times: list[int | None] = [None] * (len(begins) - 1)
            if len(spoke):
                for row, time_ns in zip(spoke.tolist(), reduce(self.times_ns, begins[spoke]), strict=True):
                    times[row] = int(time_ns)
            bounds.append(times)
        return bounds[0], bounds[1]


def token_times(records: Sequence[RequestRecord], ends_ns: Ints, first_step: int) -> TokenTimes:
    """Unroll the spans of some requests; `ends_ns` says when each step from `first_step` on ended.

    A token of the step that told of an abort is left out: the request was gone before the step was committed.
    So is one of the step in which the request failed: it sampled none.
    """
    first_seq = np.cumsum([0, *(record.spec.n for record in records)], dtype=np.int64)
    spans = np.frombuffer(b"".join(bytes(record.spans) for record in records), dtype=np.int64).reshape(-1, 4)
    seqs = spans[:, 0] + np.repeat(first_seq[:-1], [len(record.spans) // 4 for record in records])
    order = np.argsort(seqs, kind="stable")
    seqs, (firsts, lasts, lost) = seqs[order], spans[order, 1:].T
    num_tokens = lasts - firsts - lost
    num_sampled = np.zeros(first_seq[-1], dtype=np.int64)
    np.add.at(num_sampled, seqs, lasts - firsts)
    # Step numbers of a span count up from its first; subtract where the span begins in the unrolled array.
    begins = np.cumsum(num_tokens) - num_tokens
    steps = np.arange(num_tokens.sum()) + np.repeat(firsts - first_step - begins, num_tokens)
    per_seq = np.zeros(first_seq[-1] + 1, dtype=np.int64)
    np.add.at(per_seq, seqs + 1, num_tokens)
    return TokenTimes(ends_ns[steps], np.cumsum(per_seq), first_seq, num_sampled)
