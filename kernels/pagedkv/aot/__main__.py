"""`python -m pagedkv.aot`: compiles all kernels, prints the table, and fails where a budget is broken."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import triton

from pagedkv.aot.parallel import compile_in_parallel
from pagedkv.aot.table import markdown, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and say what breaks a budget."""
    parser = argparse.ArgumentParser(prog="python -m pagedkv.aot", description=(__doc__ or "").split(": ")[1])
    parser.add_argument("--all", action="store_true", help="also the configurations that nothing uses yet")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--json", type=Path, help="write reports and violations to this file")
    parser.add_argument("--write", action="store_true", help="write the table into kernels/README.md")
    options = parser.parse_args(arguments)
    if options.write and (options.all or options.only):
        parser.error("--write is for the whole table of what is in use: without --all and --only")
    started = time.perf_counter()
    reports, broken = compile_in_parallel(lambda v: (options.all or v.in_use) and options.only in v.name)
    if options.json:
        content = {"triton": triton.__version__, "reports": [r._asdict() for r in reports], "broken": broken}
        options.json.write_text(json.dumps(content, indent=1))
    if options.write:
        write(reports)
    print(markdown(reports))
    print(f"\n{len(reports)} compilations in {time.perf_counter() - started:.0f} s", *broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
