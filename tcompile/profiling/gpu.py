"""Measuring on a GPU of this machine, with TensorRT-RTX or TensorRT.

No GPU has run this yet: written against polygraphy's documented API, and tested up to the engine,
which TensorRT-RTX builds without one.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import onnx_graphsurgeon as gs

from tcompile.core.errors import MissingExtraError, UsageError
from tcompile.core.save import save
from tcompile.passes.lower import lower, to_fp16
from tcompile.profiling.profile import Conditions
from tcompile.profiling.runtimes import Run, inputs_of
from tcompile.targets import Target
from tcompile.targets.backends import check_precision, jetson, rtx, tensorrt
from tcompile.targets.backends.base import Batch
from tcompile.targets.devices import Precision

#: Where the driver shows its GPUs; a Jetson has no nvidia-smi and no /dev/nvidia0 before R36.
_DEVICES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg")
_SMI = ("name", "compute_cap", "driver_version", "clocks.max.sm", "power.limit")


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
            path.unlink()
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)

    def conditions(self) -> Conditions:
        """What the driver tells of the device, and the versions."""
        facts = _smi()
        with_rtx = self.target.runtime == "tensorrt-rtx"
        versions = {"tensorrt_rtx": rtx.version()} if with_rtx else {}
        versions |= {} if with_rtx else {"tensorrt": tensorrt.version()}
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
            power_mode=facts.get("power.limit", "") or _nvpmodel(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def gpu_runtime(target: Target, *, batch: int, precision: str | None) -> GpuRuntime:
    """What measures on a GPU target from here.

    Raises:
        UsageError: no such precision; no GPU here, another one, or no library for it.
    """
    level = precision or target.default_precision
    check_precision(target, level)
    hint = "its data sheet does: `tcompile profile --modelled`, `--profile model` elsewhere"
    if not any(Path(p).exists() for p in _DEVICES):
        raise UsageError(
            "cannot be measured from here: this machine has no NVIDIA GPU",
            where=f"--target {target.name}",
            hint=hint,
        )
    if (target.runtime == "jetson") != jetson.is_jetson():
        what = "no Jetson" if target.runtime == "jetson" else "a Jetson"
        raise UsageError(
            f"cannot be measured from here: this machine is {what}",
            where=f"--target {target.name}",
            hint=hint,
        )
    capability = _smi().get("compute_cap", "")
    if capability and capability != target.compute_capability:
        raise UsageError(
            f"cannot be measured from here: this machine's GPU has compute capability {capability}"
            f", not {target.compute_capability}",
            where=f"--target {target.name}",
            hint=hint,
        )
    try:
        _ = rtx.version() if target.runtime == "tensorrt-rtx" else tensorrt.version()
    except MissingExtraError as error:
        raise UsageError(
            f"cannot be measured from here: {error.what}",
            where=f"--target {target.name}",
            hint=f"{error.hint}; {hint}",
        ) from error
    return GpuRuntime(target, batch=batch, precision=cast(Precision, level))


def part_for(graph: gs.Graph, target: Target, precision: Precision) -> gs.Graph:
    """A part in the form that the target takes, which in fp16 reads and gives fp16: inside the
    model no casts lie where it was cut."""
    lowered = lower(graph, target=target, precision="fp32")
    if precision != "fp16":
        return lowered
    ours = frozenset(str(n.name) for n in lowered.nodes if n.name.startswith("tcompile/"))
    return to_fp16(lowered, fp32_nodes=ours, keep_io=False)


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
    """What nvidia-smi tells of the first GPU; nothing where it is not to be had."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", "-i", "0"]
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        cells = [c.strip() for c in told.stdout.strip().splitlines()[0].split(",")]
        return dict(zip(_SMI, cells, strict=False))
    return {}


def _nvpmodel() -> str:
    """The power mode of a Jetson, which nvpmodel keeps in a file."""
    with suppress(OSError, UnicodeDecodeError):
        text = Path("/var/lib/nvpmodel/status").read_text(encoding="ascii")
        return text.strip()
    return ""
