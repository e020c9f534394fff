"""The notebooks: each runs on small settings, and what is checked in was made by its own cells."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ["fragmentation", "swap_vs_recompute", "throughput", "validate", "write_your_own_policy"]
MAX_PNG_BYTES = 150_000


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def shown(source: str, names: dict[str, Any]) -> object:
    """Execute a cell; the value of its last expression, as a notebook shows it."""
    module = ast.parse(source)
    last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
    exec(compile(module, "<cell>", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def outputs(name: str) -> Iterator[dict[str, Any]]:
    for cell in cells(name, "code"):
        yield from (output.get("data", {"text/plain": output}) for output in cell["outputs"])


def test_there_is_no_other_notebook() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_ends_with_its_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    monkeypatch.setenv("PAGETWIN_QUICK", "1")
    monkeypatch.chdir(FOLDER)
    names: dict[str, Any] = {"__name__": "__main__"}
    results = [shown("".join(cell["source"]), names) for cell in cells(name, "code")]
    pictures = [result._repr_png_() for result in results if hasattr(result, "_repr_png_")]
    assert pictures and all(picture.startswith(b"\x89PNG") for picture in pictures)
    answer = getattr(results[-1], "data", "")
    assert "**Answer.**" in answer and "nan" not in answer.split()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_checked_in_has_figures_an_answer_and_nothing_of_a_machine(name: str) -> None:
    data = list(outputs(name))
    pictures = [base64.b64decode(one["image/png"]) for one in data if "image/png" in one]
    assert pictures and sum(map(len, pictures)) < MAX_PNG_BYTES
    assert "**Answer.**" in "".join(data[-1]["text/markdown"])
    assert "".join(cells(name, "markdown")[0]["source"]).startswith("# ")
    assert [cell["execution_count"] for cell in cells(name, "code")] == [
        number + 1 for number in range(len(cells(name, "code")))
    ]
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not [word for word in ("Traceback", "/tmp/", "/home/", "/work/", "Warning") if word in text]
