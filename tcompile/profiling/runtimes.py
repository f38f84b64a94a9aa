"""What opens a file on a target's runtime and runs it, so that it can be timed.

A device that is reached over SSH will be one more `Runtime`: a profile asks for no more than this.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import settled
from tcompile.core.save import save
from tcompile.profiling.profile import Conditions
from tcompile.targets import Target

Run = Callable[[], object]


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
        """What identifies the measurement."""
        ...


class OrtRuntime:
    """ONNX Runtime on the CPU of this machine."""

    def __init__(self, target: Target, *, batch: int = 1, threads: int | None = None) -> None:
        from tcompile.runtime.timing import usable_cores

        self.target, self.batch = target, batch
        self.threads = threads or usable_cores()

    def open(self, graph: gs.Graph, path: Path) -> Run:
        from tcompile.targets.backends.ort import OrtRunner

        save(graph, path)
        runner = OrtRunner(path, threads=self.threads, in_turn=True)
        path.unlink()
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        return runner.prepared(inputs_of(graph, self.batch))

    def conditions(self) -> Conditions:
        from tcompile.runtime.timing import machine_name
        from tcompile.targets.backends.ort import version

        return Conditions(
            target=self.target.name,
            device=machine_name(),
            runtime="ONNX Runtime, CPU",
            software={"onnxruntime": version(), "system": platform.platform(terse=True)},
            precision="fp32",
            batch=self.batch,
            threads=self.threads,
            clocks=_governor(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def runtime_for(
    target: Target, *, batch: int = 1, threads: int | None = None, precision: str | None = None
) -> Runtime:
    """What measures on a target from here.

    Raises:
        UsageError: nothing does: the target is another machine, or this one has no such device.
    """
    if target.runtime == "onnxruntime":
        if precision not in (None, "fp32"):
            raise UsageError(
                "a CPU is measured in fp32", where="--precision", hint="it only emulates fp16"
            )
        return OrtRuntime(target, batch=batch, threads=threads)
    from tcompile.profiling.gpu import gpu_runtime

    return gpu_runtime(target, batch=batch, precision=precision)


def inputs_of(graph: gs.Graph, batch: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs for a part: seeded noise for floats, 0 for numbers of tokens, which any count has, and
    ones for everything else (masks)."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in graph.inputs:
        dims = [bound(d, batch) for d in tensor.shape]
        dtype = np.dtype(tensor.dtype)
        if dtype.kind == "f":
            found[tensor.name] = rng.standard_normal(dims).astype(dtype)
        else:
            found[tensor.name] = np.full(dims, dtype.kind == "b", dtype)
    return found


def bound(dim: int | str, batch: int) -> int:
    """A dim with the free batches settled."""
    return settled(dim, batch)


def _governor() -> str:
    """The frequency governor of the first core, where the system tells."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text(encoding="ascii").strip() if os.name == "posix" else ""
    except OSError:
        return ""
