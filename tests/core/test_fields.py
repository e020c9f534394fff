from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pytest

from engine.core.errors import UserError
from engine.core.fields import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Count,
    Natural,
    NonNegative,
    Positive,
    Share,
    annotations_of,
    check_fields,
    fault,
)  # fmt: skip
from engine.core.policies.admission import FullPrompt, Watermark
from engine.core.policies.batching import DecodeFirst
from engine.core.policies.order import Fcfs
from engine.core.policies.reservation import OnDemand
from engine.core.policies.restore import Recompute
from engine.core.policies.victim import LastAdmitted
from tests.core.build import policies


class Chooser(Protocol):
    @property
    def name(self) -> str: ...

    def choose(self) -> int: ...


class Mute:
    name = "mute"


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int), (-3, int), (np.int64(4), int), (1, float), (0.5, float), (10**400, object),
        (np.float64(2), float), (True, bool), ("a", str), (None, int | None), (3, int | None),
        ("a", Literal["a", "b"]), ([1, 2], Sequence[int]), ((1, 2), tuple[int, ...]), ([], Sequence[int]),
        ({0: 0.5}, Mapping[int, float]), (1, Count), (0, Natural), (0, NonNegative), (1e-9, Positive),
        (1, Share), (0.999, Annotated[float, Below(1)]), ([1, 2.5], Sequence[Positive]),
        ([[1], [2]], Sequence[Sequence[int]]), ("x", Any), (object(), str | Mute),
        (7, Sequence[int] | int | None),
    ],
)  # fmt: skip
def test_fits(value: object, annotation: object) -> None:
    assert fault("key", value, annotation) is None


@pytest.mark.parametrize(
    ("value", "annotation", "text"),
    [
        (1.5, int, "key is 1.5: must be a whole number"),
        (1000.0, Count, "key is 1000.0: must be a whole number, at least 1 (write 1000)"),
        (True, int, "key is True: must be a whole number"),
        (True, float, "key is True: must be a number"),
        (1, bool, "key is 1: must be true or false"),
        ("1", int, "key is '1': must be a whole number"),
        ("fast", float | None, "key is 'fast': must be a number, or null"),
        (math.nan, float, "key is nan: must be a number"),
        (math.inf, NonNegative, "key is inf: must be a number, at least 0"),
        (10**400, float, f"key is {10**400}: must be a number"),
        (None, Count, "key is null: must be a whole number, at least 1"),
        (0, Count | None, "key is 0: must be a whole number, at least 1, or null"),
        (90, Share, "key is 90: must be a number, above 0 and at most 1"),
        (2, Annotated[float, AtLeast(0), Below(1)], "key is 2: must be a number, at least 0 and below 1"),
        (0, Annotated[float, Above(0), AtMost(1)], "key is 0: must be a number, above 0 and at most 1"),
        ("c", Literal["a", "b"], "key is 'c': must be one of a, b"),
        (True, Literal[1, 2], "key is True: must be one of 1, 2"),
        (2, Sequence[int], "key is 2: must be a list, each a whole number"),
        ("ab", Sequence[str], "key is 'ab': must be a list, each text"),
        ([1, "a"], Sequence[int], "key[1] is 'a': must be a whole number"),
        ([1, "a"], Sequence[int] | None, "key[1] is 'a': must be a whole number"),
        ([[1], [0]], Sequence[Sequence[Count]], "key[1][0] is 0: must be a whole number, at least 1"),
        ({"a": -1}, Mapping[str, Positive], "key.a is -1: must be a number, above 0"),
        ({"a": 1}, Mapping[int, float], "a key of key is 'a': must be a whole number"),
        (3, Chooser, "key is 3: must be a Chooser"),
        (3, Mute, "key is 3: must be a Mute"),
    ],
)  # fmt: skip
def test_a_fault_names_the_key_and_what_is_allowed(value: object, annotation: object, text: str) -> None:
    assert fault("key", value, annotation) == text


def test_what_lacks_a_member_of_its_protocol() -> None:
    text = fault("victim", Mute(), Chooser)
    assert text is not None
    assert "it lacks choose, which a Chooser has" in text


@dataclass(frozen=True)
class Base:
    size: Count


@dataclass(frozen=True)
class Derived(Base):
    share: Share = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


def test_a_dataclass_checks_itself_inherited_fields_too() -> None:
    assert list(annotations_of(Derived)) == ["size", "share"]
    Derived(1, 0.5)
    with pytest.raises(UserError, match=r"^Derived.size is 0: must be a whole number, at least 1$"):
        Derived(0)
    with pytest.raises(UserError, match=r"^Derived.share is 2: "):
        Derived(1, 2)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: FullPrompt(watermark=2), "FullPrompt.watermark"),
        (lambda: Watermark(fraction=-0.1), "Watermark.fraction"),
        (lambda: Watermark(headroom_per_seq=0.5), "Watermark.headroom_per_seq"),  # type: ignore[arg-type]
        (lambda: Fcfs(sorts=("runing",)), r"Fcfs.sorts\[0\]"),  # type: ignore[arg-type]
    ],
)
def test_policies_check_their_values(build: Any, key: str) -> None:
    with pytest.raises(UserError, match=f"^{key} is "):
        build()


def test_a_policy_without_the_method_of_its_axis() -> None:
    good = policies()
    with pytest.raises(UserError, match=r"^Policies.victim is Fcfs\(.*: it lacks choose, which a Victim"):
        type(good)(Fcfs(), FullPrompt(), DecodeFirst(), Fcfs(), Recompute(), OnDemand())  # type: ignore[arg-type]
    assert LastAdmitted() == good.victim
