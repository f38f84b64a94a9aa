"""What the reduction changed: the reduced model against the dense one, output by output.

Nothing here is a pass or a fail. How much may change is for the person to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.artifact.manifest import Fidelity, OutputFidelity
from tcompile.runtime.metrics import cosine, holds_classes, top1_agreement
from tcompile.runtime.samples import Samples, run_all
from tcompile.runtime.token_outputs import (
    INDEX,
    OWNER,
    for_output,
    is_bookkeeping,
    restored,
    take_rows,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def measure_fidelity(
    dense: str | Path,
    reduced: str | Path,
    samples: Samples,
    towers: Mapping[str, str] | None = None,
) -> Fidelity:
    """Run both models on ONNX Runtime and compare what they say; see `compare`."""
    return compare(run_all(dense, samples), run_all(reduced, samples), samples, towers)


def compare(
    dense: Mapping[str, Array],
    reduced: Mapping[str, Array],
    samples: Samples,
    towers: Mapping[str, str] | None = None,
) -> Fidelity:
    """Compare outputs that both have, by name.

    Args:
        towers: output → tower whose tokens it holds, `choice.tower_of_outputs`.
    """
    found = []
    for name, want in dense.items():
        if name in reduced and want.dtype.kind == "f" and not is_bookkeeping(name):
            entry = _output(name, want, reduced[name], reduced, towers)
            found += [entry] if entry else []
    return Fidelity(samples.source, len(samples), tuple(found))


def _output(
    name: str,
    dense: Array,
    reduced: Array,
    extra: Mapping[str, Array],
    towers: Mapping[str, str] | None,
) -> OutputFidelity | None:
    if dense.shape == reduced.shape:
        top1 = top1_agreement(dense, reduced) if holds_classes(name, dense) else None
        return _entry(name, "all", cosine(dense, reduced), top1)
    axes = [i for i, (n, k) in enumerate(zip(dense.shape, reduced.shape, strict=True)) if n != k]
    if len(axes) != 1 or axes[0] == 0:
        return None
    # [B, N, …] and [B, K, …], whatever lies where in the output itself.
    dense, reduced = (_token_axis_first(a, axes[0]) for a in (dense, reduced))
    owner = for_output(OWNER, name, extra, dense.shape[1], towers)
    if owner is not None:
        want, have = restored(dense, reduced, owner)
        return _entry(name, "restored tokens", cosine(want, have), None)
    index = for_output(INDEX, name, extra, reduced.shape[1], towers)
    if index is None:
        return None
    # A fused token (index -1) is none of the dense model's: leave it out on both sides.
    real = (index >= 0)[..., None]
    kept = take_rows(dense, index.clip(min=0))
    return _entry(name, "kept tokens", cosine(kept * real, reduced * real), None)


def _token_axis_first(array: Array, axis: int) -> Array:
    import numpy as np

    moved = np.moveaxis(array, axis, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _entry(name: str, compared: Any, values: Array, top1: float | None) -> OutputFidelity:
    return OutputFidelity(name, compared, float(values.mean()), float(values.min()), top1)
