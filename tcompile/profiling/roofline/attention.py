"""Fused attention: one kernel for scores, softmax and the product with V."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.gemm import Time, memory_time

#: Query rows of a block and the warps it has; keys are taken 64 at a time.
_QUERY_TILES = ((128, 8), (64, 4), (32, 2))
_KEYS = 64
#: Of the matrix rate: what flash-attention kernels reach at these sizes.
_EFFICIENCY = 0.6
#: Exponentials per clock and SM: the special function units.
_EXP = 16.0
#: The int8 kernel: so many keys at most, and these head sizes (TensorRT's documentation).
INT8_KEYS, INT8_HEADS = 512, (16, 32, 64)


@dataclass(frozen=True)
class Attention:
    """[batch, heads, queries, size] against [batch, heads, keys, size]."""

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    extra: int = 0


def fuses(attention: Attention, device: Device) -> bool:
    """Tell whether TensorRT has a kernel for it.

    fp16: 16 ≤ size ≤ 256 and a multiple of 8, more than one query row. int8: at most 512 keys and
    size 16, 32 or 64. fp32, and any CPU: never.
    """
    if device.cpu or device.precision == "fp32" or attention.queries == 1:
        return False
    if device.precision == "int8":
        return attention.keys <= INT8_KEYS and attention.size in INT8_HEADS
    return 16 <= attention.size <= 256 and attention.size % 8 == 0


@lru_cache(maxsize=1 << 14)
def attention_time(attention: Attention, device: Device) -> Time:
    """Blocks = batch·heads·⌈queries / tile⌉, the best of tiles of 128, 64 and 32 rows.

    A block takes t = 4·tile·⌈keys/64⌉·64·size / (0.6·matrix) + tile·keys / 16 clocks, the second
    for its exponentials, or what reading its keys and values from L2 takes if that is longer. A
    core holds four of its warps' worth of blocks at once and a wave of k blocks takes
    (k + 1/w)·t + prologue, as for products.
    """
    keys = ceil(attention.keys / _KEYS) * _KEYS
    size = ceil(attention.size / 16) * 16
    best = float("inf")
    for rows, warps in _QUERY_TILES:
        blocks = attention.batch * attention.heads * ceil(attention.queries / rows)
        clocks = 4 * rows * keys * size / (_EFFICIENCY * device.matrix) + rows * keys / _EXP
        loaded = (2 * keys + rows) * size * device.operand
        one = max(clocks / device.clock, loaded / device.feed)
        at_once = max(1, 16 // warps)
        full, rest = divmod(ceil(blocks / device.cores), at_once)
        waves = [at_once] * full + [rest] * bool(rest)
        best = min(best, sum((k + 1 / warps) * one + device.prologue for k in waves))
    per_head = (2 * attention.queries + 2 * attention.keys) * attention.size * device.operand
    moved = attention.batch * attention.heads * per_head + attention.extra
    return Time(best, memory_time(device, 0, moved))
