"""Block transfers as runs of neighbours, and the plain copies that move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Run(NamedTuple):
    """Blocks that are neighbours in source and target alike: one transfer."""

    source_id: int
    target_id: int
    num_blocks: int


def find_runs(source_ids: Sequence[int], target_ids: Sequence[int]) -> list[Run]:
    """Cut the pairs, in the order given, into the fewest runs in which both ids rise by one."""
    runs: list[Run] = []
    for source_id, target_id in zip(source_ids, target_ids, strict=True):
        last = runs[-1] if runs else None
        if last and (source_id - last.source_id) == (target_id - last.target_id) == last.num_blocks:
            runs[-1] = last._replace(num_blocks=last.num_blocks + 1)
        else:
            runs.append(Run(source_id, target_id, 1))
    return runs


def copy_runs(
    source_pool: torch.Tensor,
    target_pool: torch.Tensor,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
) -> None:
    """Copy block `source_ids[i]` of one pool to block `target_ids[i]` of another or the same, one copy a run.

    Pools are `(num_blocks, *block_shape)`. On a GPU the copies are queued on the current stream.
    """
    runs: Sequence[Run] = find_runs(source_ids, target_ids)
    if source_pool is target_pool:  # a run could overlap its own target
        runs = [Run(*pair, 1) for pair in zip(source_ids, target_ids, strict=True)]
    for source_id, target_id, num_blocks in runs:
        target = target_pool[target_id : target_id + num_blocks]
        target.copy_(source_pool[source_id : source_id + num_blocks], non_blocking=True)
