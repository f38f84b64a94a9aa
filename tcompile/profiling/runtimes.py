"""Runtimes: each opens a file on a target's device and runs it, so that it can be timed.

ONNX Runtime or OpenVINO on a CPU, TensorRT-RTX or TensorRT on a GPU of this machine. A device that
is reached over SSH will be one more `Runtime`: a profile asks for no more than this.

No GPU has run this yet: written against polygraphy's documented API, and tested up to the engine,
which TensorRT-RTX builds without one.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import WRITTEN
from tcompile.core.errors import MissingExtraError, UsageError
from tcompile.core.graph import settled
from tcompile.core.machine import usable_cores
from tcompile.core.save import save
from tcompile.passes.lower import lower, to_half
from tcompile.profiling.profile import Conditions
from tcompile.runtime.rounded import save_in
from tcompile.runtime.timing import machine_name
from tcompile.targets import Target
from tcompile.targets.backends import jetson, openvino, ort, rtx, tensorrt
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.cpu import on_cpu
from tcompile.targets.devices import Precision

Run = Callable[[], object]

#: Runtime of a CPU → the precisions that it is measured in. It only emulates fp16.
MEASURED: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}

#: Where the driver shows its GPUs; a Jetson has no nvidia-smi and no /dev/nvidia0 before R36.
_DEVICES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg")
_SMI = ("name", "compute_cap", "driver_version", "clocks.max.sm", "power.limit")


class Runtime(Protocol):
    """A runtime on a device.

    Attributes:
        batch: images in a run, where the model leaves it free.
    """

    batch: int

    def open(self, graph: gs.Graph, path: Path) -> Run:
        """Make a graph ready to run on inputs of its own; the call runs it once.

        Args:
            path: a file that it may write, and need not leave.
        """
        ...

    def conditions(self) -> Conditions:
        """The conditions that identify the measurement."""
        ...


class CpuRuntime:
    """ONNX Runtime or OpenVINO on the CPU of this machine, in fp32, bf16 or int8 (in ONNX Runtime
    dynamic, of which a part needs no samples; a build measures whether static is better)."""

    def __init__(
        self, target: Target, *, batch: int = 1, threads: int | None = None, precision: str = "fp32"
    ) -> None:
        self.target, self.batch, self.precision = target, batch, precision
        self.threads = threads or usable_cores()
        if target.runtime == "openvino":
            openvino.check_precision(precision)

    def open(self, graph: gs.Graph, path: Path) -> Run:
        save_in(graph, path, self.target, self.precision, lambda: inputs_of(graph, self.batch))
        runner = on_cpu(self.target, self.precision).open(path, self.threads, in_turn=True)
        _remove(path)
        return runner.prepared(inputs_of(graph, self.batch))

    def conditions(self) -> Conditions:
        with_ort = self.target.runtime == "onnxruntime"
        version = ort.version() if with_ort else openvino.version()
        return Conditions(
            target=self.target.name,
            device=machine_name(),
            runtime="ONNX Runtime, CPU" if with_ort else "OpenVINO, CPU",
            software={self.target.runtime: version, "system": platform.platform(terse=True)},
            precision=self.precision,
            batch=self.batch,
            threads=self.threads,
            clocks=_text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            date=_now(),
        )


class GpuRuntime:
    """TensorRT-RTX or TensorRT on this machine's GPU."""

    def __init__(self, target: Target, *, batch: int, precision: Precision) -> None:
        self.target, self.batch, self.precision = target, batch, precision

    def open(self, graph: gs.Graph, path: Path) -> Run:
        """Build an engine and hold it with its inputs on the device; the call waits for the end."""
        plan = self.build(graph, path)
        return _runner(
            plan,
            inputs_of(part_for(graph, self.target, self.precision), self.batch),
            rtx=self.target.runtime == "tensorrt-rtx",
        )

    def build(self, graph: gs.Graph, path: Path) -> memoryview:
        """The engine of a part at this batch."""
        save(part_for(graph, self.target, self.precision), path)
        sizes = Batch(self.batch, self.batch, self.batch)
        try:
            if self.target.runtime == "tensorrt-rtx":
                return rtx.build(path, self.target.compute_capability or "", batch=sizes)
            return tensorrt.build(path, batch=sizes)
        finally:
            _remove(path)

    def conditions(self) -> Conditions:
        """Return what the driver tells of the device, and the versions."""
        facts = _smi()
        with_rtx = self.target.runtime == "tensorrt-rtx"
        versions = {"tensorrt-rtx": rtx.version()} if with_rtx else {"tensorrt": tensorrt.version()}
        if facts.get("driver_version"):
            versions["driver"] = facts["driver_version"]
        return Conditions(
            target=self.target.name,
            device=facts.get("name") or self.target.title,
            runtime="TensorRT-RTX" if with_rtx else "TensorRT",
            software=versions,
            precision=self.precision,
            batch=self.batch,
            clocks=facts.get("clocks.max.sm", ""),
            power_mode=facts.get("power.limit", "") or _text_of("/var/lib/nvpmodel/status"),
            date=_now(),
        )


