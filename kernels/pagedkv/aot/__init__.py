"""Compiler reports of the kernels, without a GPU: what ptxas made of each, and whether that is as planned.

A kernel is compiled ahead of time for an architecture, its machine code is disassembled, and its instructions
are counted. Three things are read off: that nothing spills (no local memory, no stack); that K and V move in
16-byte pieces (one stride that the compiler cannot prove divisible by 16 turns a 128-bit copy into dozens of
2-byte loads); and that registers and shared memory leave room for as many programs an SM as were planned.

    python -m pagedkv.aot [--all] [--only NAME] [--json FILE] [--write]

The exit status is 1 if a kernel breaks its budget. Where TRITON_INTERPRET is set nothing can be compiled.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError
from triton.runtime.errors import PTXASError

from pagedkv.aot.sass import disassemble

MODULES = ("decode", "prefill", "store", "rope", "copy", "norm", "swiglu", "sampling")
"""Modules of the package with kernels; each has a function `variants()`."""


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
    return sort_out(jobs, [compile_or_explain(*job) for job in jobs])


def compile_or_explain(variant: Variant, arch: int) -> Report | str:
    """The report, or why it does not compile."""
    try:
        return compile_variant(variant, arch)
    except (CompilationError, PTXASError, RuntimeError) as error:
        if knobs.runtime.interpret:
            raise
        return str(error)


def sort_out(
    jobs: Sequence[tuple[Variant, int]], results: Sequence[Report | str]
) -> tuple[list[Report], list[str]]:
    """The reports there are, and all that is wrong."""
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
