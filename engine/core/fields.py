"""What a field may hold: its annotation says, and one function checks.

Types are those of the standard library, ranges are markers: `Annotated[float, Above(0), AtMost(1)]`. The same
check serves a dataclass that is built in Python (`check_fields` in its `__post_init__`) and configuration,
all of it before anything is built (experiments.check).

Why no library does this: the core imports the standard library only, so that ranges known to pydantic or
msgspec would be stated twice, for the edge and for the core. pydantic and hydra-zen's wrapper of it also
convert values and check while objects are being built, one after the other; beartype and typeguard know the
names of arguments, not the keys of a configuration; OmegaConf's structured configs know no ranges. Hydra has
no such check of its own (its issue 3203).
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from inspect import isclass
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from engine.core.errors import UserError

PLAIN = (str, int, float, bool, type(None), list, dict)
"""What YAML can say without `_target_`."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a range of numbers; see its subclasses."""

    number: float
    words: ClassVar[str]
    compare: ClassVar[Callable[[Any, float], bool]]

    def __str__(self) -> str:
        return f"{self.words} {self.number}"


class AtLeast(Bound):
    """The value is this or more."""

    words = "at least"
    compare = operator.ge


class Above(Bound):
    """The value is more than this."""

    words = "above"
    compare = operator.gt


class AtMost(Bound):
    """The value is this or less."""

    words = "at most"
    compare = operator.le


class Below(Bound):
    """The value is less than this."""

    words = "below"
    compare = operator.lt


Count = Annotated[int, AtLeast(1)]
"""So many, and not none."""
Natural = Annotated[int, AtLeast(0)]
"""So many, or none."""
Positive = Annotated[float, Above(0)]
NonNegative = Annotated[float, AtLeast(0)]
Share = Annotated[float, Above(0), AtMost(1)]
"""A part of a whole, and not nothing."""


def check_fields(instance: Any) -> None:
    """Refuse a dataclass with a field that does not fit its annotation; for its `__post_init__`.

    Raises:
        UserError: names class and field, and says what is allowed.
    """
    kind: Any = type(instance)
    for name, annotation in annotations_of(kind).items():
        check_value(f"{kind.__name__}.{name}", getattr(instance, name), annotation)


def check_value(key: str, value: object, annotation: object) -> None:
    """Raise UserError with the `fault` of a value, if it has one."""
    text = fault(key, value, annotation)
    if text is not None:
        raise UserError(text)


@cache
def annotations_of(target: Hashable) -> Mapping[str, object]:
    """The annotations of what a dataclass, a class or a function is called with.

    Empty if one of them names what cannot be found when the program runs (an import for type checkers only).
    """
    try:
        if is_dataclass(target):
            hints = get_type_hints(target, include_extras=True)
            return {field.name: hints[field.name] for field in fields(target) if field.init}
        called = target.__init__ if isclass(target) else target
        hints = get_type_hints(called, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}


def fault(key: str, value: object, annotation: object) -> str | None:
    """Why a value does not fit an annotation, with its key; None if it fits.

    An int is fine where a float is asked for, a bool is neither; 1000.0 is no int, and no float is infinite
    or NaN. Of a list or a mapping the first element that does not fit is named. What is not plain, and
    annotated with a protocol, must have its members.
    """
    kind, bounds = _unwrapped(annotation)
    if is_union(kind):
        return _fault_of_union(key, value, annotation)
    inner = _fault_inside(key, value, kind)
    if inner is not None:
        return inner
    if _fits(value, kind) and all(type(bound).compare(value, bound.number) for bound in bounds):
        return None
    missing = missing_members(value, kind) if not isinstance(value, PLAIN) else []
    if missing:
        return f"{key} is {value!r}: it lacks {', '.join(missing)}, which {wanted(kind)} has"
    return f"{key} is {_shown(value)}: must be {wanted(annotation)}{_hint(value, kind)}"


def _fault_of_union(key: str, value: object, annotation: object) -> str | None:
    """None if one alternative fits; the fault inside of the one that is a collection as the value is."""
    faults = {kind: fault(key, value, kind) for kind in get_args(_unwrapped(annotation)[0])}
    if None in faults.values():
        return None
    inner = [text for kind, text in faults.items() if element_annotation(kind, value) is not None]
    return inner[0] if inner else f"{key} is {_shown(value)}: must be {wanted(annotation)}"


