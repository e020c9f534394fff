"""The command `pagetwin`: a verb, and what follows it as the entry point of that verb takes it.

pagetwin run backend=simulated restore=swap
pagetwin sweep gather multirun/2026-11-25/14-00-00
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from engine.core.errors import UserError
from experiments.errors import plain_errors
from experiments.extras import check_installed

VERBS = {
    "run": ("experiments.run", "serve a workload in one world; -m for a sweep"),
    "validate": ("experiments.validate", "calibrate, simulate, execute, compare: needs the extra engine"),
    "calibrate": ("experiments.calibrate", "measure this machine's step times: needs the extra engine"),
    "sweep gather": ("experiments.gather", "the table of a sweep from its folder"),
    "soak": ("experiments.soak", "every law, over random steps"),
}
"""Each verb with its module, whose `main` reads sys.argv, and what it does."""


def usage() -> str:
    """What can be typed."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, (_, text) in VERBS.items()]
    head = "usage: pagetwin VERB ...  (pagetwin VERB --help says what a verb takes)"
    return "\n".join([head, "", *lines])


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two, and what follows it.

    Raises:
        UserError: there is no such verb.
    """
    for verb in VERBS:
        words = verb.split()
        if list(arguments[: len(words)]) == words:
            return verb, list(arguments[len(words) :])
    raise UserError(f"pagetwin {' '.join(arguments[:2])}: no such verb: choose {', '.join(VERBS)}")


@plain_errors
def main() -> None:
    """The entry point; the verb's module is imported only now, so that a simulation needs no torch."""
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        print(usage())
        return
    verb, rest = split(arguments)
    module = VERBS[verb][0]
    check_installed(module, f"pagetwin {verb}")
    sys.argv = [f"pagetwin {verb}", *rest]
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it: policies of the folder where one works are found
    import_module(module).main()


if __name__ == "__main__":
    main()
