"""The times of matrix products and of fused attention: tiles, waves of tiles, and their bytes.

A fused attention is one kernel for scores, softmax and the product with V.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from tcompile.profiling.roofline.device import Device, Tile

#: Bytes of K that a tile advances by, and how many such steps are in flight.
_STEP_BYTES, _STAGES = 64, 3
#: Clocks from a load's issue to its arrival, from DRAM.
_LATENCY = 800
#: Bytes of registers that accumulators of all tiles on a core may take: half of 256 KiB.
_ACCUMULATORS = 128 * 2**10
_SPLITS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Product:
    """`batch` products [rows × inner] · [inner × columns].

    Attributes:
        weight: whether the right operand is a stored weight: it then comes from DRAM (and ONNX
            Runtime has packed it), and the batch is folded into the rows.
        extra: bytes that the epilogue reads (bias, residual).
    """

    batch: int
    rows: int
    columns: int
    inner: int
    weight: bool = False
    extra: int = 0


@dataclass(frozen=True)
class Time:
    """Seconds of work of a kernel beside its launch."""

    compute: float
    memory: float

    @property
    def work(self) -> float:
        """They overlap."""
        return max(self.compute, self.memory)


def memory_time(device: Device, streamed: float, resident: float) -> float:
    """Seconds to move bytes.

    Args:
        streamed: what is read once per run of the model: weights, always from DRAM.
        resident: activations, from and to the cache as far as they fit into half of it.
    """
    beyond = max(0.0, resident - device.cache_size / 2)
    dram = streamed + beyond
    return max(dram / device.memory, (streamed + resident) / device.cache)


@lru_cache(maxsize=1 << 16)
def product_time(product: Product, device: Device) -> Time:
    """The best over tile shapes and, where tiles are fewer than cores, over split-K.

    A tile takes t = max(2·rows·columns·K / matrix, (rows + columns)·K·bytes / feed) seconds. A core
    with q tiles to do runs c at a time, so that q // c full waves and one of the rest follow each
    other; a wave of k tiles with w warps each takes (k + 1/w)·t / mainloop + prologue: resident
    warps k·w keep the matrix pipe busy for k·w / (k·w + 1) of the time. A wave takes no less than
    its steps along K, each a load's latency over the two loads that are in flight meanwhile.

    Splitting K in s gives s times the tiles; their sums, s·M·N·4 bytes, are written to the cache
    and read again.
    """
    if product.weight:
        rows, batch = product.batch * product.rows, 1
    else:
        rows, batch = product.rows, product.batch
        device = device.in_half
    cost = _cpu if device.cpu else _gpu
    compute = cost(device, batch, rows, product.columns, product.inner)
    left = batch * rows * product.inner * device.operand
    right = (1 if product.weight else batch) * product.inner * product.columns * device.operand
    out = batch * rows * product.columns * device.itemsize
    streamed, resident = (right, left + out) if product.weight else (0, left + right + out)
    memory = memory_time(device, streamed, resident + product.extra)
    if device.cpu and not product.weight:
        # MLAS packs the right operand of each product on the fly, before it computes.
        compute += 2 * right / device.cache + ceil(batch / device.cores) * device.prologue
    return Time(compute, memory)


def _gpu(device: Device, batch: int, rows: int, columns: int, inner: int) -> float:
    best = float("inf")
    step = _STEP_BYTES // device.operand
    for tile in device.tiles:
        tiles = batch * ceil(rows / tile.rows) * ceil(columns / tile.columns)
        for split in _SPLITS:
            if split > 1 and (tiles * split > 2 * device.cores or inner < 2 * split * step):
                break
            depth = ceil(inner / split / step) * step
            time = _waves(device, tile, tiles * split, depth)
            if split > 1:
                time += 2 * split * 4 * batch * rows * columns / device.cache + device.launch / 2
            best = min(best, time)
    return best


def _waves(device: Device, tile: Tile, tiles: int, depth: int) -> float:
    """Seconds for equal tiles spread over the cores."""
    flops = 2 * tile.rows * tile.columns * depth
    loaded = (tile.rows + tile.columns) * depth * device.operand
    one = max(flops / (device.matrix * device.clock), loaded / device.feed)
    at_once = resident_tiles(device, tile)
    steps = depth * device.operand / _STEP_BYTES
    least = steps * _LATENCY / (_STAGES - 1) / device.clock
    full, rest = divmod(ceil(tiles / device.cores), at_once)

    def wave(count: int) -> float:
        busy = (count + 1 / tile.warps) * one / device.mainloop
        return max(busy, least) + device.prologue

    return full * wave(at_once) + (wave(rest) if rest else 0.0)


def resident_tiles(device: Device, tile: Tile) -> int:
    """Return how many tiles a core holds at once: by shared memory and by registers, at least
    one."""
    scratch = (tile.rows + tile.columns) * _STEP_BYTES * _STAGES
    by_registers = _ACCUMULATORS // (4 * tile.rows * tile.columns)
    return max(1, min(int(device.scratch // scratch), by_registers, 8))


def _cpu(device: Device, batch: int, rows: int, columns: int, inner: int) -> float:
    """MLAS: one register tile, its rows and columns rounded up; the work is cut evenly.

    A single product is cut along its longer side, several are cut in between first.
    """
    tile = device.tiles[0]
    down, across = ceil(rows / tile.rows), ceil(columns / tile.columns)
    if batch > 1:
        tiles = ceil(batch * down / device.cores) * across
    elif across >= down:
        tiles = ceil(across / device.cores) * down
    else:
        tiles = ceil(down / device.cores) * across
    one = 2 * tile.rows * tile.columns * inner / (device.matrix * device.clock * device.mainloop)
    return tiles * one


#: Query rows of a block and the warps it has; keys are taken 64 at a time.
_QUERY_TILES = ((128, 8), (64, 4), (32, 2))
_KEYS = 64
#: Of the matrix rate: what flash-attention kernels reach at these sizes.
_EFFICIENCY = 0.6
#: Exponentials per clock and SM: the special function units.
_EXP = 16.0


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

    fp16: 16 ≤ size ≤ 256 and a multiple of 8, more than one query row. int8: the same, most
    attentions of a model in int8 being left in fp16. fp32, and any CPU: never.
    """
    if device.cpu or device.precision == "fp32" or attention.queries == 1:
        return False
    return 16 <= attention.size <= 256 and attention.size % 8 == 0


@lru_cache(maxsize=1 << 14)
def attention_time(attention: Attention, device: Device) -> Time:
    """Blocks = batch·heads·⌈queries / tile⌉, the best of tiles of 128, 64 and 32 rows.

    A block takes t = 4·tile·⌈keys/64⌉·64·size / (0.6·matrix) + tile·keys / 16 clocks, the second
    for its exponentials, or what reading its keys and values from L2 takes if that is longer. A
    core holds four of its warps' worth of blocks at once and a wave of k blocks takes
    (k + 1/w)·t + prologue, as for products.
    """
    device = device.in_half
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
