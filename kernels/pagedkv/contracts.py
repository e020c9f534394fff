"""What a launcher takes for granted, checked in one line."""

from __future__ import annotations


def require(condition: bool, text: str) -> None:
    """Raise ValueError with this text unless the condition holds."""
    if not condition:
        raise ValueError(text)
