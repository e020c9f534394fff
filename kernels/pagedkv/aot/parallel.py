"""Compilation on all cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from pagedkv.aot import Report, Variant, all_variants, compile_or_explain, sort_out


def compile_in_parallel(choose: Callable[[Variant], bool]) -> tuple[list[Report], list[str]]:
    """Reports of the chosen variants, on all cores, and what is wrong.

    A worker looks its variant up by number: functions under `triton.jit` do not travel between processes.
    """
    jobs = [(i, v, arch) for i, v in enumerate(all_variants()) if choose(v) for arch in v.archs]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        results = list(workers.map(_compile_nth, [i for i, _, _ in jobs], [arch for _, _, arch in jobs]))
    return sort_out([job[1:] for job in jobs], results)


def _compile_nth(index: int, arch: int) -> Report | str:
    return compile_or_explain(next(islice(all_variants(), index, None)), arch)
