"""Attention on a paged KV pool: the memory layout, the geometry of a batch, and the torch reference."""

from pagedkv.batch import Batch, Group, Piece, batch_order
from pagedkv.interface import PagedAttention, PreparedBatch
from pagedkv.layout import KVLayout
from pagedkv.options import AttentionOptions
from pagedkv.reference import ReferenceAttention, write_kv
from pagedkv.schedule import StepLimits

__all__ = [
    "AttentionOptions",
    "Batch",
    "Group",
    "KVLayout",
    "PagedAttention",
    "Piece",
    "PreparedBatch",
    "ReferenceAttention",
    "StepLimits",
    "batch_order",
    "write_kv",
]
