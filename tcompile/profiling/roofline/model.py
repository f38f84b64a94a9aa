"""The latency of a graph on a device that need not be at hand."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.profiling.roofline.device import PRECISIONS, Device
from tcompile.profiling.roofline.fusion import onnxruntime_nodes, tensorrt_kernels
from tcompile.profiling.roofline.steps import steps_of
from tcompile.profiling.roofline.times import Time, attention_time, memory_time, product_time
from tcompile.profiling.roofline.work import Work, sorted_rows

Bound = Literal["compute", "memory", "launch"]

#: Clocks of one step of a sort inside a block, with its barrier; elements a step compares.
_SORT_STEP, _SORT_WIDTH = 40, 1024


@dataclass(frozen=True)
class Kernel:
    """One kernel (on a CPU: one node) and what it takes.

    Attributes:
        name: the first node that it computes.
        nodes: names of all of them.
        kind: gemm, attention, norm, pointwise, gather, scatter, topk, reduce or view.
        ms: milliseconds, launches included.
        bound: what the largest share of it is.
        launches: how many kernels it is; more than one where several equal ones stand together.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    ms: float
    bound: Bound
    launches: int = 1


@dataclass(frozen=True)
class Modelled:
    """A modelled latency: milliseconds for one batch, and the kernels it is the sum of."""

    ms: float
    kernels: tuple[Kernel, ...]


def modelled(graph: gs.Graph, device: Device, *, precision: str, batch: int = 1) -> Modelled:
    """Return the latency of a graph: Σ over its kernels of launch + max(compute, memory).

    Args:
        graph: a model or a part of one, shapes known, sorted topologically; may call token ops.
        device: from `device_of` or `cpu_device`.
        precision: the device's; a CPU computes all of them in fp32.
        batch: what a free batch is taken to be.

    Raises:
        UsageError: the precision is not the device's; the batch is not positive.
        ModelError: a tensor has no shape.
    """
    if precision not in PRECISIONS or (not device.cpu and precision != device.precision):
        raise UsageError(
            f"{device.name} was read for {device.precision}, not {precision}", where="--precision"
        )
    if batch < 1:
        raise UsageError(f"a batch of {batch}", where="--batch", hint="at least 1")
    steps = steps_of(graph, batch)
    price = onnxruntime_nodes if device.cpu else tensorrt_kernels
    kernels = tuple(_kernel(work, device) for work in price(steps, device))
    return Modelled(sum(k.ms for k in kernels), kernels)


def _kernel(work: Work, device: Device) -> Kernel:
    time = _time(work, device)
    launch = work.launches * device.launch
    bound: Bound = "compute" if time.compute >= time.memory else "memory"
    nodes = tuple(step.name for step in work.steps)
    return Kernel(
        name=nodes[0],
        nodes=nodes,
        kind=work.kind,
        ms=(launch + time.work) * 1e3,
        bound="launch" if launch > time.work else bound,
        launches=work.launches,
    )


def _time(work: Work, device: Device) -> Time:
    if work.attention is not None:
        return attention_time(work.attention, device)
    products = [product_time(product, device) for product in work.products]
    compute = sum(time.compute for time in products)
    moved = memory_time(device, 0, work.moved)
    if device.cpu and work.kind in {"gather", "scatter"}:
        moved *= device.cores  # ONNX Runtime moves data with one thread
    memory = sum(time.memory for time in products) + moved
    if work.kind == "topk":
        compute += _sort(*sorted_rows(work.steps[0]), device)
    if work.kind != "view":
        compute += work.operations / (device.vector * device.clock * device.cores)
    return Time(compute, memory)


def _sort(rows: int, length: int, device: Device) -> float:
    """Return the seconds of a bitonic sort of each row by one core: log₂T·(log₂T + 1)/2 steps of 40
    clocks, as many times as a block's 1024 elements go into a row. A CPU sorts in T·log₂T·2 ns."""
    depth = ceil(log2(max(2, length)))
    if device.cpu:
        return ceil(rows / device.cores) * length * depth * 2e-9
    clocks = depth * (depth + 1) / 2 * _SORT_STEP * ceil(length / _SORT_WIDTH)
    return ceil(rows / device.cores) * clocks / device.clock
