"""What a query of a layer sees of its sequence, read from the mask that the model would have built.

A limit such as Llama 4's chunks arrives in no argument of the attention call: it is in the mask only. So the
mask functions of transformers are asked for their mask once, when a model is loaded, and what they hide is
named. A keyword that says something else is not believed: transformers' own attention follows the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import eager_mask

from engine.core.errors import UserError

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of transformers: whether a query sees a slot, from the indices of sequence, head, query and slot."""


class UnsupportedModelError(UserError):
    """The model cannot be served on the paged pool; the message says what stands in the way."""


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Whatever goes wrong within says that the model of this name cannot be served, and why."""
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} cannot be served: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"{name} cannot be served: a trial step ended in {type(error).__name__}: {told}"
        ) from error


@dataclass(frozen=True, slots=True)
class Reach:
    """A query at position p sees p and what is before it, but for one of two limits."""

    window: int | None = None
    """It sees the last so many positions, its own included."""
    chunk: int | None = None
    """It sees positions s with s // chunk == p // chunk."""

    def sees(self, query: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """Whether the queries see the slots; positions that broadcast."""
        seen = slot <= query
        if self.window is not None:
            seen = seen & (slot > query - self.window)
        if self.chunk is not None:
            seen = seen & (slot // self.chunk == query // self.chunk)
        return seen


def describing_mask(*, mask_function: MaskFunction, q_length: int, **options: Any) -> torch.Tensor | None:
    """The mask that eager attention adds to its scores, `(1, 1, q_length, q_length)`, with its `reach`.

    Registered as a mask function of transformers while a model is being looked at. The size of a window or a
    chunk comes as `local_size`; which of the two it is, and whether anything else is hidden or shown, tells
    `mask_function` at the positions where they differ. A mask that cannot be named is an error for the layer
    that attends with it, not before: models build some that no layer uses.
    """
    options["allow_is_causal_skip"] = False
    mask: Any = eager_mask(mask_function=mask_function, q_length=q_length, **options)
    if mask is None:  # sees everything, before and after
        return None
    try:
        mask.reach = _reach_of_function(mask_function, q_length, options.get("local_size"), mask.device)
    except UnsupportedModelError as error:
        mask.reach = error
    return mask  # type: ignore[no-any-return]


def reach_of(mask: torch.Tensor | None) -> Reach:
    """What the mask of a layer lets it see: as described, or, of a mask that the model made itself, as found.

    Raises:
        UnsupportedModelError: it is not causal, hides something else, or carries a bias.
    """
    if mask is None:
        return Reach()  # whether causal or not, is for the comparison to say
    described = getattr(mask, "reach", None)
    if isinstance(described, Reach):
        return described
    if isinstance(described, UnsupportedModelError):
        raise described
    return _reach_of_values(mask)


def _reach_of_function(
    function: MaskFunction, num_tokens: int, size: int | None, device: torch.device
) -> Reach:
    last = max(num_tokens, 3 * (size or 0) + 2)
    edges = [0, 1, *(0 if size is None else n * size + d for n in (1, 2, 3) for d in (-1, 0, 1)), last - 1]
    some = sorted({q for q in edges if 0 <= q < last} | set(range(min(num_tokens, 64))))
    queries, slots = torch.tensor(some, device=device), torch.arange(last, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    try:
        seen = function(zero, zero, queries[:, None], slots[None, :])
    except IndexError as error:
        raise UnsupportedModelError(
            "its mask depends on the contents of the batch, not on positions alone"
        ) from error
    return _fit(queries[:, None], slots[None, :], seen, _candidates(size))


def _reach_of_values(mask: torch.Tensor) -> Reach:
    rows = mask.reshape(-1, *mask.shape[-2:])
    seen = rows if rows.dtype == torch.bool else rows == 0
    hidden = seen.logical_not() if rows.dtype == torch.bool else rows <= torch.finfo(rows.dtype).min / 2
    if not bool((seen | hidden).all()) or not bool((seen == seen[:1]).all()):
        raise UnsupportedModelError("its mask carries a bias, or differs from head to head")
    positions = torch.arange(seen.shape[-1], device=mask.device)
    size = int(seen[0].sum(dim=-1).max())
    return _fit(positions[:, None], positions[None, :], seen[0], _candidates(size))


def _candidates(size: int | None) -> Iterator[Reach]:
    yield Reach()
    if size is not None and size > 0:
        yield Reach(window=size)
        yield Reach(chunk=size)


def _fit(
    queries: torch.Tensor, slots: torch.Tensor, seen: torch.Tensor, candidates: Iterator[Reach]
) -> Reach:
    for reach in candidates:
        expected = reach.sees(queries, slots)
        if expected.shape == seen.shape and torch.equal(expected, seen):
            return reach
    raise UnsupportedModelError(
        "its mask is neither causal nor causal within a sliding window or a chunk of its own sequence"
    )
