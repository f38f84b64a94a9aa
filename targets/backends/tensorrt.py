"""TensorRT: engines for the GPU of the machine that builds them, such as a Jetson itself.

Unlike TensorRT-RTX it measures kernels while it builds, so it needs the device. A bundle is how a
model gets to a device without this package (`jetson.py`).
"""

from __future__ import annotations

from pathlib import Path

from tcompile.errors import UsageError
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.extras import require
from tcompile.targets.backends.trt_common import build_plan

_PURPOSE = "building a TensorRT engine"
#: Strongly typed networks with everything our graphs use.
OLDEST = (10, 0)


def version() -> str:
    """The installed TensorRT's version."""
    return str(require("tensorrt", "tensorrt", _PURPOSE).__version__)


def build(model_path: Path, *, batch: Batch | None = None) -> memoryview:
    """Compile an ONNX file into a serialised engine for this machine's GPU.

    Raises:
        MissingExtraError: tensorrt is not installed.
        UsageError: it is too old.
        ModelError, TcompileError: see `build_plan`.
    """
    trt = require("tensorrt", "tensorrt", _PURPOSE)
    major, minor = (int(part) for part in str(trt.__version__).split(".")[:2])
    if (major, minor) < OLDEST:
        raise UsageError(
            f"TensorRT {trt.__version__} is too old: strongly typed networks need "
            f"{OLDEST[0]}.{OLDEST[1]}",
            hint="on a Jetson, install JetPack 6.1 or newer",
        )
    return build_plan(trt, model_path, batch=batch)
