"""Compiler reports of the kernels, without a GPU: what ptxas made of each, and whether that is as planned.

A kernel is compiled ahead of time for an architecture, its machine code is disassembled, and its instructions
are counted. Three things are read off: that nothing spills (no local memory, no stack); that K and V move in
16-byte pieces (one stride that the compiler cannot prove divisible by 16 turns a 128-bit copy into dozens of
2-byte loads); and that registers and shared memory leave room for as many programs an SM as were planned.

    python -m pagedkv.aot [--all] [--only NAME] [--json FILE] [--write]

The exit status is 1 if a kernel breaks its budget. Where TRITON_INTERPRET is set nothing can be compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError
from triton.runtime.errors import PTXASError

from pagedkv.markdown import read_between, table, write_between
from pagedkv.sass import disassemble

MODULES = ("decode", "prefill", "store", "copy", "norm", "swiglu", "sampling")
"""Modules of the package with kernels; each has a function `variants()`."""

README = Path(__file__).parents[1] / "README.md"
MARKER = "compiler report"


class Variant(NamedTuple):
    """A kernel as it is compiled for one configuration, and what its machine code may use.

    `signature` has the type of each run-time argument: "*fp16", "i32", "fp32"; pointers are taken to
    be divisible by 16 bytes, as those of torch tensors are; "i32:16" says so of an integer. An argument that
    is None at the call is a constexpr None.
    """

    name: str
    kernel: Any
    """The function under `triton.jit`."""
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int
    """Budget a thread."""
    max_shared_bytes: int
    """Budget a program."""
    archs: tuple[int, ...] = (80, 90)
    async_copies: bool = False
    """Whether 128-bit async copies (LDGSTS) or TMA must be there."""
    tensor_cores: bool = False
    """Whether matrix instructions must be there."""
    wide_loads: bool = True
    """Whether loads of 1 or 2 bytes are forbidden."""
    in_use: bool = True
    """Whether a table of launch configurations leads to it; the others are compiled with --all only."""


class Report(NamedTuple):
    """What the compiler made of a variant."""

    name: str
    arch: int
    num_warps: int
    num_stages: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    """Stack and local memory of a thread."""
    spills: int
    """Instructions that load or store local memory."""
    instructions: int
    """Without padding."""
    async_copies_128: int
    """LDGSTS of 16 bytes, and TMA copies."""
    loads_128: int
    narrow_loads: int
    """Loads of 1 or 2 bytes from global memory."""
    matrix_ops: int
    """HMMA, HGMMA, QGMMA and the like."""


def compile_variant(variant: Variant, arch: int) -> Report:
    """Compile for sm_<arch>, disassemble, and count.

    Raises RuntimeError under TRITON_INTERPRET, ValueError if signature and constexprs do not cover the
    arguments of the kernel.
    """
    if knobs.runtime.interpret or not isinstance(variant.kernel, triton.runtime.JITFunction):
        raise RuntimeError("unset TRITON_INTERPRET: in its process nothing can be compiled")
    source = ASTSource(variant.kernel, _types(variant), dict(variant.constexprs), _divisibility(variant))
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    code = disassemble(compiled.asm["cubin"])
    return Report(
        variant.name,
        arch,
        variant.num_warps,
        variant.num_stages,
        registers=code.usage["REG"],
        shared_bytes=compiled.metadata.shared,
        stack_bytes=code.usage["STACK"] + code.usage["LOCAL"],
        spills=code.count(r"(LDL|STL)\b"),
        instructions=code.opcodes.total(),
        async_copies_128=code.count(r"LDGSTS\b.*\.128|UTMALDG"),
        loads_128=code.count(r"LDG\b.*\.128"),
        narrow_loads=code.count(r"LDG\b.*\.[US](16|8)\b"),
        matrix_ops=code.count(r"[A-Z]*(GMMA|MMA)\b"),
    )


def violations(variant: Variant, report: Report) -> list[str]:
    """What the report has against its variant, in words; empty if all is well."""
    checks = [
        (
            report.spills + report.stack_bytes == 0,
            f"{report.spills} spills, {report.stack_bytes} bytes of stack",
        ),
        (
            report.registers <= variant.max_registers,
            f"{report.registers} registers > {variant.max_registers}",
        ),
        (
            report.shared_bytes <= variant.max_shared_bytes,
            f"{report.shared_bytes} bytes of shared memory > {variant.max_shared_bytes}",
        ),
        (not variant.wide_loads or report.narrow_loads == 0, f"{report.narrow_loads} loads of 1 or 2 bytes"),
        (not variant.async_copies or report.async_copies_128 > 0, "no 128-bit async copies"),
        (not variant.tensor_cores or report.matrix_ops > 0, "no matrix instructions"),
    ]
    return [f"{report.name}, sm_{report.arch}: {text}" for passes, text in checks if not passes]


def all_variants() -> Iterator[Variant]:
    """The variants of all kernels."""
    for module in MODULES:
        yield from importlib.import_module(f"pagedkv.{module}").variants()


def compile_all(variants: Iterable[Variant]) -> tuple[list[Report], list[str]]:
    """Reports of all variants on all their architectures, and what breaks a budget or does not compile."""
    jobs = [(variant, arch) for variant in variants for arch in variant.archs]
    return _sorted_out(jobs, [_compile(*job) for job in jobs])


def _compile_in_parallel(choose: Callable[[Variant], bool]) -> tuple[list[Report], list[str]]:
    """As `compile_all`, on all cores; a worker looks its variant up by number, as functions do not travel."""
    jobs = [(i, v, arch) for i, v in enumerate(all_variants()) if choose(v) for arch in v.archs]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        results = list(workers.map(_compile_nth, [i for i, _, _ in jobs], [arch for _, _, arch in jobs]))
    return _sorted_out([job[1:] for job in jobs], results)


def _compile_nth(index: int, arch: int) -> Report | str:
    return _compile(next(islice(all_variants(), index, None)), arch)


def _compile(variant: Variant, arch: int) -> Report | str:
    try:
        return compile_variant(variant, arch)
    except (CompilationError, PTXASError, RuntimeError) as error:
        if knobs.runtime.interpret:
            raise
        return str(error)


def _sorted_out(
    jobs: Sequence[tuple[Variant, int]], results: Sequence[Report | str]
) -> tuple[list[Report], list[str]]:
    broken = []
    for (variant, arch), result in zip(jobs, results, strict=True):
        if isinstance(result, str):
            broken.append(f"{variant.name}, sm_{arch}: does not compile: {result}")
        else:
            broken += violations(variant, result)
    return [result for result in results if not isinstance(result, str)], broken


def _types(variant: Variant) -> dict[str, str]:
    arguments, given = set(variant.kernel.arg_names), {*variant.signature, *variant.constexprs}
    if arguments != given:
        raise ValueError(
            f"{variant.name}: the kernel takes {arguments - given} too, and not {given - arguments}"
        )
    return {
        name: "constexpr" if name in variant.constexprs else variant.signature[name].removesuffix(":16")
        for name in variant.kernel.arg_names
    }


def _divisibility(variant: Variant) -> dict[tuple[int, ...], list[list[Any]]]:
    types = [variant.signature.get(name, "") for name in variant.kernel.arg_names]
    divisible = [i for i, type_ in enumerate(types) if type_.startswith("*") or type_.endswith(":16")]
    return {(i,): [["tt.divisibility", 16]] for i in divisible}


def markdown(reports: Sequence[Report]) -> str:
    """The table of the README."""
    names = [
        "kernel, configuration", "sm", "warps", "stages", "registers", "shared memory", "instructions",
        "128-bit async copies", "128-bit loads", "matrix instructions",
    ]  # fmt: skip
    rows = [
        [r.name, r.arch, r.num_warps, r.num_stages, r.registers, f"{r.shared_bytes:,}", f"{r.instructions:,}",
         r.async_copies_128, r.loads_128, r.matrix_ops]
        for r in reports
    ]  # fmt: skip
    return f"Compiled by Triton {triton.__version__}.\n\n{table(names, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and say what breaks a budget."""
    parser = argparse.ArgumentParser(prog="python -m pagedkv.aot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--all", action="store_true", help="also the configurations that nothing uses yet")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--json", type=Path, help="write reports and violations to this file")
    parser.add_argument("--write", action="store_true", help="write the table into kernels/README.md")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    reports, broken = _compile_in_parallel(lambda v: (options.all or v.in_use) and options.only in v.name)
    if options.json:
        content = {"triton": triton.__version__, "reports": [r._asdict() for r in reports], "broken": broken}
        options.json.write_text(json.dumps(content, indent=1))
    if options.write:
        write_between(README, MARKER, markdown(reports))
    print(markdown(reports))
    print(f"\n{len(reports)} compilations in {time.perf_counter() - started:.0f} s", *broken, sep="\n")
    return 1 if broken else 0


def in_readme() -> str:
    """The table that stands in the README."""
    return read_between(README, MARKER)


if __name__ == "__main__":
    sys.exit(main())
