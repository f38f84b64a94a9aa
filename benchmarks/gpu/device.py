"""Running token ops on tensors of PyTorch, and timing whatever runs on a GPU.

The same code drives the kernels on a GPU and their build for the host, on which nothing is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.library import CCall, Library
from benchmarks.gpu.work import Call, Work
from tcompile.plugins.spec import Array, TokenOp

TORCH = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i64": torch.int64,
}
_NAMES = {value: key for key, value in TORCH.items()}
#: Bytes after every output that no kernel may touch, and what they hold.
_GUARD, _FILL = 256, 0x7B
#: In a graph: launches of a small call that are timed together, and replays.
_LAUNCHES, _REPLAYS = 50, 31


@dataclass(frozen=True)
class Prepared:
    """A call with its outputs, ready to be launched any number of times."""

    op: TokenOp
    call: CCall
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    buffers: tuple[torch.Tensor, ...]
    workspace: torch.Tensor | None
    size: int


@dataclass(frozen=True)
class Times:
    """Microseconds of one run: median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Times:
        """From microseconds of repetitions."""
        low, _, high = quantiles(samples, n=4)
        return Times(median(samples), low, high)


class Device:
    """A library of kernels, and where its tensors lie.

    Args:
        library: built for this device.
        gpu: whether that is a GPU; otherwise nothing is timed.
    """

    def __init__(self, library: Path, gpu: bool) -> None:
        self.library = Library(library)
        self.gpu = gpu
        self.where = torch.device("cuda" if gpu else "cpu")

    def put(self, values: Array, kind: str) -> torch.Tensor:
        """Values on the device, as an element type."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(TORCH[kind]).to(self.where)

    def prepare(
        self,
        op: TokenOp,
        inputs: Sequence[torch.Tensor],
        numbers: Mapping[str, int],
        index: str = "i64",
    ) -> Prepared:
        """Describe a call and allocate its outputs, each with a guard behind it.

        Args:
            index: type of indices, for ops that take none and give some.

        Raises:
            KernelError: it is not legal.
        """
        types = {"index": index, "data": "f32", "table": "f32", "f32": "f32"}
        for tensor, held in zip(op.takes, inputs, strict=True):
            types[tensor.kind] = _NAMES[held.dtype]
        call = self.library.call(op, [tuple(t.shape) for t in inputs], types, numbers)
        outputs, buffers = [], []
        for i, tensor in enumerate(op.gives):
            kind = TORCH[types[tensor.kind]]
            shape = tuple(call.output[i].dims[: call.output[i].rank])
            size = int(np.prod(shape)) * kind.itemsize
            raw = torch.full((size + _GUARD,), _FILL, dtype=torch.uint8, device=self.where)
            buffers.append(raw)
            outputs.append(raw[:size].view(kind).view(shape))
        size = self.library.workspace(op, call)
        space = torch.empty(size, dtype=torch.uint8, device=self.where) if size else None
        return Prepared(op, call, tuple(inputs), tuple(outputs), tuple(buffers), space, size)

    def launch(self, ready: Prepared) -> None:
        """Put it on the current stream."""
        stream = torch.cuda.current_stream().cuda_stream if self.gpu else 0
        space = (ready.workspace.data_ptr(), ready.size) if ready.workspace is not None else (0, 0)
        self.library.launch(
            ready.op,
            ready.call,
            [t.data_ptr() for t in ready.inputs],
            [t.data_ptr() for t in ready.outputs],
            space,
            stream,
        )

    def wait(self) -> None:
        """Until all is done."""
        if self.gpu:
            torch.cuda.synchronize()

    def chain(self, calls: Sequence[Call], tensors: dict[str, torch.Tensor]) -> list[Prepared]:
        """Calls after each other; their outputs join `tensors`."""
        ready = []
        for call in calls:
            made = self.prepare(call.spec, [tensors[n] for n in call.inputs], call.numbers)
            tensors.update(zip(call.outputs, made.outputs, strict=True))
            ready.append(made)
        return ready

    def inputs_of(self, work: Work, seed: int = 0) -> dict[str, torch.Tensor]:
        """The inputs of a piece of work."""
        return {name: self.put(*held) for name, held in work.inputs(seed).items()}


def overran(ready: Prepared) -> bool:
    """Return whether something was written behind an output."""
    return any(bool((raw[-_GUARD:] != _FILL).any()) for raw in ready.buffers)


def by_graph(runs: Sequence[Callable[[], Any]]) -> Times:
    """One run, from replays of a CUDA graph that holds many; they are taken in turns.

    Several runs on copies of the same data are how a call is kept from finding all of it in cache.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    count = max(_LAUNCHES // len(runs), 1) * len(runs)
    with torch.cuda.graph(graph):
        for i in range(count):
            runs[i % len(runs)]()
    graph.replay()
    return Times.of([t / count for t in _events(graph.replay, 1)])


def by_stream(run: Callable[[], Any]) -> Times:
    """One run, launched from Python one after the other: what eager code costs."""
    for _ in range(5):
        run()
    return Times.of(_events(run, 20))


def _events(run: Callable[[], Any], each: int) -> list[float]:
    """Microseconds of a run, from events around `each` of them."""
    samples = []
    for _ in range(_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(each):
            run()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / each)
    return samples


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 512 MiB reads and writes."""
    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (by_graph([lambda: target.copy_(source)]).median * 1e-6)


def peaks() -> dict[str, float]:
    """Flop per second of a large product, by element type: what arithmetic the device has."""
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {}
    for name in ("f32", "f16", "bf16"):
        side = 4096 if name == "f32" else 8192
        a = torch.randn(side, side, device="cuda", dtype=TORCH[name])
        out = torch.empty_like(a)
        found[name] = (
            2 * side**3 / (by_stream(lambda a=a, out=out: torch.mm(a, a, out=out)).median * 1e-6)
        )
    return found
