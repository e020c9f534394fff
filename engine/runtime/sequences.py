"""What the engine keeps of each request, tokens and block tables, and a step laid out as a flat batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pagedkv import Piece, batch_order

from engine.core.errors import UserError
from engine.core.plan import Chunk, TableUpdate
from engine.core.spec import RequestSpec


def dummy_prompt(seed: int, request_id: str, num_tokens: int, vocab_size: int) -> list[int]:
    """Token ids for a trace that has lengths only: uniform, from a stream named by seed and request."""
    digest = hashlib.blake2b(f"{seed}/prompt/{request_id}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    tokens: list[int] = generator.integers(vocab_size, size=num_tokens).tolist()
    return tokens


class FlatBatch(NamedTuple):
    """The tokens of a step, one sequence's part after another."""

    token_ids: list[int]
    pieces: list[Piece]
    last_rows: dict[tuple[str, int], int]
    """Row of the last token of each (request, sequence)."""


class Sequences:
    """Tokens and block tables of the live requests, mirrored from specs and plans."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.specs: dict[str, RequestSpec] = {}
        self._vocab_size = vocab_size
        self._seed = seed
        self._tokens: dict[tuple[str, int], list[int]] = {}
        self._tables: dict[tuple[str, int], list[int]] = {}
        self._ended: set[tuple[str, int]] = set()
        """Those that get no more tokens, though steps planned before that was known compute them."""

    def add(self, spec: RequestSpec) -> None:
        """Take in a request.

        Raises:
            UserError: its id is in use, or a prompt or stop token lies outside the vocabulary. Nothing is
                kept of it.
        """
        if spec.request_id in self.specs:
            raise UserError(f"request {spec.request_id}: this id is in use")
        prompt: Sequence[int] | None = spec.prompt_token_ids
        if prompt is None:
            prompt = dummy_prompt(self._seed, spec.request_id, spec.num_prompt_tokens, self._vocab_size)
        else:
            self._check(spec, "prompt", prompt)
        self._check(spec, "stop", spec.sampling.stop_token_ids)
        self.specs[spec.request_id] = spec
        for seq in range(spec.n):
            self._tokens[spec.request_id, seq] = list(prompt)
            self._tables[spec.request_id, seq] = []

    def _check(self, spec: RequestSpec, kind: str, token_ids: Sequence[int]) -> None:
        """Refuse token ids that the model does not know."""
        if not all(isinstance(i, int | np.integer) and 0 <= i < self._vocab_size for i in token_ids):
            last = self._vocab_size - 1
            raise UserError(
                f"request {spec.request_id}: {kind} token ids must be whole numbers from 0 to {last}"
            )

    def drop(self, request_id: str) -> None:
        """Forget a request."""
        for seq in range(self.specs.pop(request_id).n):
            del self._tokens[request_id, seq], self._tables[request_id, seq]
            self._ended.discard((request_id, seq))

    def end(self, request_id: str, seq: int) -> None:
        """A sequence gets no more tokens."""
        self._ended.add((request_id, seq))

    def has_ended(self, request_id: str, seq: int) -> bool:
        """Whether it gets no more."""
        return (request_id, seq) in self._ended

    def update(self, updates: Iterable[TableUpdate]) -> None:
        """Bring the block tables to where the plan has them."""
        for request_id, seq, first, block_ids in updates:
            table = self._tables[request_id, seq]
            del table[first:]
            table.extend(block_ids)

    def append(self, request_id: str, seq: int, token_id: int) -> int:
        """Add a sampled token; the length of the sequence with it."""
        tokens = self._tokens[request_id, seq]
        tokens.append(token_id)
        return len(tokens)

    def num_tokens(self, request_id: str, seq: int) -> int:
        """Length of a sequence, prompt included."""
        return len(self._tokens[request_id, seq])

    def tokens(self, request_id: str, seq: int) -> list[int]:
        """Token ids of a sequence, prompt included; a copy."""
        return list(self._tokens[request_id, seq])

    def flatten(self, chunks: Iterable[Chunk]) -> FlatBatch:
        """Lay the chunks of a step out in the order that attention wants."""
        keys, parts, pieces = [], [], []
        for request_id, start, num_tokens, seqs, _ in chunks:
            for seq in seqs:
                keys.append((request_id, seq))
                parts.append(self._tokens[request_id, seq][start : start + num_tokens])
                pieces.append(Piece(start, num_tokens, self._tables[request_id, seq]))
        token_ids: list[int] = []
        last_rows = {}
        order = batch_order(pieces)
        for i in order:
            token_ids += parts[i]
            last_rows[keys[i]] = len(token_ids) - 1
        return FlatBatch(token_ids, [pieces[i] for i in order], last_rows)
