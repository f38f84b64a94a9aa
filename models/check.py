"""Does the written file compute what PyTorch computes?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from tcompile.core.errors import ModelError
from tcompile.models.recipes import batched
from tcompile.models.source import LoadedModel

# Exports that are right differ by some 2e-6 of the largest output; a wrong
# one by far more. Deep models add up rounding, hence the room between.
RELATIVE_TOLERANCE = 1e-4
# For a free batch: one image (where traces like to specialise) and a count never traced with.
_OTHER_BATCHES = (1, 3)


def check_file(path: Path, loaded: LoadedModel, batch: int | str) -> float:
    """Compare the file in ONNX Runtime with the module; give the largest absolute difference.

    Raises:
        ModelError: invalid ONNX, refused by ONNX Runtime, or different outputs.
    """
    import onnxruntime

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"wrote invalid ONNX: {str(error).splitlines()[0]}") from error
    options = onnxruntime.SessionOptions()
    # The file as written is checked, not what ONNX Runtime would make of it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for count in (batch,) if isinstance(batch, int) else _OTHER_BATCHES:
            inputs = {n: batched(t, count) for n, t in loaded.example_inputs.items()}
            got = session.run(None, {n: t.numpy() for n, t in inputs.items()})
            worst = max(worst, _difference(got, _reference(loaded, inputs), loaded))
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's errors share no base class
        first = str(error).splitlines()[0][:200]
        raise ModelError(f"wrote a file that ONNX Runtime refuses: {first}") from error
    return worst


def _reference(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        result = loaded.module(*inputs.values())
    tensors = (result,) if isinstance(result, torch.Tensor) else result
    return [tensor.numpy() for tensor in tensors]


def _difference(got: list[np.ndarray], expected: list[np.ndarray], loaded: LoadedModel) -> float:
    if len(got) != len(expected):
        raise ModelError(f"wrote {len(got)} outputs where PyTorch has {len(expected)}")
    worst = 0.0
    for name, ours, theirs in zip(loaded.output_names, got, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ModelError(
                f"wrote output '{name}' as {ours.shape} where PyTorch has {theirs.shape}"
            )
        error = float(np.max(np.abs(ours.astype(np.float64) - theirs), initial=0.0))
        limit = RELATIVE_TOLERANCE * max(1e-6, float(np.max(np.abs(theirs), initial=0.0)))
        if not error <= limit:
            raise ModelError(f"wrote a file whose output '{name}' differs by {error:.2g}")
        worst = max(worst, error)
    return worst
