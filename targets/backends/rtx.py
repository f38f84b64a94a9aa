"""TensorRT-RTX: engines for desktop GPUs, built on any machine, GPU or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.core.progress import Progress, silent
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.trt_common import build_plan
from tcompile.targets.compatibility import HardwareLevel
from tcompile.targets.versions import TENSORRT, parse_version

_PURPOSE = "building a TensorRT-RTX engine"


def version() -> str:
    """The installed TensorRT-RTX's version."""
    return str(require("tensorrt_rtx", "rtx", _PURPOSE).__version__)


def sm(compute_capability: str) -> str:
    """ "8.9" → "sm89", as TensorRT-RTX and nvcc name it."""
    return "sm" + compute_capability.replace(".", "")


def capabilities(compute_capability: str, level: HardwareLevel | None) -> tuple[str, ...]:
    """Return the compute capabilities of an engine: for `ampere-plus` all from 8.0 on that the
    installed TensorRT-RTX knows, else one, on all GPUs of which any engine runs."""
    if level != "ampere-plus":
        return (compute_capability,)
    oldest = parse_version(TENSORRT.compatibility.hardware.levels[level].oldest)
    known = [
        f"{name[2:-1]}.{name[-1]}" for name in _names(require("tensorrt_rtx", "rtx", _PURPOSE))
    ]
    return tuple(sorted((c for c in known if parse_version(c) >= oldest), key=parse_version))


def build(
    model_path: Path,
    compute_capabilities: str | Sequence[str],
    *,
    batch: Batch | None = None,
    workspace: int | None = None,
    progress: Progress = silent,
) -> memoryview:
    """Compile an ONNX file into a serialised engine for GPUs of one or several compute
    capabilities.

    Args:
        model_path: the .onnx file; strongly typed, so its tensors say the precision.
        compute_capabilities: "8.9", or several.
        batch: sizes for a symbolic batch.
        workspace, progress: see `build_plan`.

    Raises:
        MissingExtraError: tensorrt-rtx is not installed.
        UsageError: TensorRT-RTX does not know the compute capability.
        ModelError, TcompileError: see `build_plan`.
    """
    rtx = require("tensorrt_rtx", "rtx", _PURPOSE)
    wanted = compute_capabilities
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    chosen = {each: getattr(rtx.ComputeCapability, sm(each).upper(), None) for each in wanted}
    if missing := [each for each, found in chosen.items() if found is None]:
        raise UsageError(
            f"TensorRT-RTX {rtx.__version__} builds nothing for compute capability {missing[0]}",
            where="--target",
            hint=f"it builds for {', '.join(_names(rtx))}",
        )

    def configure(config: Any, parser: Any) -> None:
        config.num_compute_capabilities = len(chosen)
        for index, found in enumerate(chosen.values()):
            config.set_compute_capability(found, index)

    return build_plan(
        rtx, model_path, batch=batch, workspace=workspace, progress=progress, configure=configure
    )


def _names(rtx: ModuleType) -> list[str]:
    """The compute capabilities that it builds for, by its names: SM89."""
    return [name for name in dir(rtx.ComputeCapability) if name.startswith("SM")]
