"""What a cost model was measured on: it speaks of nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.core.errors import UserError
from engine.core.spec import Capacity, Limits
from sim.cost.records import record

ORIGINS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Keys of a config.json that say where it came from, or what the weights were stored in."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The engine whose steps were measured, and what it served them under."""

    model: Mapping[str, Any] = field(hash=False)
    """As `described`: what its times depend on, wherever its weights come from."""
    pool: Capacity
    limits: Limits
    policies: Mapping[str, str] = field(hash=False)
    """Under which policies the calibration ran, by the names of its contenders."""

    @property
    def name(self) -> str:
        """What messages call the model."""
        return str(self.model.get("architecture"))

    def check(self, path: object, block_size: int, model: Mapping[str, Any]) -> None:
        """Raise UserError unless a run has the block size and the model (`described`) of the measurement.

        A cost model of one block size cannot be converted to another. The engine's copy of 512 tokens of KV
        (a model of 4 layers, 2 KV heads of 64, float32, one thread of a CPU) took 358 us as 32 blocks, 211 us
        as 16 and 156 us as 8: it goes neither by the number of blocks nor by their bytes, and attention
        gathers by blocks too.
        """
        if block_size != self.pool.block_size:
            raise UserError(
                f"{path} was measured with blocks of {self.pool.block_size} tokens, and this run has blocks "
                f"of {block_size}. Costs go neither by the number of blocks nor by their bytes: calibrate "
                f"with pool.block_size={block_size}, or run with pool.block_size={self.pool.block_size}"
            )
        measured, wanted = _flat(self.model), _flat(model)
        differences = [
            f"{name} {wanted.get(name)} (measured: {measured.get(name)})"
            for name in sorted(measured.keys() | wanted.keys())
            if measured.get(name) != wanted.get(name)
        ]
        if differences:
            raise UserError(
                f"{path} was measured with another model: this run differs in {', '.join(differences)}. "
                "Calibrate with this model, or run the one that was measured"
            )

    @classmethod
    def of_json(cls, values: Any, where: str) -> Setup:
        """What `asdict` made of a set-up; UserError, naming the key, otherwise."""
        setup = record(cls, values, where)
        for name, value in (("model", setup.model), ("policies", setup.policies)):
            if not isinstance(value, dict):
                raise UserError(f"{where}, {name}: not an object: calibrate again")
        return cls(
            setup.model,
            record(Capacity, setup.pool, f"{where}, pool"),
            record(Limits, setup.limits, f"{where}, limits"),
            setup.policies,
        )


def described(
    architecture: str | None, config: Mapping[str, Any] | None, path: str | None, dtype: str
) -> dict[str, Any]:
    """A model as what its times depend on: its transformers configuration and the data type it computes in.

    That of a checkpoint directory stands in its config.json; UserError if there is none.
    """
    if path is None:
        return {"architecture": architecture, "config": dict(config or {}), "dtype": dtype}
    file = Path(path) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot read {file}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"model.path: {file} is not a JSON object")
    sizes = {key: value for key, value in found.items() if key not in ORIGINS}
    return {"architecture": str(found.get("model_type")), "config": sizes, "dtype": dtype}


def _flat(model: Mapping[str, Any], prefix: str = "model") -> dict[str, Any]:
    """Every value by its full key."""
    flat: dict[str, Any] = {}
    for name, value in model.items():
        key = f"{prefix}.{name}"
        flat |= _flat(value, key) if isinstance(value, Mapping) else {key: value}
    return flat
