"""What comes with an extra of the package: its absence is said in words, with the command that mends it."""

from __future__ import annotations

from importlib import import_module

from engine.core.errors import UserError

ENGINE = ("torch", "transformers", "safetensors")
"""Top-level modules that only the engine needs: the extra `engine`."""


def check_installed(module: str, what: str) -> None:
    """Refuse `what`, which needs `module`, if a module of the extra `engine` is not installed.

    Whatever else is wrong with the module is for its import to say.

    Raises:
        UserError: names the missing module, and the command that installs it.
    """
    try:
        import_module(module)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ENGINE:
            raise UserError(
                f"{what} needs {missing}, which is not installed. It comes with the extra engine: "
                "pip install 'pagetwin[engine]', or pip install -e '.[engine]' in a clone. "
                "Simulations do without"
            ) from error