def _fault_inside(key: str, value: object, kind: object) -> str | None:
    """The fault of the first element of a collection that has one."""
    element = element_annotation(kind, value)
    if isinstance(value, Mapping) and element is not None:
        texts = (
            fault(f"a key of {key}", name, get_args(kind)[0]) or fault(f"{key}.{name}", item, element)
            for name, item in value.items()
        )
    elif element is not None:
        assert isinstance(value, Sequence)
        texts = (fault(f"{key}[{i}]", item, element) for i, item in enumerate(value))
    else:
        return None
    return next(filter(None, texts), None)


def element_annotation(annotation: object, value: object) -> object | None:
    """What the elements of a collection (the values of a mapping) are to be; None if no alternative tells."""
    kind, _ = _unwrapped(annotation)
    if is_union(kind):
        found = (element_annotation(alternative, value) for alternative in get_args(kind))
        return next((element for element in found if element is not None), None)
    origin, arguments = get_origin(kind), get_args(kind)
    if not (isclass(origin) and arguments):
        return None
    if isinstance(value, Mapping) and issubclass(origin, Mapping):
        element: object = arguments[1]
        return element
    is_list = isinstance(value, list | tuple)
    return arguments[0] if is_list and issubclass(origin, Sequence) else None


def _fits(value: Any, kind: object) -> bool:
    """Whether the value itself is of a kind, its elements apart."""
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if kind is float:
        largest = sys.float_info.max  # NaN is not within, nor is an infinity
        return _is_a(Real, value) and -largest <= value <= largest
    if kind is int:
        return _is_a(Integral, value)
    outer = get_origin(kind) or kind
    if not isclass(outer) or outer in (Any, object):
        return True
    if outer in (bool, str, type(None)):
        return isinstance(value, outer)
    if issubclass(outer, Mapping):
        return isinstance(value, Mapping)
    if issubclass(outer, Sequence):
        return isinstance(value, list | tuple)
    return not isinstance(value, PLAIN) and not missing_members(value, outer)


def _is_a(number: type, value: object) -> bool:
    """A number of this kind, those of numpy included; true and false are none."""
    return isinstance(value, number) and not isinstance(value, bool)


def missing_members(value: object, kind: object) -> list[str]:
    """The members of a protocol that an object lacks, in the protocol's order."""
    if not getattr(kind, "_is_protocol", False):
        return []
    assert isclass(kind)
    names = [
        name
        for base in reversed(kind.__mro__)
        if getattr(base, "_is_protocol", False)
        for name in (*vars(base).get("__annotations__", ()), *vars(base))
        if not name.startswith("_")
    ]
    return [name for name in dict.fromkeys(names) if not hasattr(value, name)]


def wanted(annotation: object) -> str:
    """An annotation in words: "a number, above 0 and at most 1, or null"."""
    kind, bounds = _unwrapped(annotation)
    if is_union(kind):
        alternatives = sorted(get_args(kind), key=lambda kind: kind is type(None))
        return ", or ".join(map(wanted, alternatives))
    ranges = f", {' and '.join(map(str, bounds))}" if bounds else ""
    return _kind_in_words(kind) + ranges


def _kind_in_words(kind: object) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    outer = get_origin(kind) or kind
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if outer in words:
        return words[outer]
    if isclass(outer) and issubclass(outer, Mapping):
        return f"a mapping to {wanted(arguments[1])}" if arguments else "a mapping"
    if isclass(outer) and issubclass(outer, Sequence):
        return f"a list, each {wanted(arguments[0])}" if arguments else "a list"
    name = getattr(outer, "__name__", str(outer))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _hint(value: object, kind: object) -> str:
    """How to write a whole number that came as a float, such as 1e3."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    return ""


def _shown(value: object) -> str:
    """As in YAML."""
    return "null" if value is None else repr(value)


def is_union(kind: object) -> bool:
    """`A | B`, however written."""
    return get_origin(kind) in (Union, types.UnionType)


def _unwrapped(annotation: object) -> tuple[object, tuple[Bound, ...]]:
    """A type, and the bounds that stand with it."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    kind, *markers = get_args(annotation)
    return kind, tuple(marker for marker in markers if isinstance(marker, Bound))
