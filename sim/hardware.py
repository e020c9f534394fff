"""Accelerators and model shapes as numbers, and how many KV blocks fit the one on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.core.errors import UserError
from engine.core.fields import Count, Natural, Positive, Share, check_fields
from engine.core.spec import Capacity

DataType = Literal["float32", "bfloat16", "float16", "float8_e4m3"]
BYTES_PER_ELEMENT: Mapping[DataType, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3": 1}


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What one operator reaches of the two ceilings of an accelerator, as shares of the data sheet."""

    compute: Share
    """Of the dense peak of the data type, by a large batch."""
    memory: Share
    """Of the memory bandwidth, by a small one."""

    def __post_init__(self) -> None:
        check_fields(self)


class Ceilings(NamedTuple):
    """What an operator takes at best for one unit of its work."""

    ns_per_flop: float
    ns_per_byte: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator: what its data sheet promises, and the share of it that each operator reaches."""

    name: str
    peak_flops: Mapping[DataType, Positive]
    """Dense FLOP/s for each data type, without structured sparsity."""
    memory_bandwidth_bytes_per_s: Positive
    host_link_bytes_per_s: Positive
    """To or from the host, one way."""
    memory_bytes: Count
    linear: Efficiency
    """The matrix products of the layers."""
    prefill_attention: Efficiency
    decode_attention: Efficiency
    lm_head: Efficiency
    """The output projection."""
    link_efficiency: Share
    transfer_latency_ns: Natural
    """Start of one copy of blocks."""
    layer_overhead_ns: Natural
    """What a layer takes beside its matrix products and its attention, however small the batch."""
    step_overhead_ns: Natural
    """The same for what a step does once, however many layers the model has."""

    def __post_init__(self) -> None:
        check_fields(self)

    def ceilings(self, operator: Efficiency, dtype: DataType) -> Ceilings:
        """The rates that an operator reaches, as times; UserError if the data sheet lacks the type."""
        if dtype not in self.peak_flops:
            raise UserError(
                f"hardware {self.name} has no peak_flops for {dtype}: "
                f"choose one of {', '.join(self.peak_flops)}"
            )
        return Ceilings(
            1e9 / (self.peak_flops[dtype] * operator.compute),
            1e9 / (self.memory_bandwidth_bytes_per_s * operator.memory),
        )

    @property
    def link_bytes_per_s(self) -> float:
        """Bandwidth that copies of blocks to or from the host reach."""
        return self.host_link_bytes_per_s * self.link_efficiency


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer as its shapes.

    Biases, learned positions and the norms of queries and keys are left out: 0.1 % of OPT-13B, less
    elsewhere.
    """

    name: str
    num_layers: Count
    hidden_size: Count
    intermediate_size: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    gated_mlp: bool
    """Three matrices in the MLP (SwiGLU), not two."""
    tied_embeddings: bool
    """The output projection is the embedding table."""
    dtype: DataType = "bfloat16"
    kv_dtype: DataType = "bfloat16"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model {self.name}: num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of all layers: the matrices that every token is multiplied with, and the norms."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        mlp = (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp + 2 * self.hidden_size)

    @property
    def num_embedding_parameters(self) -> int:
        """Parameters of the embedding table, and so of the output projection too."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters, the embedding table counted once if the output projection shares it."""
        num_tables = 1 if self.tied_embeddings else 2
        return self.num_layer_parameters + self.hidden_size + num_tables * self.num_embedding_parameters

    @property
    def weight_bytes(self) -> int:
        """Memory of all parameters."""
        return self.num_parameters * self.bytes_per_parameter

    @property
    def bytes_per_parameter(self) -> int:
        """By the data type of the weights."""
        return BYTES_PER_ELEMENT[self.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Key and value of one token in all layers: 2 x layers x KV heads x head size x bytes an element."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * BYTES_PER_ELEMENT[self.kv_dtype]

    def block_bytes(self, block_size: int) -> int:
        """One block of `block_size` tokens in all layers."""
        return block_size * self.kv_bytes_per_token

    @property
    def flops_per_token(self) -> int:
        """Matrix products of the layers for one token, output projection apart: 2 x parameters."""
        return 2 * self.num_layer_parameters

    @property
    def flops_per_attention_pair(self) -> int:
        """Query times key and weight times value, for one query and one KV position, in all layers."""
        return 4 * self.num_layers * self.num_heads * self.head_dim


def num_kv_blocks(
    model: ModelShape,
    hardware: Hardware,
    block_size: Count,
    utilization: Share = 0.9,
    reserve_bytes: Natural = 2 * 2**30,
) -> int:
    """Device blocks that fit beside the weights: (memory x utilization - weights - reserve) // block.

    The rule of vLLM's start-up profiling, with `reserve_bytes` for what it measures: activations, workspaces,
    the driver's context. Raises ValueError if not even one block fits.
    """
    available_bytes = int(hardware.memory_bytes * utilization) - model.weight_bytes - reserve_bytes
    num_blocks = available_bytes // model.block_bytes(block_size)
    if num_blocks < 1:
        raise UserError(
            f"{model.name} in {model.dtype} needs {model.weight_bytes / 2**30:.1f} GiB of weights and "
            f"{reserve_bytes / 2**30:.1f} GiB of reserve, which leaves no room for a KV block in "
            f"{utilization:.0%} of the {hardware.memory_bytes / 2**30:.1f} GiB of {hardware.name}: choose "
            "larger hardware, a smaller dtype or a smaller model"
        )
    return num_blocks


def kv_capacity(
    model: ModelShape,
    hardware: Hardware,
    block_size: Count,
    utilization: Share = 0.9,
    reserve_bytes: Natural = 2 * 2**30,
    swap_space_bytes: Natural | None = None,
) -> Capacity:
    """The pools of a simulated server: device blocks as `num_kv_blocks`, host blocks from the swap space.

    None: as many host blocks as device blocks, so that whatever runs can be swapped.
    """
    num_blocks = num_kv_blocks(model, hardware, block_size, utilization, reserve_bytes)
    if swap_space_bytes is None:
        return Capacity(num_blocks, num_blocks, block_size)
    return Capacity(num_blocks, swap_space_bytes // model.block_bytes(block_size), block_size)
