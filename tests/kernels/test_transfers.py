"""Block transfers as runs of neighbours."""

import torch
from pagedkv.transfers import copy_runs, find_runs


def test_runs_are_maximal():
    assert find_runs((4, 5, 6, 9, 2), (0, 1, 3, 4, 5)) == [(4, 0, 2), (6, 3, 1), (9, 4, 1), (2, 5, 1)]
    assert find_runs((3, 2, 1), (3, 2, 1)) == [(3, 3, 1), (2, 2, 1), (1, 1, 1)]
    assert find_runs((), ()) == []


def test_copies_between_and_within_pools():
    source, target = torch.arange(12.0).view(6, 2), torch.zeros(5, 2)
    copy_runs(source, target, (3, 4, 0), (1, 2, 4))
    assert target.tolist() == [[0, 0], [6, 7], [8, 9], [0, 0], [0, 1]]
    copy_runs(source, source, (0, 1), (1, 2))  # one after the other: block 2 gets what block 1 has got
    assert source[:3].tolist() == [[0, 1], [0, 1], [0, 1]]
