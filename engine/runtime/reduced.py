"""What makes the check of a large model cheap: fewer layers, shorter limits, float32 where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from pagedkv import AttentionOptions
from torch import nn

from engine.runtime.reach import UnsupportedModelError

MIN_TOKENS = 28
MAX_TOKENS = 4096
"""Of the longest sequence of a check."""

LIMIT_NAMES = (
    "window",
    "chunk_size",
    "floor",
    "compress",
    "block_size",
    "index_topk",
    "local_attention",
    "extent",
)
"""Parts of the names under which configs keep what a sequence must be longer than to show an effect."""


def limits_of(config: Any) -> list[int]:
    """The values of a config that limit what a query sees or scale it by its position, in tokens."""
    values = [value for name, value in vars(config).items() if any(part in name for part in LIMIT_NAMES)]
    flat = chain.from_iterable(v if isinstance(v, (list, tuple)) else [v] for v in values)
    return [int(value) for value in flat if type(value) in (int, float) and value > 0]


@contextmanager
def lowered_limits(module: nn.Module, longest: int, lowered: int) -> Iterator[int]:
    """For a while, every limit above `longest` tokens is `lowered`, in the config and in the modules.

    Yields the number of values that were changed.
    """
    config: Any = module.config
    changed: list[tuple[Any, str, Any]] = []
    try:
        for holder in {id(x): x for x in (config, config.get_text_config(), *module.modules())}.values():
            for name, value in list(vars(holder).items()):
                is_limit = type(value) in (int, float) and any(part in name for part in LIMIT_NAMES)
                if is_limit and value > longest:
                    setattr(holder, name, lowered)
                    changed.append((holder, name, value))
        yield len(changed)
    finally:
        for holder, name, value in changed:
            setattr(holder, name, value)


@contextmanager
def in_float32(module: nn.Module, unused: Sequence[nn.Module]) -> Iterator[None]:
    """For a while, the half precision weights of a model are float32, but for modules that do not run."""
    kept = {id(t) for part in unused for t in chain(part.parameters(), part.buffers())}
    tensors = [t for t in chain(module.parameters(), module.buffers()) if id(t) not in kept]
    halves = [(t, t.data) for t in tensors if t.dtype in (torch.bfloat16, torch.float16)]
    try:
        for tensor, data in halves:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in halves:
            tensor.data = data


def decoder_layers(module: nn.Module, num_layers: int) -> nn.ModuleList | None:
    """The stack of a model's layers; None if it has none that can be told."""
    stacks = (m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers)
    return next(
        (
            s
            for s in stacks
            if all(
                any(getattr(m, "layer_idx", None) == i for m in layer.modules()) for i, layer in enumerate(s)
            )
        ),
        None,
    )


class _Reached(BaseException):
    """The last layer that is wanted has run. No Exception, so that nothing in a model catches it."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def output_of(layer: nn.Module, forward: Callable[[], object]) -> torch.Tensor:
    """What a layer puts out in a forward pass, `(num_tokens, hidden_size)`; the pass ends there."""

    def stop(module: nn.Module, args: object, output: Any) -> None:
        raise _Reached(output if isinstance(output, torch.Tensor) else output[0])

    with ExitStack() as stack:
        stack.callback(layer.register_forward_hook(stop).remove)
        try:
            forward()
        except _Reached as reached:
            return reached.value[0]
    raise AssertionError(f"{type(layer).__name__} did not run")


def length(config: Any, options: Sequence[AttentionOptions]) -> int:
    """Tokens of a sequence twice as long as the longest limit, and some; within the positions there are.

    Raises:
        UnsupportedModelError: that is too long to be tried.
    """
    config = config.get_text_config()
    limits = [limit for o in options for limit in (o.sliding_window, o.chunk_size) if limit is not None]
    num_tokens = max(MIN_TOKENS, 2 * max([*limits, *limits_of(config)], default=0) + 9)
    num_tokens = min(num_tokens, getattr(config, "max_position_embeddings", None) or num_tokens)
    if num_tokens > MAX_TOKENS:
        raise UnsupportedModelError(f"a check would take {num_tokens} tokens: a limit cannot be lowered")
    return num_tokens


def num_layers_of_all_kinds(config: Any, options: Sequence[AttentionOptions]) -> int:
    """The fewest first layers that have one of each kind: what attention is asked for, and the layer type."""
    types = getattr(config.get_text_config(), "layer_types", None) or [None] * len(options)
    kinds = [
        (kind, o.sliding_window, o.chunk_size, o.scaling, o.softcap, o.sinks is None)
        for kind, o in zip(types, options, strict=False)
    ]
    return max(kinds.index(kind) for kind in set(kinds)) + 1
