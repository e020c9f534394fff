"""Is a configuration what its targets can be built from: every key known, every value in type and range.

The whole tree is walked before anything is built, along the signatures of the `_target_`s and the annotations
that engine.core.fields understands. Nothing is converted: what does not fit is refused, by its full key.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pkgutil import resolve_name
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from engine.core.errors import UserError
from engine.core.fields import annotations_of, check_value, element_annotation
from experiments.extras import check_installed

RESERVED = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
"""Keys of Hydra's instantiate."""


class Part(NamedTuple):
    """A value of a configuration that no target builds, its full key, and what it is to be."""

    key: str
    value: object
    annotation: object


def check(config: DictConfig, schema: Any = Any, key: str = "") -> None:
    """Refuse a configuration, or a node of it whose key is `key`, before anything is built.

    `schema` is what the keys at the root are to be: the annotations of a dataclass.

    Raises:
        UserError: a key is unknown or missing, or a value does not fit; names the first and what is allowed.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: {error.full_key}=...") from error
    # First where a value was written, so that a fault has the key that can be changed; then where it is used.
    for tree in (_written(plain, OmegaConf.to_container(config)), plain):
        for part in parts(tree, key, schema):
            check_value(*part)


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands for a value that was written elsewhere: an interpolation."""


def _written(node: object, raw: object) -> object:
    """A tree with a Reference wherever its raw form has an interpolation."""
    if isinstance(raw, str) and raw.startswith("${"):
        return Reference()
    if isinstance(node, dict) and isinstance(raw, dict):
        return {name: _written(value, raw[name]) for name, value in node.items()}
    if isinstance(node, list) and isinstance(raw, list):
        return [_written(value, item) for value, item in zip(node, raw, strict=True)]
    return node


def parts(node: object, key: str, annotation: Any) -> Iterator[Part]:
    """Every value below a node, in the order of the configuration.

    Raises:
        UserError: a target does not exist, or a node has other keys than its target takes.
    """
    if isinstance(node, Reference):
        return
    called = _called(node, key, annotation)
    if called is not None:
        assert isinstance(node, Mapping)
        annotations = _checked_keys(node, key, called)
        for name, value in node.items():
            if name not in RESERVED:
                yield from parts(value, _joined(key, name), annotations.get(name, Any))
    elif _holds_targets(node) or is_dataclass(element_annotation(annotation, node)):
        element: Any = element_annotation(annotation, node) or Any
        items = node.items() if isinstance(node, Mapping) else enumerate(node)  # type: ignore[arg-type]
        for name, value in items:
            inner = _joined(key, name) if isinstance(node, Mapping) else f"{key}[{name}]"
            yield from parts(value, inner, element)
    else:
        yield Part(key, node, annotation)


def _called(node: object, key: str, annotation: Any) -> Any:
    """What the keys of a node are the arguments of: its target, or a dataclass that it is annotated with."""
    if not isinstance(node, Mapping):
        return None
    if "_target_" in node:
        return located(str(node["_target_"]), key)
    return annotation if is_dataclass(annotation) else None


def located(target: str, key: str) -> Any:
    """The class or function of this name.

    Raises:
        UserError: there is none, what it imports is not installed, or it cannot be called.
    """
    try:
        found = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        check_installed(target.rpartition(".")[0], f"{_joined(key, '_target_')}={target}")
        raise UserError(f"{_joined(key, '_target_')} is {target}: {error}") from error
    if not callable(found):
        raise UserError(f"{_joined(key, '_target_')} is {target}: that is not a class or function")
    return found


def _checked_keys(node: Mapping[str, object], key: str, called: Any) -> Mapping[str, object]:
    """The annotations by key. Raises UserError for keys that are unknown, and for those that are missing."""
    parameters = [
        parameter
        for parameter in inspect.signature(called).parameters.values()
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    ]
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    for name in node:
        if name not in RESERVED and name not in known and not takes_any:
            choices = f"choose {', '.join(known)}" if known else f"{called.__name__} takes no keys"
            raise UserError(f"{_joined(key, name)} is not known: {choices}")
    positional = node.get("_args_")
    by_position = known[: len(positional)] if isinstance(positional, list) else []
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.name in known
        if needed and parameter.name not in (*node, *by_position) and not node.get("_partial_"):
            raise UserError(f"{_joined(key, parameter.name)} is missing: it has no default")
    return annotations_of(called)


def _holds_targets(node: object) -> bool:
    """Somewhere below, something is to be built."""
    if isinstance(node, Mapping):
        return "_target_" in node or any(map(_holds_targets, node.values()))
    return isinstance(node, list) and any(map(_holds_targets, node))


def _joined(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
