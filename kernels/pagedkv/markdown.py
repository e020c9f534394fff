"""Markdown tables, and the places in a README where they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table, numbers to the right."""
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(names))]
    lines = [names, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _is_number(cell: Any) -> bool:
    return str(cell).replace(",", "").replace(".", "").replace("-", "").isdigit()


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- begin {name} -->", f"<!-- end {name} -->"


def _split(path: Path, name: str) -> tuple[str, str, str]:
    begin, end = _markers(name)
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path} must have the lines {begin!r} and {end!r}, once each, in this order")
    head, rest = text.split(begin)
    body, tail = rest.split(end)
    return head, body.strip(), tail


def read_between(path: Path, name: str) -> str:
    """What stands between the markers of this name.

    Raises ValueError where the file has no such markers.
    """
    return _split(path, name)[1]


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of this name.

    Raises ValueError where the file has no such markers.
    """
    head, _, tail = _split(path, name)
    begin, end = _markers(name)
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
