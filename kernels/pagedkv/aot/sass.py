"""Machine code of a compiled kernel, by the tools in Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

from triton import knobs

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", re.MULTILINE)
"""An address, a predicate if there is one, an opcode with its modifiers."""


class Code(NamedTuple):
    """What a kernel uses, and of what instructions it consists."""

    usage: dict[str, int]
    """REG a thread, STACK and LOCAL bytes a thread, SHARED bytes a program where static."""
    opcodes: Counter[str]
    """With modifiers; NOP, the padding at the end, is left out."""

    def count(self, pattern: str) -> int:
        """Instructions whose opcode begins with a match."""
        return sum(number for opcode, number in self.opcodes.items() if re.match(pattern, opcode))


def disassemble(cubin: bytes) -> Code:
    """Take a cubin of one kernel apart."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        text = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", resources)}
    return Code(usage, Counter(opcode for opcode in INSTRUCTION.findall(text) if opcode != "NOP"))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
