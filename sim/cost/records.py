"""Dataclasses from JSON objects that have exactly their fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from engine.core.errors import UserError

T = TypeVar("T")


def record(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from a JSON object, inner objects as they are; UserError, naming the keys, otherwise."""
    names = {field.name for field in fields(kind) if field.init}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != names:
        given = set(values) if isinstance(values, dict) else set()
        missing, unknown = sorted(names - given), sorted(given - names)
        raise UserError(f"{where}: missing keys {missing}, unknown keys {unknown}: calibrate again")
    return kind(**values)
