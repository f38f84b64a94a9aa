"""Run an artifact (or any ONNX model) on one input and say what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.artifact.directory import is_artifact, load_artifact
from tcompile.runtime.metrics import holds_classes
from tcompile.runtime.samples import run_all, samples_for
from tcompile.runtime.signature import signature
from tcompile.targets.backends.cpu import ORT, on_cpu

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TopClass:
    """A class, the model's raw output for it, and its softmax share."""

    index: int
    label: str
    logit: float
    probability: float


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
    """Run on an image, a folder of images, .npy or .npz: an artifact for OpenVINO there, all else
    in ONNX Runtime.

    Args:
        top: classes of each sample.
        preprocess: how images are prepared, in place of what the model records.

    Raises:
        UsageError: the input does not fit the model.
        ModelError: the model cannot be read.
    """
    path, how = Path(model), ORT
    if is_artifact(model) or path.is_dir():
        opened = load_artifact(model)
        path = opened.model
        how = on_cpu(opened.manifest.target.runtime, opened.manifest.precision)
    start = time.perf_counter()
    described = signature(path).prepared(preprocess)
    outputs = run_all(path, samples_for(described, data), how)
    seconds = time.perf_counter() - start
    labels = described.preprocessing.get("labels") or ()
    summaries = tuple(
        replace(_summary(name, array, top, labels), token_index=described.token_index.get(name, ""))
        for name, array in outputs.items()
    )
    return RunResult(str(model), summaries, seconds, described.notes)


def _summary(name: str, array: Array, top: int, labels: Sequence[str]) -> OutputSummary:
    import numpy as np

    ranked = tuple(_top(row, top, labels) for row in array) if holds_classes(name, array) else ()
    if array.dtype.kind not in "biuf":  # texts
        return OutputSummary(name, "text", array.shape, 0.0, 0.0, 0.0)
    values = array[np.isfinite(array)] if array.dtype.kind == "f" else array.reshape(-1)
    low, high, mean = (float(f(values)) if values.size else 0.0 for f in (np.min, np.max, np.mean))
    bad = array.size - values.size
    return OutputSummary(name, str(array.dtype), array.shape, low, high, mean, ranked, bad)


def _top(row: Array, count: int, labels: Sequence[str]) -> tuple[TopClass, ...]:
    import numpy as np

    finite = np.isfinite(row)  # what is not has no rank
    above = row.astype(np.float64) - row.max(where=finite, initial=-np.inf)
    shares = np.exp(above, where=finite, out=np.zeros_like(above))
    shares /= shares.sum(where=finite)
    order = [i for i in np.argsort(-row, kind="stable") if finite[i]][: max(count, 0)]
    return tuple(
        TopClass(int(i), labels[i] if i < len(labels) else "", float(row[i]), float(shares[i]))
        for i in order
    )
