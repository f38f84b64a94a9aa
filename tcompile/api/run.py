"""Run an artifact (or any ONNX model) on one input and say what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.artifact.directory import is_artifact, load_artifact
from tcompile.deploy.load import load
from tcompile.deploy.result import TopClass, ranked
from tcompile.runtime.metrics import holds_classes
from tcompile.runtime.samples import samples_for
from tcompile.targets.backends.cpu import on_cpu

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class OutputSummary:
    """One output. `top` is filled, a list for each sample, where the output holds classes;
    smallest, largest and mean are of the finite values (0 where there is none); `token_index` is
    the output that says which tokens its rows are, where it has fewer than the dense model."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    mean: float
    top: tuple[tuple[TopClass, ...], ...] = ()
    not_finite: int = 0
    token_index: str = ""


@dataclass(frozen=True)
class RunResult:
    """Outputs, and how long it took in all (loading included), in seconds."""

    model: str
    outputs: tuple[OutputSummary, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def run(
    model: str | Path, data: str | Path, *, top: int = 5, preprocess: str | None = None
) -> RunResult:
    """Run on data (`tcompile.data.opening.FORMS`): an artifact for OpenVINO there, all else in ONNX
    Runtime; a build that failed too, with a note.

    Args:
        top: classes of each sample.
        preprocess: how images are prepared, in place of what the model records.

    Raises:
        UsageError: the input does not fit the model.
        ModelError: the model cannot be read, or is not as it was built.
    """
    runtime = None
    if is_artifact(model) or Path(model).is_dir():
        manifest = load_artifact(model).manifest
        runtime = on_cpu(manifest.target.runtime, manifest.precision).runtime
    start = time.perf_counter()
    with load(model, runtime, preprocess=preprocess, allow_failed=True) as loaded:
        result = loaded.run(samples_for(loaded.signature, data))
    seconds = time.perf_counter() - start
    summaries = tuple(
        replace(
            _summary(name, array, top, loaded.labels), token_index=loaded.token_index.get(name, "")
        )
        for name, array in result.items()
    )
    return RunResult(str(model), summaries, seconds, loaded.notes)


def _summary(name: str, array: Array, top: int, labels: Sequence[str]) -> OutputSummary:
    import numpy as np

    classes = holds_classes(name, array)
    best = tuple(ranked(row, top, labels) for row in array) if classes else ()
    if array.dtype.kind not in "biuf":  # texts
        return OutputSummary(name, "text", array.shape, 0.0, 0.0, 0.0)
    values = array[np.isfinite(array)] if array.dtype.kind == "f" else array.reshape(-1)
    low, high, mean = (float(f(values)) if values.size else 0.0 for f in (np.min, np.max, np.mean))
    bad = array.size - values.size
    return OutputSummary(name, str(array.dtype), array.shape, low, high, mean, best, bad)
