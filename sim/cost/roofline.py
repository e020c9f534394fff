"""A cost model from data sheets: each operator takes the longer of its arithmetic and its memory traffic."""

from __future__ import annotations

from engine.core.fields import Count, check_value
from engine.core.work import Work
from sim.hardware import Hardware, ModelShape


class Roofline:
    """Step time of a model on one accelerator, operator by operator (Williams et al., Roofline, CACM 2009).

    Each operator has its own reachable FLOP/s F and bytes/s M (`Hardware`); L is that of the host link:
    - linear = max(2 P tokens / F, weight bytes / M): P parameters of the layers, read once a step
    - attention, decode = max(pair FLOPs x context / F, KV bytes x context / M)
    - attention, prefill = max(pair FLOPs x pairs / F, KV bytes x context / M)
    - lm_head = max(2 V H sampled / F, table bytes / M), if a token is sampled
    - transfers = swapped bytes / L + 2 x copied bytes / M of the linear layers + latency x transfers
    - overhead = layers x overhead of a layer + overhead of a step, for each step that computes something
    The traffic of activations, norms and embedding rows is not counted: it takes 3 to 6 % of the linear
    layers' time on an RTX PRO 6000, 10 % on an A100. Nor is what operators gain or lose in mixed batches. A
    step that computes nothing, but moves blocks, reads no weights and launches no layer.

    How far that is from a measured run of vLLM stands in sim/cost/README.md.
    """

    def __init__(self, model: ModelShape, hardware: Hardware, block_size: Count) -> None:
        check_value("Roofline.block_size", block_size, Count)
        self._key = (model, hardware.name, block_size)
        linear = hardware.ceilings(hardware.linear, model.dtype)
        prefill = hardware.ceilings(hardware.prefill_attention, model.dtype)
        decode = hardware.ceilings(hardware.decode_attention, model.dtype)
        lm_head = hardware.ceilings(hardware.lm_head, model.dtype)
        block_bytes = model.block_bytes(block_size)
        lm_head_parameters = model.num_embedding_parameters
        self._ns_per_token = model.flops_per_token * linear.ns_per_flop
        self._ns_per_weight_read = model.num_layer_parameters * model.bytes_per_parameter * linear.ns_per_byte
        self._ns_per_prefill_pair = model.flops_per_attention_pair * prefill.ns_per_flop
        self._ns_per_prefill_context = model.kv_bytes_per_token * prefill.ns_per_byte
        self._ns_per_decode_context = max(
            model.flops_per_attention_pair * decode.ns_per_flop,
            model.kv_bytes_per_token * decode.ns_per_byte,
        )
        self._ns_per_logits_row = 2 * lm_head_parameters * lm_head.ns_per_flop
        self._ns_per_lm_head_read = lm_head_parameters * model.bytes_per_parameter * lm_head.ns_per_byte
        self._ns_per_block_swapped = block_bytes * 1e9 / hardware.link_bytes_per_s
        self._ns_per_block_copied = 2 * block_bytes * linear.ns_per_byte
        self._ns_per_transfer = hardware.transfer_latency_ns
        self._ns_per_step = model.num_layers * hardware.layer_overhead_ns + hardware.step_overhead_ns

    def parts_ns(self, step: Work) -> dict[str, float]:
        """The duration of the step as a named sum, by the formulae of the class."""
        return {
            "linear": max(step.num_tokens * self._ns_per_token, self._ns_per_weight_read)
            if step.num_tokens
            else 0.0,
            "attention_decode": step.decode_context_tokens * self._ns_per_decode_context,
            "attention_prefill": max(
                step.prefill_attention_pairs * self._ns_per_prefill_pair,
                step.prefill_context_tokens * self._ns_per_prefill_context,
            ),
            "lm_head": max(step.num_sampled * self._ns_per_logits_row, self._ns_per_lm_head_read)
            if step.num_sampled
            else 0.0,
            "transfers": self._transfers_ns(step) if step.num_transfers else 0.0,
            "overhead": self._ns_per_step if step.num_tokens else 0.0,
        }

    def _transfers_ns(self, step: Work) -> float:
        return (
            (step.num_blocks_swapped_out + step.num_blocks_swapped_in) * self._ns_per_block_swapped
            + step.num_blocks_copied * self._ns_per_block_copied
            + step.num_transfers * self._ns_per_transfer
        )

    def recompute_ns(self, num_tokens: int) -> int:
        """Arithmetic of a prefill of `num_tokens`: the weights are read for the rest of the batch anyway."""
        num_pairs = num_tokens * (num_tokens + 1) // 2
        return round(num_tokens * self._ns_per_token + num_pairs * self._ns_per_prefill_pair)

    def transfer_ns(self, num_blocks: int) -> int:
        """Moving blocks between device and host in one transfer, one way."""
        return round(num_blocks * self._ns_per_block_swapped + self._ns_per_transfer)

    # A value, as the policies are that take it; the times derive from what names it.

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roofline) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        model, hardware, block_size = self._key
        return f"Roofline({model.name}, {hardware}, block_size={block_size})"
