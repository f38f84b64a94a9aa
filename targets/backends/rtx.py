"""TensorRT-RTX: engines for desktop GPUs, built on any machine, GPU or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.core.progress import Progress, silent
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.trt_common import build_plan

_PURPOSE = "building a TensorRT-RTX engine"


def version() -> str:
    """The installed TensorRT-RTX's version."""
    return str(require("tensorrt_rtx", "rtx", _PURPOSE).__version__)


def sm(compute_capability: str) -> str:
    """ "8.9" → "sm89", as TensorRT-RTX and nvcc name it."""
    return "sm" + compute_capability.replace(".", "")


def build(
    model_path: Path,
    compute_capability: str,
    *,
    batch: Batch | None = None,
    workspace: int | None = None,
    progress: Progress = silent,
) -> memoryview:
    """Compile an ONNX file into a serialised engine for a GPU of that compute capability.

    Args:
        model_path: the .onnx file; strongly typed, so its tensors say the precision.
        compute_capability: "8.9".
        batch: sizes for a symbolic batch.
        workspace, progress: see `build_plan`.

    Raises:
        MissingExtraError: tensorrt-rtx is not installed.
        UsageError: TensorRT-RTX does not know the compute capability.
        ModelError, TcompileError: see `build_plan`.
    """
    rtx = require("tensorrt_rtx", "rtx", _PURPOSE)
    chosen = getattr(rtx.ComputeCapability, sm(compute_capability).upper(), None)
    if chosen is None:
        names = [name for name in dir(rtx.ComputeCapability) if name.startswith("SM")]
        raise UsageError(
            f"TensorRT-RTX {rtx.__version__} builds nothing for compute capability "
            f"{compute_capability}",
            where="--target",
            hint=f"it builds for {', '.join(names)}",
        )

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(chosen, 0)

    return build_plan(
        rtx, model_path, batch=batch, workspace=workspace, progress=progress, configure=configure
    )
