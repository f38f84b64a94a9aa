"""A device as the roofline knows it: figures of its data file, and documented assumptions.

docs/roofline.md has every number with its reason, and which were changed after seeing results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tcompile.core.errors import UsageError
from tcompile.targets.devices import Target

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

#: FLOP per clock and SM without tensor cores, by compute capability: two per FMA lane.
_VECTOR = {"7.5": 128, "8.0": 128, "8.6": 256, "8.7": 256, "8.9": 256}
#: Bytes per clock that one SM draws from L2.
_L2_FEED = {"8.0": 48.0, "8.7": 32.0, "9.0": 64.0, "10.0": 64.0, "10.3": 64.0, "11.0": 64.0}
#: (launch in us, share of the data sheet's memory bandwidth that a kernel reaches).
_DESKTOP, _JETSON = (2.5, 0.85), (5.0, 0.75)
#: Older than this, the matrix cores know no TF32.
_TF32_SINCE = 8.0


@dataclass(frozen=True)
class Tile:
    """One block of output that a core computes: rows × columns, and the warps that share it."""

    rows: int
    columns: int
    warps: int


#: The shapes a GEMM library has: CUTLASS' and cuBLAS' usual ones.
GPU_TILES = (
    Tile(256, 128, 8),
    Tile(128, 256, 8),
    Tile(128, 128, 8),
    Tile(128, 64, 4),
    Tile(64, 128, 4),
    Tile(64, 64, 4),
    Tile(64, 32, 4),
    Tile(32, 128, 4),
    Tile(32, 64, 4),
    Tile(16, 64, 4),
)
#: MLAS: a remainder of one row costs about what three do; columns go by 16.
CPU_TILES = (Tile(3, 16, 1),)


@dataclass(frozen=True)
class Device:
    """A device at one precision. Times in seconds, rates per second, sizes in bytes.

    Attributes:
        name: of the target.
        cpu: whether it is a CPU under ONNX Runtime; else a GPU under TensorRT.
        precision: what matrix products are computed in.
        cores: SMs, or threads.
        clock: cycles per second; of a CPU 1e9, its rates being per nanosecond.
        matrix: FLOP per clock and core in matrix products, accumulated in fp32 (int32).
        half: the same in fp16; 0 of a CPU.
        vector: FLOP per clock and core of everything else.
        memory: bytes per second from DRAM that a kernel reaches.
        cache: bytes per second from L2 (on a CPU: from its caches).
        cache_size: bytes of it.
        scratch: bytes of shared memory a core has; bounds how many tiles it holds at once.
        launch: what a kernel (on a CPU: a node) costs beside its work.
        mainloop: the most of `matrix` that a main loop reaches.
        prologue: filling the pipeline and writing the tile, once a wave.
        tiles: the tile shapes to choose from.
    """

    name: str
    cpu: bool
    precision: Precision
    cores: int
    clock: float
    matrix: float
    vector: float
    memory: float
    cache: float
    cache_size: float
    scratch: float
    launch: float
    mainloop: float
    prologue: float
    tiles: tuple[Tile, ...]
    half: float = 0.0

    @property
    def in_half(self) -> Device:
        """What computes on a GPU in fp16 although most is int8: products of two activations."""
        eight = self.precision == "int8" and not self.cpu
        return replace(self, precision="fp16", matrix=self.half) if eight else self

    @property
    def feed(self) -> float:
        """Bytes per second that one core draws from the cache."""
        return self.cache / self.cores

    @property
    def itemsize(self) -> int:
        """Bytes of an activation outside matrix products."""
        return 4 if self.cpu or self.precision == "fp32" else 2

    @property
    def operand(self) -> int:
        """Bytes of an operand of a matrix product."""
        return 1 if self.precision == "int8" and not self.cpu else self.itemsize


def device_of(target: Target, precision: str) -> Device:
    """Return the device that a target's figures describe, at one precision.

    Rates come from `fp16_dense` and `int8_dense`, which are sms × clock × rate. Where the fp16
    figure's note says that fp32 accumulate halves it (GeForce), it is halved. fp32 means TF32 at
    half the fp16 rate where there is TF32, else plain FMA.

    Raises:
        UsageError: the target has no figures, or the precision is none of fp32, fp16, int8.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision '{precision}'",
            where="--precision",
            hint=f"one of {', '.join(PRECISIONS)}",
        )
    needed = (
        "sm_count",
        "boost_clock",
        "fp16_dense",
        "int8_dense",
        "memory_bandwidth",
        "l2_cache",
        "shared_memory_per_sm",
    )
    missing = [name for name in needed if target.value(name) is None]
    if missing or target.compute_capability is None:
        raise UsageError(
            f"{target.name} has no figures to model latency from: {', '.join(missing)}",
            where="--target",
            hint="measure there instead, or add the figures to its data file",
        )
    figure = {name: target.figures[name].value for name in needed}
    capability = target.compute_capability
    cores, clock = int(figure["sm_count"]), figure["boost_clock"] * 1e9
    per_clock = 1e12 / (cores * clock)
    halved = "half of it with fp32 accumulate" in target.figures["fp16_dense"].note
    half = figure["fp16_dense"] * per_clock * (0.5 if halved else 1.0)
    vector = float(_VECTOR.get(capability, 256))
    tf32 = half / 2 if float(capability) >= _TF32_SINCE else vector
    rate = {"fp16": half, "int8": figure["int8_dense"] * per_clock, "fp32": tf32}
    launch, reached = _JETSON if target.runtime == "jetson" else _DESKTOP
    return Device(
        name=target.name,
        cpu=False,
        precision=precision,
        cores=cores,
        clock=clock,
        matrix=rate[precision],
        vector=vector,
        memory=figure["memory_bandwidth"] * 1e9 * reached,
        cache=max(cores * clock * _L2_FEED.get(capability, 16.0), figure["memory_bandwidth"] * 1e9),
        cache_size=figure["l2_cache"] * 2**20,
        scratch=figure["shared_memory_per_sm"] * 2**10,
        launch=launch * 1e-6,
        mainloop=0.85,
        prologue=1000 / clock,
        tiles=GPU_TILES,
        half=half,
    )
