"""Which way imports point, what stays out of which process, and how packages are named."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """Run code in a fresh interpreter, at the root of the repository; its output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_core_and_the_simulator_leave_torch_out() -> None:
    heavy = "{'torch', 'transformers', 'pagedkv', 'hydra'}"
    modules = "engine.core, engine.core.journal, engine.core.laws, sim, sim.clock, sim.backend, sim.cost.fit"
    code = f"import sys, engine.core, sim, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert python(code) == "[]"


def test_a_simulated_run_leaves_torch_out(tmp_path: Path) -> None:
    arguments = ["workload.num_requests=5", "plots=false", f"hydra.run.dir={tmp_path}"]
    code = (
        f"import sys; sys.argv = ['run', *{arguments}]; from experiments.run import main; main(); "
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert python(code).splitlines()[-1] == "[]"


def test_openmp_threads_sleep_before_torch_can_be_imported() -> None:
    code = "import os, experiments, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    assert python(code) == "PASSIVE False"


def test_import_contracts() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_core_reads_in_one_sitting() -> None:
    """Files of a page or a few, functions that fit on a screen."""
    for path in sorted((ROOT / "engine" / "core").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 40, f"{path}: {node.name}"


def test_engine_is_an_empty_package() -> None:
    assert (ROOT / "engine" / "__init__.py").read_text() == ""


def test_kernels_is_a_source_root_and_no_package() -> None:
    """A package of that name would hide the distribution `kernels`, which transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert Path(str(importlib.import_module("pagedkv").__file__)).parent == ROOT / "kernels" / "pagedkv"


def test_transformers_models_can_be_imported() -> None:
    assert Version(importlib.metadata.version("transformers")) >= Version("5.14")
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    assert callable(llama.LlamaForCausalLM)