def runtime_for(
    target: Target, *, batch: int = 1, threads: int | None = None, precision: str | None = None
) -> Runtime:
    """Return the runtime that measures on a target from here.

    Raises:
        UsageError: the target is another machine, or this one has no such device or no library for
            it; the target does not have the precision.
    """
    if target.on_cpu:
        known = MEASURED[target.runtime]
        if precision not in (None, *known):
            raise UsageError(
                f"a CPU is measured in {' or '.join(known)}",
                where="--precision",
                hint="it only emulates fp16",
            )
        return CpuRuntime(target, batch=batch, threads=threads, precision=precision or "fp32")
    level = precision or target.default_precision
    target.check_precision(level)
    obstacle, remedy = _obstacle(target)
    if obstacle:
        hint = "its data sheet does: `tcompile profile --modelled`, `--profile model` elsewhere"
        raise UsageError(
            f"cannot be measured from here: {obstacle}",
            where=f"--target {target.name}",
            hint="; ".join(filter(None, [remedy, hint])),
        )
    return GpuRuntime(target, batch=batch, precision=cast(Precision, level))


def _obstacle(target: Target) -> tuple[str, str]:
    """Tell why a GPU target cannot be measured from here, and the remedy; both empty if it can."""
    if not any(Path(p).exists() for p in _DEVICES):
        return "this machine has no NVIDIA GPU", ""
    if (target.runtime == "jetson") != jetson.is_jetson():
        return f"this machine is {'not ' if target.runtime == 'jetson' else ''}a Jetson", ""
    capability = _smi().get("compute_cap", "")
    if capability and capability != target.compute_capability:
        other = f"this machine's GPU has compute capability {capability}"
        return f"{other}, not {target.compute_capability}", ""
    try:
        _ = rtx.version() if target.runtime == "tensorrt-rtx" else tensorrt.version()
    except MissingExtraError as error:
        return error.what, error.hint
    return "", ""


def inputs_of(graph: gs.Graph, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return inputs for a part: seeded noise for floats, 0 for numbers of tokens, which any count
    has, and ones for everything else (masks)."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in graph.inputs:
        dims = [settled(d, batch) for d in tensor.shape]
        dtype = np.dtype(tensor.dtype)
        if dtype.kind == "f":
            found[tensor.name] = rng.standard_normal(dims).astype(dtype)
        else:
            found[tensor.name] = np.full(dims, dtype.kind == "b", dtype)
    return found


def part_for(graph: gs.Graph, target: Target, precision: Precision) -> gs.Graph:
    """Return a part in the form that the target takes, which in fp16 reads and gives fp16: inside
    the model no casts lie where it was cut."""
    lowered = lower(graph, target=target, precision="fp32")
    if precision != "fp16":
        return lowered
    written = frozenset(str(n.name) for n in lowered.nodes if n.name.startswith(WRITTEN))
    return to_half(lowered, fp32_nodes=written, keep_io=False)


def _runner(plan: memoryview, arrays: Mapping[str, Any], *, rtx: bool) -> Run:
    """Inputs are copied once. `infer` waits for its stream, so that a clock around it is right."""
    # Polygraphy reads this when it is imported, and serves one of the two for a whole process.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.cuda import DeviceArray
    from polygraphy.datatype import DataType

    runner = TrtRunner(EngineFromBytes(bytes(plan)))
    runner.activate()
    held = {
        name: DeviceArray(a.shape, DataType.from_dtype(a.dtype, "numpy")).copy_from(a)
        for name, a in arrays.items()
    }
    return lambda: runner.infer(held, check_inputs=False, copy_outputs_to_host=False)


def _smi() -> dict[str, str]:
    """Return what nvidia-smi tells of the first GPU; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", "-i", "0"]
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True
        )
        cells = [c.strip() for c in told.stdout.strip().splitlines()[0].split(",")]
        return dict(zip(_SMI, cells, strict=False))
    return {}


def _text_of(path: str) -> str:
    """Return what a file of the system says; empty where it cannot be read."""
    with suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text(encoding="ascii").strip()
    return ""


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _remove(path: Path) -> None:
    """Remove a model and its weights."""
    path.unlink()
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
