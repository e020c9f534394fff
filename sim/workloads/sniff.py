"""Which reader fits a file: asked where another one could not read it."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path

HEAD_BYTES = 65_536
"""How much of a file is looked at."""

JSON_LINES = {
    "a Mooncake trace": ("mooncake", [{"timestamp", "input_length", "output_length"}]),
    "prompts, one JSON object a line": ("prompts", [{"prompt"}, {"messages"}, {"body"}]),
}
CSV_HEADERS = {
    "an Azure trace": ("azure", [{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}]),
    "a CSV file with times": ("csv", [{"arrived_at", "num_prefill_tokens", "num_decode_tokens"}]),
    "a CSV file of lengths": ("sharegpt", [{"num_prefill_tokens", "num_decode_tokens"}]),
}
"""What a file is called, the choice of conf/workload that reads it, and the keys by which it is known: all
those of one of the sets. The first match counts.
"""


def hint(path: Path, reader: str) -> str:
    """The end of an error message of `reader`: what the file looks like, and which reader takes it.

    Empty if it looks like nothing that is known, or like what this reader takes.
    """
    what, fitting = known_format(path) or ("", reader)
    return "" if fitting == reader else f"; this looks like {what}: workload={fitting}"


def known_format(path: Path) -> tuple[str, str] | None:
    """What a file looks like, in words, and the choice of conf/workload that reads it."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    if head.startswith("[") and '"conversations"' in head:
        return "a ShareGPT conversation file", "sharegpt_json"
    first = head.partition("\n")[0].strip()
    if head.startswith("{"):
        return _match(JSON_LINES, _keys(first))
    header = next(csv.reader([first]), []) if "\x00" not in first else []
    known = _match(CSV_HEADERS, {name.strip() for name in header})
    return known or (("a CSV file", "csv") if len(header) > 1 and not head.startswith("[") else None)


def _match(formats: dict[str, tuple[str, list[set[str]]]], keys: Collection[str]) -> tuple[str, str] | None:
    for what, (reader, known) in formats.items():
        if any(needed.issubset(keys) for needed in known):
            return what, reader
    return None


def _keys(line: str) -> Collection[str]:
    """The keys of a JSON object; none if the line is not one."""
    try:
        cells = json.loads(line)
    except json.JSONDecodeError:
        return ()
    return cells if isinstance(cells, dict) else ()
