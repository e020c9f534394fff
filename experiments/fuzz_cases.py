"""What the fuzz of the engine serves: settings and requests at random, and what must become of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from engine.core.errors import UserError
from engine.core.events import EventKind
from engine.core.policies.base import Policies
from engine.core.spec import Limits, RequestSpec, Sampling
from experiments.compose import CONF, policies_from_config
from experiments.fuzz_models import (
    NAMES,
    NUM_ANSWERED,
    POISONS,
    VOCAB_SIZE,
    WINDOW,
    Answer,
    TinyModel,
)


class FuzzFailed(AssertionError):
    """Something came out otherwise than it must; the notes say how to run it again."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what must become of it."""

    kind: str
    spec: RequestSpec
    endings: tuple[str, ...]
    """How it may end: kinds of events, or refused."""
    answer: Answer | None = None
    """Its tokens, if they are known; those of a request that did not finish are the first of them."""
    step: int = 0
    """At which it arrives."""
    abort_step: int | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made of, but for its requests."""

    model: TinyModel
    preset: str
    restore: str
    limits: Limits
    block_size: int
    num_blocks: int
    num_host_blocks: int
    stale: bool
    """Blocks hold NaN from the beginning."""

    def policies(self) -> Policies:
        """Built anew for each run."""
        return policies_from_config(_composed(self.preset, self.restore))


@cache
def _composed(preset: str, restore: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("run", overrides=[f"preset={preset}", f"restore={restore}"])


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


def random_setting(rng: Random) -> Setting:
    """Pools hold the longest request, a second sequence of it and a watermark, and not much more."""
    preset, restore = rng.choice(_choices("preset")), rng.choice(_choices("restore"))
    max_num_seqs = rng.randint(2, 8)
    splits = policies_from_config(_composed(preset, restore)).batching.splits_prompts
    budget = rng.choice((max_num_seqs, 9, 16, 64, 100)) if splits else rng.choice((WINDOW, 100, 150))
    block_size = rng.choice((1, 2, 4, 5, 16))
    longest = math.ceil(WINDOW / block_size) + math.ceil(NUM_ANSWERED / block_size) + 3
    return Setting(
        model=TinyModel.of(rng.choice(NAMES), rng.choice(POISONS)),
        preset=preset,
        restore=restore,
        limits=Limits(max_num_seqs, max(max_num_seqs, budget), WINDOW),
        block_size=block_size,
        num_blocks=rng.randint(longest, longest + longest // 4),
        num_host_blocks=rng.choice((0, longest // 2, 3 * longest)),
        stale=rng.random() < 0.5,
    )


def random_cases(rng: Random, setting: Setting) -> Iterator[Case]:
    """Good and bad requests, in the order of their arrival."""
    step = 0
    for number in range(rng.randint(6, 14)):
        step += rng.choice((0, 0, 0, 0, 1, 3, 15))
        kind = rng.choices(tuple(KINDS), weights=tuple(KINDS.values()))[0] if number else "good"
        yield _case(rng, setting, kind, f"r{number}", step)


KINDS = {
    "good": 10, "parallel": 2, "drawn": 2, "poisoned": 3, "aborted": 2, "outside": 1, "too long": 1,
    "too wide": 1, "duplicate": 1, "bad sampling": 1,
}  # fmt: skip
"""And how often each is drawn."""


def _case(rng: Random, setting: Setting, kind: str, request_id: str, step: int) -> Case:
    num_tokens = rng.choice((NUM_ANSWERED, rng.randint(1, NUM_ANSWERED)))
    prompt = setting.model.prompt(rng, poisoned=kind == "poisoned")
    answer = setting.model.answer(prompt, num_tokens)
    endings: tuple[str, ...] = (EventKind.FINISHED, EventKind.FAILED) if answer is None else (answer.ending,)
    n, sampling, abort_step = 1, Sampling(), None
    if kind == "outside":
        prompt, endings = (*prompt[:-1], rng.choice((-1, VOCAB_SIZE, 1 << 40))), ("refused",)
    elif kind == "too long":
        num_prompt_tokens = WINDOW + rng.choice((0, 1, 30))
        prompt, endings = (5,) * num_prompt_tokens, (EventKind.REJECTED,)
    elif kind == "too wide":
        n, endings = setting.limits.max_num_seqs + 1, (EventKind.REJECTED,)
    elif kind == "duplicate":
        request_id, endings = "r0", ("refused",)
    elif kind == "parallel":
        n = 2
    elif kind == "drawn":
        sampling = Sampling(rng.choice((5e-324, 0.7, 1.5)), rng.choice((0, 5)), rng.choice((0.5, 1.0)))
        answer, endings = None, (EventKind.FINISHED, EventKind.FAILED)
    elif kind == "aborted":
        abort_step, endings = step + rng.randint(0, 12), (*endings, EventKind.ABORTED)
    elif kind == "bad sampling":
        _check_refused(rng)
    spec = RequestSpec(
        request_id, step, len(prompt), num_tokens, n=n, prompt_token_ids=prompt, sampling=sampling
    )
    return Case(kind, spec, endings, answer, step, abort_step)


def _check_refused(rng: Random) -> None:
    """Sampling that cannot be is refused when it is built, so that nobody ever hears of such a request."""
    bad: dict[str, tuple[Any, ...]] = {
        "temperature": (-1.0, math.nan, math.inf),
        "top_p": (0.0, 1.5, math.nan),
        "top_k": (-3, 2.5),
    }
    name = rng.choice(sorted(bad))
    value = rng.choice(bad[name])
    try:
        Sampling(**{name: value})
    except UserError:
        return
    raise FuzzFailed(f"Sampling({name}={value}) passes")
